"""The responses of a judge on the disk: each is there as it came before it counts, and is never paid for twice."""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rqa.data.jsonl import read_rows
from rqa.errors import InputError
from rqa.judge.prompt import PROMPT_VERSION

log = logging.getLogger(__name__)


def request_key(request: str) -> str:
    """Return what the response to a request is stored under: a SHA-256 that the address has no part in."""
    return hashlib.sha256(f"{PROMPT_VERSION} {request}".encode()).hexdigest()


class Store:
    """Responses by key, in a JSON Lines file that only grows; see `open_store`."""

    def __init__(self, path: Path, file: int, responses: dict[str, str]) -> None:
        self.path, self._file, self.responses = path, file, responses

    def append(self, key: str, response: str) -> None:
        """Write a response; it is on the disk when this returns. Raises OSError, and leaves the file as it was."""
        row = {"key": key, "response": response, "checksum": _checksum(key, response)}
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):
            os.ftruncate(self._file, size)  # other answers may be written before the run has stopped
            raise OSError(f"{self.path}: the disk is full")
        os.fsync(self._file)
        self.responses[key] = response


@contextmanager
def open_store(path: Path) -> Iterator[Store]:
    """Open a store, or begin one, to add to. A last line that a killed run did not finish is cut off.

    Raises InputError where another process has it open, DataError with the lines that are damaged otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another run is judging into this file; wait for its end") from None
        responses, whole = read_store(path)
        if os.fstat(file).st_size > whole:
            log.warning("%s: the last line is not whole, and is cut off: a run was killed", path)
            os.ftruncate(file, whole)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the file's name
        os.close(folder)
        yield Store(path, file, responses)
    finally:
        os.close(file)


def read_store(path: Path) -> tuple[dict[str, str], int]:
    """Return the responses of a store by key, and how many of its bytes are whole lines. Raises DataError."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    responses = {}
    for _, _, row in read_rows(path, data[:whole]) if whole else ():
        key, response, checksum = row.text("key"), row.text("response"), row.text("checksum")
        if checksum and checksum != _checksum(key, response):
            row.problem("checksum", "this line is not what was written; delete it, and it is asked again")
        responses[key] = response
    return responses, whole


def _checksum(key: str, response: str) -> str:
    return hashlib.sha256(f"{key} {response}".encode()).hexdigest()[:16]
