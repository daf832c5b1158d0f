"""The corpus: a file of passages, checked once and read from disk on access."""

import hashlib
import json
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from rqa.data.data_file import Data, changed, check_file, open_data, spooled
from rqa.data.fields import Fields
from rqa.data.file_report import FileReport
from rqa.data.jsonl import parse_object, read_rows
from rqa.data.localrqa import read_documents
from rqa.data.records import Passage, read_passage
from rqa.errors import InputError


class PassageStore(Sequence[Passage]):
    """The distinct passages of a corpus, in the order of their first rows, read from disk on access.

    Rows with the same text (the same `Passage.id`) are one passage, with the title of the first row and the sources of
    all. Rows with an empty text are left out. Memory holds the place, a checksum and the id of each passage. An access
    raises InputError if the file was changed in the meantime.

    `duplicates` is the number of rows merged into an earlier one. `fingerprint` is the SHA-256, in hexadecimal, of the
    ids and titles in order: the same for the same passages in another format.
    """

    def __init__(self, path: str | Path, data: Data, report: FileReport) -> None:
        self._path, self._data = path, data
        self._starts, self._lengths, self._checksums = array("Q"), array("I"), array("I")  # of the rows in the file
        self._rows: dict[bytes, int] = {}
        self._later_sources: dict[int, dict[str, None]] = {}  # of the duplicates of a row; a dict keeps order
        self.duplicates = 0
        digest = hashlib.sha256()
        for _, start, line, fields in read_rows(path, data, report):
            passage = read_passage(fields)
            if fields.problems:
                if fields.is_blank("page_content") and len(fields.problems) == 1:
                    fields.problems.clear()
                    fields.note("passages without text are left out")
                continue
            row = self._rows.setdefault(passage.id.encode(), new_row := len(self._starts))
            if row < new_row:
                self.duplicates += 1
                self._later_sources.setdefault(row, {}).update(dict.fromkeys(passage.sources))
            else:
                self._starts.append(start)
                self._lengths.append(len(line))
                self._checksums.append(zlib.crc32(line))
                digest.update(passage.identity)
        self.fingerprint = digest.hexdigest()

    def row_of(self, passage_id: str) -> int | None:
        """Return the row of the passage with this id, or None if the corpus lacks it."""
        return self._rows.get(passage_id.encode())

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        row = range(len(self))[index]
        if isinstance(row, range):
            return [self[each] for each in row]
        passage = self._read(row)
        if not (later := self._later_sources.get(row)):
            return passage
        return replace(passage, sources=tuple(dict.fromkeys((*passage.sources, *later))))

    def _read(self, row: int) -> Passage:
        start = self._starts[row]
        line = self._data[start : start + self._lengths[row]]
        if zlib.crc32(line) != self._checksums[row]:  # some network file systems report a change seconds later
            raise changed(self._path)
        return read_passage(Fields(parse_object(line)))  # problems were reported at opening


def open_passages(path: str | Path, report: FileReport | None = None) -> PassageStore:
    """Return the passages of a .jsonl, .jsonl.gz or LocalRQA document.pkl file, after checking every row.

    A row is {page_content, metadata?: {source?, title?}}; other fields are ignored. The text of a .jsonl.gz or .pkl is
    written into a temporary file. Raises DataError with every problem of the file unless there is a `report`, which
    lists them. Raises UnsafePickleError for another pickle, and InputError if there is no such file, or if it has no
    row with a text.
    """
    check_file(path, (".jsonl", ".jsonl.gz", ".pkl"))
    if str(path).endswith(".pkl"):
        data = spooled(path, Path(path).stat().st_size, map(_line, read_documents(Path(path))))
    else:
        data = open_data(path)
    store = PassageStore(path, data, own := report or FileReport(path))
    if report is None:
        own.check()
    if not (store or own.num_bad_rows):
        raise InputError(f"{path}: expected at least one passage with text, got only empty ones.")
    return store


def _line(document: dict[str, Any]) -> bytes:
    """Return the row of a document as JSON, with the metadata that passages have."""
    metadata = {name: _plain(document["metadata"].get(name)) for name in ("source", "title")}
    return json.dumps({"page_content": document["page_content"], "metadata": metadata}).encode() + b"\n"


def _plain(value: object) -> object:
    """Return a text or number unchanged, and an empty list or object for the others, which are problems."""
    return value if isinstance(value, str | int | float | None) else [] if isinstance(value, list) else {}
