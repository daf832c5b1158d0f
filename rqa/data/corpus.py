"""The corpus: a file of passages, checked once and read from disk on access."""

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from rqa.data.jsonl import Data, Fields, check_file, ignore, line_at, open_data, parse_object, read_rows
from rqa.data.localrqa import read_documents
from rqa.data.records import Passage, read_passage


class PassageStore(Sequence[Passage]):
    """The distinct passages of a corpus, in the order of their first rows, read from disk on access.

    Rows with the same text (the same `Passage.id`) are one passage, with the title of the first row and the sources of
    all. Memory holds an offset and an id for each passage. The file must not change while the store is in use.

    `duplicates` is the number of rows merged into an earlier one. `fingerprint` is the SHA-256, in hexadecimal, of the
    ids and titles in order: the same for the same passages in another format.
    """

    def __init__(self, path: str | Path, data: Data) -> None:
        self._data, self._starts = data, array("Q")
        self._rows: dict[bytes, int] = {}
        self._later_sources: dict[int, dict[str, None]] = {}  # of the duplicates of a row; a dict keeps order
        self.duplicates = 0
        digest = hashlib.sha256()
        for _, start, fields in read_rows(path, data):
            passage = read_passage(fields)
            row = self._rows.setdefault(passage.id.encode(), len(self))
            if row < len(self):
                self.duplicates += 1
                self._later_sources.setdefault(row, {}).update(dict.fromkeys(passage.sources))
            else:
                self._starts.append(start)
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
        values = parse_object(line_at(self._data, self._starts[row]))
        passage = read_passage(Fields(values, "", ignore))  # problems were reported at opening
        sources = dict.fromkeys((*passage.sources, *self._later_sources.get(row, ())))
        return replace(passage, sources=tuple(sources))


def open_passages(path: str | Path) -> PassageStore:
    """Return the passages of a .jsonl, .jsonl.gz or LocalRQA document.pkl file, after checking every row.

    A row is {page_content, metadata?: {source?, title?}}; other fields are ignored. A .jsonl is mapped; other files are
    held in memory. Raises DataError with every problem of the file, UnsafePickleError for another pickle, and
    InputError if there is no such file or it has no row.
    """
    check_file(path, (".jsonl", ".jsonl.gz", ".pkl"))
    if not str(path).endswith(".pkl"):
        return PassageStore(path, open_data(path))
    lines = []
    for document in read_documents(Path(path)):
        metadata = {name: document["metadata"].get(name) for name in ("source", "title")}
        lines.append(json.dumps({"page_content": document["page_content"], "metadata": metadata}).encode())
    return PassageStore(path, b"\n".join(lines))
