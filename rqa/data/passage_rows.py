"""Rows of a corpus: the names of their fields, and the scan of a block of lines, which any process can do."""

import csv
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rqa.data.fields import Fields
from rqa.data.jsonl import parse_object
from rqa.data.records import Passage, passage_digest

METADATA = "metadata."  # begins the name of a field of the object `metadata`
BLANK = "passages without text are left out"
ROW = np.dtype(
    [
        *[("start", "<u8"), ("length", "<u4"), ("checksum", "<u4")],  # of the line in its file
        *[("id_high", ">u8"), ("id_low", ">u8")],  # the halves of the id
        *[("identity", "<u4"), ("source", "<u4")],  # lengths in bytes
    ]
)
Unread = tuple[tuple[str, str], ...]  # of `Fields.unread`
_Shape = tuple[tuple[str, ...], tuple[bool, ...]]  # names, and which of them have content


@dataclass(frozen=True)
class RowFormat:
    """The names of the fields of a passage in each row; no title or source if the name is empty.

    A row is a JSON object, or tab-separated cells with the names `columns`.
    """

    text: str = "page_content"
    title: str = "metadata.title"
    source: str = "metadata.source"
    columns: tuple[str, ...] = ()

    def parse(self, line: bytes) -> dict[str, Any]:
        """Return the fields of one line. Raises ValueError with the reason if it is no row."""
        if not self.columns:
            return parse_object(line)
        cells = split_cells(line)
        if len(cells) != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} cells between tabs, got {len(cells)}")
        return dict(zip(self.columns, cells, strict=True))

    def read(self, row: Fields) -> Passage:
        """Return the passage of a row."""
        metadata = row if self.columns else row.object("metadata", optional=True)
        source, title = ("", "")
        if self.source.startswith(METADATA):
            source = metadata.text(self.source.removeprefix(METADATA), optional=True)
        elif self.source:
            source = row.identifier(self.source)
        text = row.text(self.text)
        if self.title:
            parent = metadata if self.title.startswith(METADATA) else row
            title = parent.text(self.title.removeprefix(METADATA), optional=True)
        return Passage(text, title, (source,) if source else ())


def split_cells(line: bytes) -> list[str]:
    """Return the tab-separated cells of a line, without their quotes. Raises ValueError with the reason."""
    try:
        text = line.decode().rstrip("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line") from error
    try:
        cells = next(csv.reader([text], delimiter="\t", strict=True)) if '"' in text else text.split("\t")
    except csv.Error as error:
        raise ValueError(f"not a line of quoted cells: {error}") from error
    return cells


class BadRow(NamedTuple):
    """A row with problems: its line in the block, the good rows before it, its place, and its problems."""

    line: int
    good_before: int
    start: int
    length: int
    problems: tuple[str, ...]
    is_foreign: bool = False
    is_broken: bool = False  # no row at all


@dataclass
class Block:
    """The rows of a block of lines. Starts and lines count from those of the block.

    `identities` and `sources` are those of all rows, joined. `unread` and `notes` have the first line and the number of
    rows. The blank lines after the last row are `num_blank`, the others are bad rows.
    """

    rows: NDArray[Any]
    identities: bytes
    sources: bytes
    num_lines: int
    num_good: int  # rows without problems, with those that are left out
    num_blank: int
    num_titles: int
    bad_rows: list[BadRow] = field(default_factory=list)
    unread: dict[Unread, tuple[int, int]] = field(default_factory=dict)
    notes: dict[str, tuple[int, int]] = field(default_factory=dict)


def scan_block(data: bytes, row_format: RowFormat) -> Block:
    """Return the rows of some whole lines."""
    return _Scan(row_format).block(data)


