"""The arrays of a corpus: places, checksums and ids of its passages, from a scan of its files or from a cache."""

import hashlib
import json
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rqa.data.data_file import DataFile, no_space
from rqa.data.file_report import FileReport
from rqa.data.foreign_files import SNIFFED_BYTES, check_json_lines
from rqa.data.jsonl import BOM, line_blocks
from rqa.data.passage_rows import ROW, Block, RowFormat
from rqa.data.scan_workers import default_workers, scan_blocks
from rqa.errors import InputError
from rqa.terminal import Progress

_ROWS_AT_ONCE = 2**16


class Part(NamedTuple):
    """One file of a corpus: its name in messages, its text, and the format of its rows after a number of lines."""

    path: str | Path
    data: DataFile
    row_format: RowFormat
    num_header_lines: int = 0


@dataclass(frozen=True)
class Table:
    """Arrays with an item for each distinct passage, in the order of their first rows, but for the last six.

    A start counts from the start of the first part. `id_high`, `id_low` and `id_rows` are sorted by id. The passages
    `later_rows` have duplicates with other sources: lists in JSON, that of item i from `later_starts[i]` to the next.
    """

    starts: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    checksums: NDArray[np.uint32]
    id_high: NDArray[np.uint64]
    id_low: NDArray[np.uint64]
    id_rows: NDArray[np.uint32]
    later_rows: NDArray[np.uint32]
    later_starts: NDArray[np.uint64]
    later_sources: NDArray[np.uint8]

    def save(self, folder: Path) -> None:
        """Write each array into a folder. Raises OSError."""
        for path, array in zip(self.paths(folder), self._arrays(), strict=True):
            np.save(path, array)

    @classmethod
    def load(cls, folder: Path) -> "Table":
        """Return arrays that are mapped: all processes share their memory. Raises OSError and ValueError."""
        return cls(*(np.load(path, mmap_mode="r", allow_pickle=False) for path in cls.paths(folder)))

    @classmethod
    def paths(cls, folder: Path) -> list[Path]:
        """Return the files of the arrays."""
        return [folder / f"{each.name}.npy" for each in fields(cls)]

    def _arrays(self) -> list[NDArray[Any]]:
        return [getattr(self, each.name) for each in fields(self)]

    def row_of(self, digest: bytes) -> int | None:
        """Return the row of the passage with an id, None if there is none."""
        high, low = int.from_bytes(digest[:8]), int.from_bytes(digest[8:])
        highs, lows = self.id_high.data, self.id_low.data  # of Python's numbers, faster than arrays
        for position in range(bisect_left(highs, high), len(highs)):
            if highs[position] != high:
                break
            if lows[position] == low:
                return int(self.id_rows[position])
        return None

    def later_sources_of(self, row: int) -> list[str]:
        """Return the sources of the duplicates of a passage."""
        position = int(np.searchsorted(self.later_rows, row))
        if position == len(self.later_rows) or self.later_rows[position] != row:
            return []
        start, end = self.later_starts[position : position + 2].tolist()
        sources: list[str] = json.loads(self.later_sources[start:end].tobytes())
        return sources


@dataclass(frozen=True)
class Summary:
    """Facts about a whole corpus."""

    duplicates: int
    fingerprint: str
    num_titles: int


def scan_parts(
    parts: Sequence[Part], report: FileReport, *, folder: Path | None = None, num_workers: int | None = None
) -> tuple[Table, Summary]:
    """Return the table of the good rows of all parts, and add all others to `report`.

    Rows are kept in temporary files in `folder`. Raises InputError for a part without rows, or of another format.
    """
    size = sum(len(part.data) for part in parts)
    workers = default_workers(size) if num_workers is None else num_workers
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(3)]
            num_titles = _scan(parts, report, workers, size, files)
            for file in files:
                file.flush()
        except OSError as error:
            raise no_space(parts[0].path, folder, error) from error
        rows, identities, sources = (_mapped(file, dtype) for file, dtype in zip(files, (ROW, "u1", "u1"), strict=True))
        return _merged(rows, identities, sources, num_titles)


def _mapped(file: IO[bytes], dtype: Any) -> NDArray[Any]:
    """Return the content of a file as an array; an empty file cannot be mapped."""
    size = file.seek(0, 2)
    return np.memmap(file, dtype, "r") if size else np.empty(0, dtype)


def _scan(parts: Sequence[Part], report: FileReport, num_workers: int, size: int, files: Sequence[IO[bytes]]) -> int:
    """Write rows, identities and sources of all parts to three files, and return the number of titles."""
    num_titles, base, part_reports = 0, 0, [_PartReport(part, report) for part in parts]
    bases = np.cumsum([0, *(len(part.data) for part in parts)]).tolist()
    name = parts[0].path if len(parts) == 1 else Path(parts[0].path).parent
    with (
        Progress(f"reading {name}", size, unit="bytes") as progress,
        closing(scan_blocks(_blocks(parts), num_workers)) as blocks,
    ):
        for (number, start, length), block in blocks:
            base = bases[number] + start
            part_reports[number].add(start, block)
            rows = block.rows
            rows["start"] += np.uint64(base)
            for file, content in zip(files, (rows.tobytes(), block.identities, block.sources), strict=True):
                file.write(content)
            num_titles += block.num_titles
            progress.advance(base + length - progress.done)
    for each in part_reports:
        each.check()
    return num_titles


