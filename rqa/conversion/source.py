"""The input of a conversion: rows, one JSON object, or a folder; and the problems of its files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from rqa.data.data_file import DataFile, open_data, read_all
from rqa.data.fields import Fields, listed, quoted
from rqa.data.file_report import FileReport
from rqa.data.foreign_files import SNIFFED_BYTES, check_binary, check_json_lines
from rqa.data.jsonl import MAX_LINE_BYTES, parse_object, read_array, read_rows
from rqa.errors import InputError
from rqa.terminal import Progress

Shape = Literal["array", "lines", "object", "folder"]
NUM_FIRST_ROWS = 20  # that are compared with the fields of the formats
_BOM = b"\xef\xbb\xbf"


class Source:
    """The input of a conversion: a file of rows (JSON Lines or an array), a file of one object, or a folder.

    `first_rows` are the first rows that are objects, or the one object; a folder has none. The name of a file is not
    used, but for the ending .gz. `split` is the part of a folder to convert. Raises InputError if `path` is none of
    these.
    """

    def __init__(self, path: str | Path, split: str = "") -> None:
        self.path, self.split = Path(path), split
        self.shape: Shape = "folder"
        self.first_rows: list[dict[str, Any]] = []
        self._reports: list[FileReport] = []
        if not self.path.is_dir():
            self._data = open_data(path)
            self.shape = _shape(self.path, self._data)
            self.first_rows = [self._parsed()] if self.shape == "object" else _first_rows(self._data, self.shape)

    @property
    def contents(self) -> str:
        """The names in the folder, or the fields of the first row, for messages."""
        if self.shape == "folder":
            return f"a folder with {listed(sorted(entry.name for entry in self.path.iterdir()))}"
        kind = "one object" if self.shape == "object" else "rows"
        return f"{kind} with {listed(self.first_rows[0] if self.first_rows else ())}"

    def report(self, path: Path | None = None) -> FileReport:
        """Return a new report of a file; `check` reads it."""
        self._reports.append(FileReport(path or self.path))
        return self._reports[-1]

    def check(self, max_bad_rows: int) -> None:
        """Raise DataError if a file has too many rows with problems, else log the rows and fields left out."""
        for report in self._reports:
            report.check(max_bad_rows)

    def rows(self) -> Iterator[tuple[str, Fields]]:
        """Yield (place, fields) of each row; one object is one row. A row is added to the report after its use."""
        if self.shape == "folder":
            raise InputError(f"{self.path}: expected a file, got {self.contents}.")
        report = self.report()
        if self.shape == "object":
            row = Fields(self.first_rows[0])
            yield f"{self.path}:1", row
            report.add_row(f"{self.path}:1", row)
        elif self.shape == "array":
            for index, row in read_array(self.path, self._data, report):
                yield f"{self.path}[{index}]", row
        else:
            for line, *_, row in read_rows(self.path, self._data, report):
                yield f"{self.path}:{line}", row

    def object(self) -> dict[str, Any]:
        """Return the one object of the file. Raises InputError if the file is not one object."""
        if self.shape != "object":
            raise InputError(f"{self.path}: expected one JSON object, got {self.contents}.")
        return self.first_rows[0]

    def rows_of(self, *names: str) -> Iterator[tuple[str, Fields]]:
        """Yield (place, fields) of each row of the first JSON Lines file of `names` that is in the folder."""
        path = self.file(*names)
        for line, *_, row in read_rows(path, open_data(path), self.report(path)):
            yield f"{path}:{line}", row

    def file(self, *names: str) -> Path:
        """Return the path of the first of `names` that is in the folder. Raises InputError if none is."""
        for name in names:
            if (self.path / name).is_file():
                return self.path / name
        raise InputError(f"{self.path}: expected a folder with {names[0]}, got {self.contents}.")

    def _parsed(self) -> dict[str, Any]:
        try:
            with Progress(f"reading {self.path}"):
                return parse_object(read_all(self._data).removeprefix(_BOM))
        except ValueError as problem:
            if isinstance(problem, InputError):
                raise
            raise InputError(f"{self.path}: {problem}.") from problem


def _shape(path: Path, data: DataFile) -> Shape:
    """Return the shape of a file by its first bytes. Raises InputError if these are not JSON."""
    start = data[:SNIFFED_BYTES].removeprefix(_BOM)
    check_binary(path, start)
    text = start.lstrip()
    if not text:
        raise InputError(f"{path}: expected at least one row, got an empty file.")
    first, _, _ = text.partition(b"\n")
    if text[:1] not in b"[{":
        check_json_lines(path, first, text)
        raise InputError(f"{path}: expected JSON, got {quoted(first.decode(errors='replace'))}.")
    if text.startswith(b"["):
        return "array"
    return "lines" if _is_lines(data) else "object"


def _is_lines(data: DataFile) -> bool:
    """Return True if the first line is a whole object before others, or if the second line begins with an object.

    The second is the rule for a broken first row: in an object over several lines the second begins otherwise.
    """
    first, _, rest = data[:MAX_LINE_BYTES].removeprefix(_BOM).lstrip().partition(b"\n")
    if not rest.strip():
        return False
    try:
        parse_object(first)
    except ValueError:
        return rest.startswith(b"{")
    return True


def _first_rows(data: DataFile, shape: Shape) -> list[dict[str, Any]]:
    """Return the first rows that are objects. A row that is longer than the longest line is not among them."""
    for size in (SNIFFED_BYTES, MAX_LINE_BYTES):
        text = data[:size].decode("utf-8-sig", errors="ignore").lstrip()
        rows = list(_decoded(text[1:] if shape == "array" else text))
        if rows:
            break
    return rows


def _decoded(text: str) -> Iterator[dict[str, Any]]:
    """Yield the first objects of a text; commas and white space are between them. Ends at broken syntax."""
    decoder, position = json.JSONDecoder(parse_int=str), 0
    for _ in range(NUM_FIRST_ROWS):
        position += len(text[position:]) - len(text[position:].lstrip(", \t\r\n"))
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            yield value