class _Scan:
    def __init__(self, row_format: RowFormat) -> None:
        self._format = row_format
        self._is_fast = row_format == RowFormat()
        self._rows: list[tuple[int, int, int]] = []
        self._digests: list[bytes] = []
        self._identities: list[bytes] = []
        self._sources: list[bytes] = []
        self._bad: list[BadRow] = []
        self._unread: dict[Unread, tuple[int, int]] = {}
        self._notes: dict[str, tuple[int, int]] = {}
        self._num_good = self._num_titles = 0

    def block(self, data: bytes) -> Block:
        start = num_blank = 0
        lines = data.removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines):
            if not line or line.isspace():
                num_blank += 1
            else:
                for blank in range(number - num_blank, number):
                    self._bad.append(BadRow(blank, self._num_good, 0, 0, ("blank line",)))
                num_blank = 0
                self._scan_line(number, start, line)
            start += len(line) + 1
        rows = np.zeros(len(self._rows), ROW)
        if self._rows:
            places = np.array(self._rows, np.uint32)
            for i, name in enumerate(("start", "length", "checksum")):
                rows[name] = places[:, i]
            ids = np.frombuffer(b"".join(self._digests), ">u8").reshape(-1, 2)
            rows["id_high"], rows["id_low"] = ids[:, 0], ids[:, 1]
            rows["identity"], rows["source"] = [*map(len, self._identities)], [*map(len, self._sources)]
        return Block(
            rows,
            b"".join(self._identities),
            b"".join(self._sources),
            len(lines),
            self._num_good,
            num_blank,
            self._num_titles,
            self._bad,
            self._unread,
            self._notes,
        )

    def _scan_line(self, number: int, start: int, line: bytes) -> None:
        try:
            values = self._format.parse(line)
        except ValueError as problem:
            self._bad.append(BadRow(number, self._num_good, start, len(line), (str(problem),), is_broken=True))
            return
        quick = _quick_row(values) if self._is_fast else None
        if quick:
            text, title, source, unread = quick
            self._num_good += 1
        else:
            row = Fields(values)
            passage = self._format.read(row)
            if row.problems and row.is_blank(self._format.text) and len(row.problems) == 1:
                row.problems.clear()
                row.note(BLANK)
            unread = tuple(row.unread())
            for note in row.notes:
                _count(self._notes, note, number)
            if row.problems:
                is_foreign = row.num_missing > 1
                problems = tuple(row.problems)
                self._bad.append(BadRow(number, self._num_good, start, len(line), problems, is_foreign))
            else:
                self._num_good += 1
            if unread:
                _count(self._unread, unread, number)
            if row.problems or BLANK in row.notes:
                return
            text, title, source = passage.text, passage.title, "".join(passage.sources)
            unread = ()
        if unread:
            _count(self._unread, unread, number)
        digest = passage_digest(text)
        self._rows.append((start, len(line), zlib.crc32(line)))
        self._digests.append(digest)
        self._identities.append(f"{digest.hex()} {len(title)} {title}\n".encode())
        self._sources.append(source.encode())
        self._num_titles += title != ""


def _count(counts: dict[Any, tuple[int, int]], key: Any, line: int) -> None:
    first, rows = counts.get(key, (line, 0))
    counts[key] = (first, rows + 1)


def _quick_row(values: dict[str, Any]) -> tuple[str, str, str, Unread] | None:
    """Return text, title, source and unread fields of an ordinary row {page_content, metadata?}, None for others.

    The same as `Fields` with `read_passage`, in a fraction of the time.
    """
    text, metadata = values.get("page_content"), values.get("metadata")
    title: Any = ""
    source: Any = ""
    inner = None
    if type(text) is not str or not text or text.isspace():
        return None
    if type(metadata) is dict:
        title, source = metadata.get("title"), metadata.get("source")
        if title is None or (type(title) is str and title.isspace()):
            title = ""
        if source is None or (type(source) is str and source.isspace()):
            source = ""
        if type(title) is not str or type(source) is not str:
            return None
        inner = (tuple(metadata), tuple(map(bool, metadata.values())))
    elif metadata is not None:
        return None
    return text, title, source, _unread((tuple(values), tuple(map(bool, values.values()))), inner)


@lru_cache(maxsize=10_000)
def _unread(outer: _Shape, inner: _Shape | None) -> Unread:
    """Return the unread fields of a row whose fields have these names: it depends on names and emptiness alone."""
    values: dict[str, Any] = _values(outer)
    if "metadata" in values:
        values["metadata"] = None if inner is None else _values(inner)
    row = Fields(values)
    RowFormat().read(row)
    return tuple(row.unread())


def _values(shape: _Shape) -> dict[str, Any]:
    return {name: "x" if has_content else None for name, has_content in zip(*shape, strict=True)}