def _blocks(parts: Sequence[Part]) -> Iterator[tuple[tuple[int, int, int], bytes, RowFormat]]:
    """Yield ((number of the part, start in it, length), bytes, format) of each block, without BOM and header."""
    for number, part in enumerate(parts):
        for start, data in line_blocks(part.path, part.data):
            block = data
            if start == 0:
                block = block.removeprefix(BOM)
                for _ in range(part.num_header_lines):
                    block = block[block.find(b"\n") + 1 or len(block) :]
            if block:
                skipped = len(data) - len(block)
                yield (number, start + skipped, len(block)), block, part.row_format


class _PartReport:
    """Adds the blocks of one part to a report, with the lines of its file."""

    def __init__(self, part: Part, report: FileReport) -> None:
        self._part, self._report = part, report
        self._line = 1 + part.num_header_lines  # of the next block
        self._num_blank = 0  # lines before it; those at the end of the file are allowed
        self._has_rows = False

    def add(self, start: int, block: Block) -> None:
        """Add a block that starts at `start`."""
        report, num_good = self._report, 0
        if block.num_blank < block.num_lines:
            for line in range(self._line - self._num_blank, self._line):
                report.add_bad_row(self._place(line), "blank line")
            self._num_blank = 0
        for row in block.bad_rows:
            report.num_rows += row.good_before - num_good
            num_good = row.good_before
            if row.is_broken and not self._has_rows and not num_good and not self._part.row_format.columns:
                self._check_format(start + row.start, row.length)
            self._has_rows |= row.problems != ("blank line",)
            report.add_bad_row(self._place(self._line + row.line), *row.problems, is_foreign=row.is_foreign)
        report.num_rows += block.num_good - num_good
        for unread, (line, rows) in block.unread.items():
            report.add_unread(self._place(self._line + line), {*unread}, rows)
        for note, (line, rows) in block.notes.items():
            report.add_note(self._place(self._line + line), note, rows)
        self._has_rows |= block.num_good > 0
        self._num_blank += block.num_blank
        self._line += block.num_lines

    def check(self) -> None:
        """Raise InputError if there is no row."""
        if not self._has_rows:
            raise InputError(f"{self._part.path}: expected at least one row, got an empty file.")

    def _place(self, line: int) -> str:
        return f"{self._part.path}:{line}"

    def _check_format(self, start: int, length: int) -> None:
        data = self._part.data
        check_json_lines(self._part.path, data[start : start + length], data[start : start + SNIFFED_BYTES])


def _merged(
    rows: NDArray[Any], identities: NDArray[np.uint8], sources: NDArray[np.uint8], num_titles: int
) -> tuple[Table, Summary]:
    """Return the table of the distinct rows."""
    order = np.lexsort((rows["id_low"], rows["id_high"]))  # equal ids in the order of the file
    high, low = (rows[name][order].astype(np.uint64) for name in ("id_high", "id_low"))
    is_new = np.ones(len(rows), bool)  # in the order of ids
    is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first_rows = order[is_new]
    first_of = np.empty(len(rows), np.int64)
    first_of[order] = first_rows[np.cumsum(is_new) - 1]
    is_first = first_of == np.arange(len(rows))
    numbers = np.cumsum(is_first) - 1
    later = _later_sources(rows["source"], sources, np.flatnonzero(~is_first), numbers[first_of])
    lists = [json.dumps(list(each)).encode() for each in later.values()]
    table = Table(
        starts=rows["start"][is_first],
        lengths=rows["length"][is_first],
        checksums=rows["checksum"][is_first],
        id_high=high[is_new],
        id_low=low[is_new],
        id_rows=numbers[first_rows].astype(np.uint32),
        later_rows=np.array([*later], np.uint32),
        later_starts=np.cumsum([0, *map(len, lists)]).astype(np.uint64),
        later_sources=np.frombuffer(b"".join(lists), np.uint8),
    )
    fingerprint = _fingerprint(rows["identity"], identities, is_first)
    return table, Summary(int(len(rows) - is_first.sum()), fingerprint, num_titles)


def _later_sources(
    lengths: NDArray[np.uint32], sources: NDArray[np.uint8], duplicates: NDArray[np.int64], numbers: NDArray[np.int64]
) -> dict[int, dict[str, None]]:
    """Return the sources of the duplicates of each passage, in its order and theirs; a dict keeps order."""
    ends = np.cumsum(lengths, dtype=np.int64)
    later: dict[int, dict[str, None]] = {}
    for row in duplicates[lengths[duplicates] > 0].tolist():
        source = sources[ends[row] - lengths[row] : ends[row]].tobytes().decode()
        later.setdefault(int(numbers[row]), {})[source] = None
    return dict(sorted(later.items()))


def _fingerprint(lengths: NDArray[np.uint32], identities: NDArray[np.uint8], is_first: NDArray[np.bool_]) -> str:
    digest, start = hashlib.sha256(), 0
    for row in range(0, len(lengths), _ROWS_AT_ONCE):
        part = lengths[row : row + _ROWS_AT_ONCE].astype(np.int64)
        block = identities[start : start + int(part.sum())]
        digest.update(block[np.repeat(is_first[row : row + _ROWS_AT_ONCE], part)].tobytes())
        start += len(block)
    return digest.hexdigest()
