"""The cache of a corpus: its arrays, and the text of packed files, in a folder with a name for the content.

A cache is used if the size and sampled blocks of every file are those of its first opening. If only the time of a file
differs, as of a copy, all of the file is compared. Every array is compared with its checksum at each opening.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from mmap import ACCESS_READ, mmap
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from rqa.atomic_files import HASH_THREADS, PIECE, folder_lock, publish_folder, read_manifest, write_manifest
from rqa.data.corpus_files import is_packed
from rqa.data.corpus_table import Part, Summary, Table
from rqa.data.data_file import DataFile, open_packed
from rqa.data.file_report import FileReport
from rqa.data.passage_rows import RowFormat
from rqa.terminal import Progress

FORMAT = 1
_SAMPLE_BYTES = 2**16
_NUM_SAMPLES = 64  # of all files together, but at least 3 of each
_MANIFEST = "manifest.json"


class CorpusCache:
    """The cache in `root` of the files of a corpus, read with some options."""

    def __init__(self, root: Path, files: Sequence[DataFile], options: Sequence[str | None]) -> None:
        self._files, self._num_samples = files, max(3, _NUM_SAMPLES // len(files))
        content = [("".join(Path(file.path).suffixes[-2:]), self._sample(file)) for file in files]
        key = hashlib.sha256(json.dumps([FORMAT, content, *options]).encode()).hexdigest()[:16]
        self._root, self.folder = root, root / key
        self.problem = ""  # of the stored corpus

    def load(self, report: FileReport, *, verify: bool = False) -> tuple[list[Part], Table, Summary] | None:
        """Return the stored corpus, and its counts in `report`; None if there is none, or it has a `problem`.

        `verify` compares all bytes of all files.
        """
        try:
            manifest = read_manifest(self.folder / _MANIFEST)
            if not self._is_unchanged(manifest, verify=verify):
                raise ValueError("the files have another content")
            if _checksums(Table.paths(self.folder)) != manifest["arrays"]:
                raise ValueError("an array does not match its checksum")
            parts = [self._part(i, values, verify=verify) for i, values in enumerate(manifest["parts"])]
            table, summary = Table.load(self.folder), Summary(**manifest["summary"])
            report.restore(manifest["report"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            self.problem = str(error)
            return None
        return parts, table, summary

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the cache alone: another process that opens the same corpus waits."""
        with folder_lock(self._root, "the corpus"):
            yield

    @contextmanager
    def new_folder(self) -> Iterator[Path]:
        """Yield an empty folder for a new cache; it is deleted at the end unless it was saved."""
        partial = self._partial
        shutil.rmtree(partial, ignore_errors=True)  # of a killed process
        partial.mkdir(parents=True)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def save(self, parts: Sequence[Part], table: Table, summary: Summary, report: FileReport) -> None:
        """Publish the new folder, with the arrays of a corpus without bad rows. Raises OSError."""
        table.save(self._partial)
        manifest = {
            "files": [{"modified": file.modified, "content": content_hash(file)} for file in self._files],
            "parts": [
                {
                    "row_format": asdict(part.row_format),
                    "num_header_lines": part.num_header_lines,
                    "text": [self._sample(part.data), content_hash(part.data)] if is_packed(file) else None,
                }
                for file, part in zip(self._files, parts, strict=True)
            ],
            "arrays": _checksums(Table.paths(self._partial)),
            "summary": asdict(summary),
            "report": report.state(),
        }
        write_manifest(self._partial / _MANIFEST, manifest)
        publish_folder(self._partial, self.folder)

    def text_path(self, folder: Path, number: int) -> Path:
        """Return the path of the text of a packed file."""
        return folder / f"text-{number:05}"

    def discard(self) -> None:
        """Remove a cache that does not match its files: the next opening reads them again."""
        with suppress(OSError):
            (self.folder / _MANIFEST).unlink()

    @property
    def _partial(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.partial")

    def _is_unchanged(self, manifest: dict[str, Any], *, verify: bool) -> bool:
        """Return True if the files have the stored content. The time of a copy is stored."""
        stored = manifest["files"]
        times = [file.modified for file in self._files]
        is_copy = times != [each["modified"] for each in stored]
        if is_copy or verify:
            if [content_hash(file) for file in self._files] != [each["content"] for each in stored]:
                return False
            for each, modified in zip(stored, times, strict=True):
                each["modified"] = modified
            if is_copy:
                with suppress(OSError):  # of a folder that cannot be written: the next copy is compared too
                    write_manifest(self.folder / _MANIFEST, manifest)
        return True

    def _part(self, number: int, values: dict[str, Any], *, verify: bool) -> Part:
        file = data = self._files[number]
        if values["text"]:
            data = open_packed(self.text_path(self.folder, number), file.path)
            sample, content = values["text"]
            if self._sample(data) != sample or (verify and content_hash(data) != content):
                raise ValueError("a text does not match its checksum")
        names = {**values["row_format"], "columns": tuple(values["row_format"]["columns"])}
        return Part(file.path, data, RowFormat(**names), values["num_header_lines"])

    def _sample(self, data: DataFile) -> str:
        """Return a hash of the size, the first, the last and other blocks of a file."""
        size, last = len(data), max(0, len(data) - _SAMPLE_BYTES)
        digest = hashlib.sha256(b"%d\n" % size)
        step = max(1, -(-last // (self._num_samples - 1)))
        for start in (*range(0, last, max(step, _SAMPLE_BYTES)), last):
            digest.update(data[start : start + _SAMPLE_BYTES])
        return digest.hexdigest()


def content_hash(data: DataFile) -> str:
    """Return the SHA-256 of the SHA-256 of the pieces of a file, as `checksums` does."""
    starts = range(0, len(data), PIECE)
    with ThreadPool(HASH_THREADS) as pool, Progress(f"comparing {data.path}", len(data), unit="bytes") as progress:
        digest = hashlib.sha256()
        for piece in pool.imap(lambda start: hashlib.sha256(data[start : start + PIECE]).digest(), starts):
            digest.update(piece)
            progress.advance(min(PIECE, len(data) - progress.done))
    return digest.hexdigest()


def _checksums(paths: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each file, read through its mapping: this takes no memory of the process."""
    with ThreadPool(HASH_THREADS) as pool:
        return pool.map(_checksum, paths)


def _checksum(path: Path) -> str:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()
