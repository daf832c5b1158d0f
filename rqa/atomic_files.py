"""Atomic files: written under a temporary name, flushed to the disk, then renamed.

After a full disk, a kill or a power cut the path holds the old content or the new content, whole. `append_line` extends
a file in place: after a kill its last line may be incomplete.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from errno import ENOSPC
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from rqa.errors import InputError

log = logging.getLogger(__name__)

HASH_THREADS = 8  # SHA-256 takes 1.6 GB/s of one core; a disk array delivers several times that
LFS_POINTER = b"version https://git-lfs"  # the start of a file whose content Git LFS has not fetched
PIECE = 4 * 2**20  # bytes that a thread hashes at a time, so that a large file is hashed by all threads


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` when the block ends, and is deleted if the block raises.

    The folder of `path` is created if it is missing. Raises OSError.
    """
    if path.exists() and not path.is_file():  # a device or a pipe, such as /dev/stdout
        with path.open("wb") as file:
            yield file
        return
    path = path.resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")  # always the same: the next write replaces that of a killed one
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises OSError."""
    with atomic_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON atomically. Raises OSError, and ValueError if a number is not finite."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return strict JSON in which control characters, and the bytes of paths that are not UTF-8, are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub("[\x7f-\x9f\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `path` when the block ends, and is deleted if the block raises.

    Between the removal of an old folder and the rename neither is there; a folder that must never be missing needs a
    new name for each version. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir(parents=True)
    try:
        yield partial
        publish_folder(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish_folder(partial: Path, path: Path) -> None:
    """Flush every file and folder in `partial`, then rename it to `path`, replacing an older folder."""
    for entry in (*partial.rglob("*"), partial):
        flush(entry)
    if path.exists():
        shutil.rmtree(path)
    partial.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(descriptor: int, line: bytes) -> None:
    """Append a line to an open file, and wait for the disk. If this raises OSError, the file is as before."""
    size = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(ENOSPC, "the disk is full")
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(paths: Sequence[Path]) -> list[str]:
    """Return a checksum of each file: the SHA-256 of the SHA-256 of its pieces. Threads share the pieces."""
    from multiprocessing.pool import ThreadPool  # that of concurrent.futures starts no thread while Python ends

    starts = [range(0, path.stat().st_size, PIECE) for path in paths]
    pieces = [(path, start) for path, of_file in zip(paths, starts, strict=True) for start in of_file]
    with ThreadPool(HASH_THREADS) as pool:
        digests = pool.imap(_sha256_of_piece, pieces)
        return [hashlib.sha256(b"".join(islice(digests, len(of_file)))).hexdigest() for of_file in starts]


def _sha256_of_piece(piece: tuple[Path, int]) -> bytes:
    path, start = piece
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(PIECE)).digest()


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a checksum of its own content. Numbers may be infinite or NaN."""
    write_text(path, json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=1, ensure_ascii=False) + "\n")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest without its checksum. Raises OSError, and ValueError if it is no manifest or was changed."""
    manifest = json.loads(path.read_bytes())
    if not isinstance(manifest, dict) or "checksum" not in manifest:
        raise ValueError("expected a JSON object with a checksum")
    if manifest.pop("checksum") != _checksum(manifest):
        raise ValueError("the checksum does not match the content")
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@contextmanager
def folder_lock(folder: Path, content: str, advice: str = "") -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process: two runs never build the same `content`.

    The folder is created if it is missing. Raises InputError with the advice if that is impossible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder for {content}, got {error.strerror}. {advice}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for another process that builds %s", folder, content)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            log.warning("%s: no lock (%s). Build %s with one process at a time.", folder, error, content)
        yield
    finally:
        os.close(descriptor)
