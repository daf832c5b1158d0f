"""The bytes of data files: of regular files that do not change while they are used, with bounded memory."""

import gzip
import io
import os
import stat
import tempfile
import weakref
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from rqa.errors import InputError
from rqa.terminal import Progress

BLOCK_BYTES = 2**20  # read and written at once
MAX_EXPANSION = 200  # bytes of text for each byte of a packed file: corpora have up to 30, a bomb up to 1,000
_ALWAYS_ALLOWED = 2**26  # bytes of text, also of a tiny file of repeated rows


class DataFile:
    """An open file, whose bytes `file[start:end]` are read from the disk.

    Raises InputError if the file was changed after it was opened. A file that replaces it under its name is no change:
    the bytes are still those of the opened one.
    """

    def __init__(self, path: str | Path, file: IO[bytes]) -> None:
        self.path, self._descriptor = path, file.fileno()
        weakref.finalize(self, file.close)
        self._opened = self._state()

    def __len__(self) -> int:
        return self._opened[0]

    @property
    def modified(self) -> int:
        """The time of the last change at the opening, in nanoseconds."""
        return self._opened[1]

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(len(self))
        blocks = []
        try:
            while start < end and (block := os.pread(self._descriptor, min(end - start, 2**30), start)):
                blocks.append(block)
                start += len(block)
            state = self._state()  # after the bytes: a change of them is older than this
        except OSError as error:
            raise InputError(f"{self.path}: expected a file that can be read, got {_reason(error)}.") from error
        if start < end or state != self._opened:
            raise changed(self.path)
        return b"".join(blocks)

    def _state(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


Data = bytes | DataFile


def changed(path: str | Path) -> InputError:
    """Return the error for a file whose bytes are no longer those that were read at its opening."""
    return InputError(
        f"{path}: expected the file as it was opened, got one that was changed while it was read. Start again."
    )


def check_file(path: str | Path, endings: tuple[str, ...]) -> None:
    """Raise InputError unless `path` is a file that can be opened and its name ends in one of `endings`."""
    _open(path, f"a file ({', '.join(endings)})").close()
    if not str(path).endswith(endings):
        raise InputError(f"{path}: expected a file name that ends in {' or '.join(endings)}.")


def open_data(path: str | Path) -> DataFile:
    """Return the bytes of a file. If the name ends in .gz it is decompressed into a temporary file without a name.

    Raises InputError if the compressed data is damaged, or if it becomes more than MAX_EXPANSION times as large.
    """
    data = open_packed(path)
    return unpacked(data) if str(path).endswith(".gz") else data


def open_packed(path: str | Path, shown: str | Path | None = None) -> DataFile:
    """Return the bytes of a file as they are on the disk; messages show the path `shown`."""
    return DataFile(shown or path, _open(path, "a file"))


def unpacked(packed: DataFile, target: Path | None = None) -> DataFile:
    """Return the text of gzip data; see `spooled`."""
    return spooled(packed.path, len(packed), _decompressed(packed), target)


def read_all(data: Data) -> bytes:
    """Return all bytes. Raises InputError if they fill more than half of the memory."""
    if isinstance(data, DataFile) and len(data) > (memory := _memory_bytes()) // 2:
        raise InputError(
            f"{data.path}: expected at most half of the memory ({memory // 2:,} bytes), got {len(data):,} bytes. "
            "Use a .jsonl file: its rows are read one by one."
        )
    return data[:]


def spooled(path: str | Path, packed_size: int, blocks: Iterable[bytes], target: Path | None = None) -> DataFile:
    """Return the blocks of text that a packed file contains, as the file `target`, or as a temporary file on the disk.

    A temporary file has no name, and its space is free again when the process ends. Raises InputError if the disk is
    full, or if the text is more than MAX_EXPANSION times as large as the packed file.
    """
    limit, size = max(_ALWAYS_ALLOWED, MAX_EXPANSION * packed_size), 0
    try:
        file: IO[bytes] = target.open("w+b") if target else tempfile.TemporaryFile()  # noqa: SIM115  # DataFile closes it
        for block in blocks:
            if (size := size + len(block)) > limit:
                raise InputError(
                    f"{path}: expected text of at most {MAX_EXPANSION} times the {packed_size:,} bytes of the file, "
                    "got more. Check the file: it is not an ordinary corpus."
                )
            file.write(block)
        file.flush()
    except OSError as error:
        raise no_space(path, target and target.parent, error) from error
    return DataFile(path, file)


def no_space(path: str | Path, folder: Path | None, error: OSError) -> InputError:
    """Return the error for files in `folder`, or temporary files, that cannot be written."""
    problem = f"{path}: expected space for its text in {folder or tempfile.gettempdir()}, got {_reason(error)}."
    advice = "Free space there." if folder else "Set the environment variable TMPDIR to a folder with more space."
    return InputError(f"{problem} {advice}")


def _decompressed(packed: DataFile) -> Iterator[bytes]:
    try:
        with Progress(f"decompressing {packed.path}", len(packed), unit="bytes") as progress:
            source = io.BufferedReader(_Reader(packed, progress), BLOCK_BYTES)
            with gzip.GzipFile(fileobj=source) as text:
                while block := text.read(BLOCK_BYTES):
                    yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{packed.path}: expected gzip data, got damaged data ({error}). Compress it again."
        ) from error


class _Reader(io.RawIOBase):
    """The bytes of a file in their order, with progress."""

    def __init__(self, data: DataFile, progress: Progress) -> None:
        self._data, self._progress = data, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        block = self._data[self._progress.done : self._progress.done + len(buffer)]
        buffer[: len(block)] = block
        self._progress.advance(len(block))
        return len(block)


def _open(path: str | Path, expected: str) -> IO[bytes]:
    """Return an open regular file. Opening a pipe would wait for its writer, without O_NONBLOCK."""
    try:
        file = open(path, "rb", 0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected {expected}, got an error: {_reason(error)}.") from error
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise InputError(f"{path}: expected {expected}, got a {'named pipe' if stat.S_ISFIFO(mode) else 'device'}.")
    return file


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
