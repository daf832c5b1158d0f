"""The files of a corpus: JSON Lines, tab-separated values, Parquet, a pickle of LocalRQA, or a folder of these."""

import io
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rqa.data.corpus_table import Part
from rqa.data.data_file import DataFile, check_file, open_packed, spooled, unpacked
from rqa.data.fields import listed, quoted
from rqa.data.foreign_files import SNIFFED_BYTES, check_binary
from rqa.data.jsonl import BOM
from rqa.data.localrqa import read_documents
from rqa.data.passage_rows import METADATA, RowFormat, split_cells
from rqa.errors import InputError
from rqa.terminal import Progress

log = logging.getLogger(__name__)

ENDINGS = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz", ".parquet", ".pkl")
_PACKED = (".gz", ".parquet", ".pkl")
_TEXT_NAMES = ("page_content", "text")  # of columns, the first that a file has
_SOURCE_NAMES = ("source", "id")
_PARQUET_ROWS = 1000  # converted at once


def open_files(path: str | Path) -> list[DataFile]:
    """Return the opened files of a corpus, those of a folder in the order of their names.

    Raises InputError if there is no such file, or none of these formats.
    """
    folder = Path(path)
    if not folder.is_dir() or folder.name.endswith(ENDINGS):
        check_file(path, ENDINGS)
        return [open_packed(path)]
    names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    shards = [folder / name for name in names if name.endswith(ENDINGS)]
    if not shards:
        raise InputError(f"{path}: expected a folder with files in {', '.join(ENDINGS)}, got {listed(names)}.")
    if others := [name for name in names if not name.endswith(ENDINGS)]:
        log.info("%s: files that are not read: %s", path, listed(others))
    for shard in shards:
        check_file(shard, ENDINGS)
    return [*map(open_packed, shards)]


def is_packed(file: DataFile) -> bool:
    """Return True if the rows of a file are read from a converted text."""
    return str(file.path).endswith(_PACKED)


def open_part(file: DataFile, target: Path | None, text_field: str | None, title_field: str | None) -> Part:
    """Return a file with the format of its rows. A packed one is converted into `target`, or a temporary file."""
    path, name = file.path, Path(file.path).name
    if name.endswith(".pkl"):
        if text_field or title_field:
            raise InputError(f"{path}: --text_field and --title_field: a pickle of LocalRQA has fields of fixed names.")
        text = spooled(path, len(file), map(_document_row, read_documents(Path(path), file)), target)
        return Part(path, text, RowFormat())
    if name.endswith(".parquet"):
        return _parquet_part(file, target, text_field, title_field)
    text = unpacked(file, target) if name.endswith(".gz") else file
    if name.endswith((".tsv", ".tsv.gz")):
        return Part(path, text, _tsv_format(path, text, text_field, title_field), num_header_lines=1)
    default = RowFormat()
    return Part(path, text, RowFormat(text_field or default.text, title_field or default.title))


def _document_row(document: dict[str, Any]) -> bytes:
    """Return the row of a document as JSON, with the metadata that passages have."""
    metadata = {name: _plain(document["metadata"].get(name)) for name in ("source", "title")}
    return json.dumps({"page_content": document["page_content"], "metadata": metadata}).encode() + b"\n"


def _plain(value: object) -> object:
    """Return a text or number unchanged, and an empty list or object for the others, which are problems."""
    return value if isinstance(value, str | int | float | None) else [] if isinstance(value, list) else {}


def _tsv_format(path: str | Path, text: DataFile, text_field: str | None, title_field: str | None) -> RowFormat:
    start = text[:SNIFFED_BYTES]
    if not start:
        raise InputError(f"{path}: expected at least one row, got an empty file.")
    check_binary(path, start)
    header = start.removeprefix(BOM).partition(b"\n")[0]
    try:
        columns = split_cells(header)
    except ValueError as problem:
        raise InputError(f"{path}:1: expected a header of column names, got {problem}.") from problem
    if len({*columns}) < len(columns):
        raise InputError(f"{path}:1: expected a header of different column names, got {listed(columns)}.")
    names = _column_names(path, columns, text_field, title_field)
    return RowFormat(*names, columns=tuple(columns))


def _column_names(
    path: str | Path, columns: Sequence[str], text_field: str | None, title_field: str | None
) -> tuple[str, str, str]:
    """Return the columns of text, title and source; the last two may be absent: ""."""
    nested = METADATA if "metadata" in columns else ""
    text = text_field or next((name for name in _TEXT_NAMES if name in columns), _TEXT_NAMES[-1])
    title = title_field or ("title" if "title" in columns else nested and f"{METADATA}title")
    source = next((name for name in _SOURCE_NAMES if name in columns), nested and f"{METADATA}source")
    for flag, name in (("--text_field", text), ("--title_field", title)):
        if name and name.split(".")[0] not in columns and name not in columns:
            raise InputError(f"{path}: expected a column {quoted(name)}, got {listed(columns)}. Set {flag}.")
    return text, title, source


def _parquet_part(file: DataFile, target: Path | None, text_field: str | None, title_field: str | None) -> Part:
    path = file.path
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f'{path}: the package pyarrow is not installed. Run `pip install ".[parquet]"`') from error
    try:
        parquet = ParquetFile(io.BufferedReader(_SeekableFile(file), SNIFFED_BYTES))
        columns = parquet.schema_arrow.names
        names = _column_names(path, columns, text_field, title_field)
        used = list(dict.fromkeys(name if name in columns else name.split(".")[0] for name in names if name))
        text = spooled(path, len(file), _parquet_rows(path, parquet, used), target)
    except ArrowException as error:
        raise InputError(f"{path}: expected a Parquet file, got one that cannot be read: {error}") from error
    return Part(path, text, RowFormat(*names))


def _parquet_rows(path: str | Path, parquet: Any, columns: list[str]) -> Iterator[bytes]:
    with Progress(f"converting {path}", parquet.metadata.num_rows, unit="rows") as progress:
        for batch in parquet.iter_batches(_PARQUET_ROWS, columns=columns):
            yield b"".join(json.dumps(row, default=lambda _: []).encode() + b"\n" for row in batch.to_pylist())
            progress.advance(len(batch))


class _SeekableFile(io.RawIOBase):
    """A data file as the stream that a reader of Parquet needs."""

    def __init__(self, data: DataFile) -> None:
        self._data, self._position = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        block = self._data[self._position : self._position + len(buffer)]
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)
