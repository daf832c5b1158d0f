"""Rows of a corpus: the names of their fields, and the scan of a block of lines, which any process can do."""

import csv
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rqa.data.fields import Fields
from rqa.data.jsonl import parse_object, scan_value
from rqa.data.records import Passage, passage_digest, passage_identity

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
    """A row with problems: its line in the block, the good rows before it, its problems, and its place in the block."""

    line: int
    good_before: int
    problems: tuple[str, ...]
    is_foreign: bool = False
    is_broken: bool = False  # no row at all
    start: int = 0
    length: int = 0


@dataclass
class Block:
    """The rows of a block of lines. Starts and lines count from those of the block.

    `identities` and `sources` are those of all rows, joined. `unread` and `notes` have the first line and the number of
    rows. The blank lines after the last row are `num_blank`, the others are bad rows.
    """

    num_lines: int
    rows: NDArray[Any] = field(default_factory=lambda: np.zeros(0, ROW))
    identities: bytes = b""
    sources: bytes = b""
    num_good: int = 0  # rows without problems, with those that are left out
    num_blank: int = 0
    num_titles: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    unread: dict[Unread, tuple[int, int]] = field(default_factory=dict)
    notes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def end_blank_lines(self, line: int) -> None:
        """Make the blank lines before a row bad rows."""
        blank = range(line - self.num_blank, line)
        self.bad_rows += [BadRow(each, self.num_good, ("blank line",)) for each in blank]
        self.num_blank = 0


_QuickRow = tuple[str, str, str, bytes, Unread]  # text, title, source, id, unread fields


def scan_block(data: bytes, row_format: RowFormat) -> Block:
    """Return the rows of some whole lines."""
    lines = data.removesuffix(b"\n").split(b"\n")
    block, numbers, passages = Block(len(lines)), [], []
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    starts = np.cumsum(lengths + 1) - lengths - 1
    spaced, is_fast = _double_spaces(data, starts), row_format == RowFormat()
    for number, line in enumerate(lines):
        passage = _quick_row(line, number in spaced) if is_fast else None
        if passage is None:
            if not line or line.isspace():
                block.num_blank += 1
                continue
            block.end_blank_lines(number)
            passage = _any_row(line, number, row_format, block)
            if passage is None:
                continue
        elif block.num_blank:
            block.end_blank_lines(number)
        block.num_good += 1
        if unread := passage[-1]:
            _count(block.unread, unread, number)
        numbers.append(number)
        passages.append(passage)
    for i, bad in enumerate(block.bad_rows):
        block.bad_rows[i] = bad._replace(start=int(starts[bad.line]), length=int(lengths[bad.line]))
    if passages:
        _add_passages(block, passages)
        block.rows["start"], block.rows["length"] = starts[numbers], lengths[numbers]
        block.rows["checksum"] = [zlib.crc32(lines[number]) for number in numbers]
    return block


def _add_passages(block: Block, passages: list[_QuickRow]) -> None:
    _, titles, sources, digests, _ = zip(*passages, strict=True)
    identities = [passage_identity(digest.hex(), title) for title, digest in zip(titles, digests, strict=True)]
    encoded = [source.encode() for source in sources]
    block.identities, block.sources = b"".join(identities), b"".join(encoded)
    block.num_titles = len(titles) - titles.count("")
    block.rows = np.zeros(len(passages), ROW)
    ids = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
    block.rows["id_high"], block.rows["id_low"] = ids[:, 0], ids[:, 1]
    block.rows["identity"], block.rows["source"] = [*map(len, identities)], [*map(len, encoded)]


def _any_row(line: bytes, number: int, row_format: RowFormat, block: Block) -> _QuickRow | None:
    """Return the passage of a row, None if it has none; add its problems, notes and unread fields to the block."""
    try:
        row = Fields(row_format.parse(line))
    except ValueError as problem:
        block.bad_rows.append(BadRow(number, block.num_good, (str(problem),), is_broken=True))
        return None
    passage = row_format.read(row)
    if row.problems and row.is_blank(row_format.text) and len(row.problems) == 1:
        row.problems.clear()
        row.note(BLANK)
    unread = tuple(row.unread())
    for note in row.notes:
        _count(block.notes, note, number)
    if not (row.problems or row.notes):
        return passage.text, passage.title, "".join(passage.sources), passage_digest(passage.text), unread
    if unread:
        _count(block.unread, unread, number)
    if row.problems:
        is_foreign = row.num_missing > 1
        block.bad_rows.append(BadRow(number, block.num_good, tuple(row.problems), is_foreign=is_foreign))
    else:
        block.num_good += 1
    return None


def _count(counts: dict[Any, tuple[int, int]], key: Any, line: int) -> None:
    first, rows = counts.get(key, (line, 0))
    counts[key] = (first, rows + 1)


def _double_spaces(data: bytes, starts: NDArray[np.int64]) -> set[int]:
    """Return the lines with two spaces in succession; for all lines at once this takes a tenth of the time."""
    is_space = np.frombuffer(data, np.uint8) == ord(" ")
    places = np.flatnonzero(is_space[1:] & is_space[:-1])
    return {*(np.searchsorted(starts, places, "right") - 1).tolist()}


def _quick_row(line: bytes, has_double_space: bool) -> _QuickRow | None:
    """Return the passage of an ordinary row {page_content, metadata?}, None for a row that `_any_row` must read.

    The result is the same, in a third of the time: a corpus has millions of rows.
    """
    try:
        json_text = line.decode()
        values, end = scan_value(json_text, 0)
    except (ValueError, StopIteration, RecursionError):
        return None
    if type(values) is not dict or (end < len(json_text) and json_text[end:] != "\r"):
        return None
    has_escapes = "\\" in json_text
    if has_escapes and ("\\ud" in json_text or "\\uD" in json_text):  # may be half of a surrogate pair
        return None
    text, metadata = values.get("page_content"), values.get("metadata")
    title: Any = ""
    source: Any = ""
    is_ordinary = len(values) == 1
    if type(metadata) is dict:
        title, source = metadata.get("title"), metadata.get("source")
        if title is None or (type(title) is str and title.isspace()):
            title = ""
        if source is None or (type(source) is str and source.isspace()):
            source = ""
        is_ordinary = len(values) == 2 and len(metadata) == ("title" in metadata) + ("source" in metadata)
    elif metadata is not None:
        return None
    if type(text) is not str or type(title) is not str or type(source) is not str or not text or text.isspace():
        return None
    # Without escapes JSON has no white space in a text but spaces and some characters beyond ASCII.
    is_spaced = has_escapes or has_double_space or not text.isascii() or text[0] == " " or text[-1] == " "
    digest = passage_digest(text) if is_spaced else sha256(text.encode()).digest()[:16]
    return text, title, source, digest, () if is_ordinary else _unread(_shape(values), _shape(metadata))


def _shape(values: dict[str, Any] | None) -> _Shape | None:
    return None if values is None else (tuple(values), tuple(map(bool, values.values())))


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
