"""The corpus: files of passages, checked once and read from disk on access."""

import logging
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import overload

from rqa.data.corpus_cache import CorpusCache
from rqa.data.corpus_files import is_packed, open_files, open_part
from rqa.data.corpus_table import Part, Summary, Table, scan_parts
from rqa.data.data_file import DataFile, changed
from rqa.data.fields import Fields, quoted
from rqa.data.file_report import FileReport
from rqa.data.records import Passage
from rqa.errors import InputError

log = logging.getLogger(__name__)


class PassageStore(Sequence[Passage]):
    """The distinct passages of a corpus, in the order of their first rows, read from disk on access.

    Rows with the same text (the same `Passage.id`) are one passage, with the title of the first row and the sources of
    all. Rows with an empty text are left out. Memory holds the place, a checksum and the id of each passage, or nothing
    if the corpus is cached. An access raises InputError if the file was changed in the meantime.

    `duplicates` is the number of rows merged into an earlier one. `fingerprint` is the SHA-256, in hexadecimal, of the
    ids and titles in order: the same for the same passages in another format.
    """

    def __init__(
        self, parts: Sequence[Part], table: Table, summary: Summary, discard: Callable[[], None] = lambda: None
    ) -> None:
        self._parts, self._table, self._discard = parts, table, discard
        self._bases = [*accumulate((len(part.data) for part in parts[:-1]), initial=0)]
        self.duplicates, self.fingerprint = summary.duplicates, summary.fingerprint

    def row_of(self, passage_id: str) -> int | None:
        """Return the row of the passage with this id, or None if the corpus lacks it."""
        try:
            digest = bytes.fromhex(passage_id)
        except ValueError:
            return None
        return self._table.row_of(digest) if digest.hex() == passage_id and len(digest) == 16 else None

    def __len__(self) -> int:
        return len(self._table.starts)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        row = range(len(self))[index]
        if isinstance(row, range):
            return [self[each] for each in row]
        passage = self._read(row)
        if not (later := self._table.later_sources_of(row)):
            return passage
        return replace(passage, sources=tuple(dict.fromkeys((*passage.sources, *later))))

    def _read(self, row: int) -> Passage:
        start = int(self._table.starts[row])
        number = bisect_right(self._bases, start) - 1
        part, start = self._parts[number], start - self._bases[number]
        line = part.data[start : start + int(self._table.lengths[row])]
        if zlib.crc32(line) != self._table.checksums[row]:  # some network file systems report a change seconds later
            self._discard()
            raise changed(part.path)
        return part.row_format.read(Fields(part.row_format.parse(line)))  # problems were reported at opening


def open_passages(
    path: str | Path,
    report: FileReport | None = None,
    *,
    cache_dir: Path | None = None,
    text_field: str | None = None,
    title_field: str | None = None,
    verify: bool = False,
    num_workers: int | None = None,
) -> PassageStore:
    """Return the passages of a file, or of all files in a folder, after checking every row.

    Files are .jsonl, .tsv, both also .gz, .parquet, and LocalRQA's document.pkl. A row of JSON is {page_content,
    metadata?: {source?, title?}}; other fields are ignored. Columns of the other formats are `text` or `page_content`,
    `title`, and `source` or `id`. `text_field` and `title_field` name other fields of a row.

    The first opening writes a cache into `cache_dir`, which later ones map; other processes wait for it. Without it the
    text of a packed file is written into a temporary file. `verify` compares all bytes with those of the first opening.
    `num_workers` is the number of processes that read; the default depends on the size.

    Raises DataError with every problem of the file unless there is a `report`, which lists them. Raises
    UnsafePickleError for another pickle, and InputError if there is no such file, or if it has no row with a text.
    """
    files = open_files(path)
    own = report or FileReport(path)
    fields = text_field, title_field
    if cache := _writable_cache(cache_dir, files, fields):
        store = _cached(cache, files, own, fields, verify, num_workers)
    else:
        parts = [open_part(file, None, *fields) for file in files]
        store = PassageStore(parts, *_scanned(parts, own, title_field, None, num_workers))
    if report is None:
        own.check()
    if not (store or own.num_bad_rows):
        raise InputError(f"{path}: expected at least one passage with text, got only empty ones.")
    return store


def _writable_cache(
    cache_dir: Path | None, files: Sequence[DataFile], fields: tuple[str | None, str | None]
) -> CorpusCache | None:
    if cache_dir is None:
        return None
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("%s: the corpus is not cached: %s", cache_dir, error.strerror)
        return None
    return CorpusCache(cache_dir, files, fields)


def _cached(
    cache: CorpusCache,
    files: Sequence[DataFile],
    report: FileReport,
    fields: tuple[str | None, str | None],
    verify: bool,
    num_workers: int | None,
) -> PassageStore:
    """Return the stored corpus, after storing it if it is not."""
    if stored := cache.load(report, verify=verify):
        return PassageStore(*stored, cache.discard)
    with cache.lock():
        if stored := cache.load(report, verify=verify):  # another process has just written it
            return PassageStore(*stored, cache.discard)
        if cache.problem:
            log.warning("%s: %s: the corpus is read again", cache.folder, cache.problem)
        with cache.new_folder() as folder:
            parts = [
                open_part(file, cache.text_path(folder, i) if is_packed(file) else None, *fields)
                for i, file in enumerate(files)
            ]
            store = PassageStore(parts, *(scanned := _scanned(parts, report, fields[1], folder, num_workers)))
            if report.num_bad_rows or not store:
                return store
            try:
                cache.save(parts, *scanned, report)
            except OSError as error:
                log.warning("%s: the corpus is not cached: %s", cache.folder, error.strerror)
                return store
        stored = cache.load(report)
        return PassageStore(*stored, cache.discard) if stored else store


def _scanned(
    parts: Sequence[Part], report: FileReport, title_field: str | None, folder: Path | None, num_workers: int | None
) -> tuple[Table, Summary]:
    table, summary = scan_parts(parts, report, folder=folder, num_workers=num_workers)
    if title_field and not summary.num_titles and len(table.starts):
        raise InputError(f"{report.path}: --title_field {quoted(title_field)}: expected a title in a row, got none.")
    return table, summary
