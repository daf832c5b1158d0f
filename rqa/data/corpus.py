"""The corpus: a file of passages, checked once and read from disk on access."""

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from rqa.data.jsonl import Data, Fields, check_file, ignore, line_at, open_data, parse_object, read_rows
from rqa.data.localrqa import read_documents
from rqa.data.records import Passage, read_passage


class PassageStore(Sequence[Passage]):
    """The distinct passages of a corpus, in the order in which they first appear, read from disk when asked for.

    Rows with the same text (the same `Passage.id`) are one passage, which has the first one's title and the sources of
    all. In memory are an offset and an id for each passage; the file must not change while the store is in use.

    `duplicates` is the number of rows merged into an earlier one. `fingerprint` is the SHA-256, in hexadecimal digits,
    of the ids and titles in order: the same for the same passages in another format.
    """

    def __init__(self, path: str | Path, data: Data) -> None:
        self._data = data
        self._starts = array("Q")
        self._rows: dict[bytes, int] = {}
        self._merged_sources: dict[int, dict[str, None]] = {}  # of passages that have duplicates; a dict keeps order
        self.duplicates = 0
        digest = hashlib.sha256()
        for _, start, fields in read_rows(path, data):
            passage = read_passage(fields)
            row = self._rows.setdefault(passage.id.encode(), len(self))
            if row < len(self):
                self._merge(row, passage)
            else:
                self._starts.append(start)
                digest.update(passage.identity)
        self.fingerprint = digest.hexdigest()

    def _merge(self, row: int, duplicate: Passage) -> None:
        self.duplicates += 1
        if row not in self._merged_sources:
            self._merged_sources[row] = dict.fromkeys(self[row].sources)
        self._merged_sources[row].update(dict.fromkeys(duplicate.sources))

    def row_of(self, passage_id: str) -> int | None:
        """Return the row of the passage with this id, or None where the corpus lacks it."""
        return self._rows.get(passage_id.encode())

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        line = line_at(self._data, self._starts[row])
        passage = read_passage(Fields(parse_object(line), "", ignore))  # its problems were reported at opening
        if row in self._merged_sources:
            passage = replace(passage, sources=tuple(self._merged_sources[row]))
        return passage


def open_passages(path: str | Path) -> PassageStore:
    """Open a corpus: .jsonl, .jsonl.gz, or LocalRQA's document.pkl. A .jsonl is mapped, the others are held in memory.

    A row is {page_content, metadata?: {source?, title?}}; other fields are ignored. All rows are checked here. Raises
    DataError with every problem of the file, UnsafePickleError for another pickle, InputError where there is no such
    file or it has no row.
    """
    check_file(path, (".jsonl", ".jsonl.gz", ".pkl"))
    if str(path).endswith(".pkl"):
        return PassageStore(path, b"\n".join(map(_as_line, read_documents(Path(path)))))
    return PassageStore(path, open_data(path))


def _as_line(document: dict[str, Any]) -> bytes:
    """Write a document as a row of a .jsonl corpus, without what `_passage` does not read."""
    metadata = {name: document["metadata"].get(name) for name in ("source", "title")}
    return json.dumps({"page_content": document["page_content"], "metadata": metadata}).encode()
