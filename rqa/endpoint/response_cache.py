"""Cache of the responses of an endpoint, an append-only file. A response is on the disk before it counts."""

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rqa.atomic_files import append_line, flush
from rqa.data.jsonl import read_rows
from rqa.errors import InputError

log = logging.getLogger(__name__)


def cache_key(body: str, version: int) -> str:
    """Return the cache key of a request body: a SHA-256 that does not depend on the endpoint.

    `version` is that of the prompts: after a change, all requests are made again.
    """
    return hashlib.sha256(f"{version} {body}".encode()).hexdigest()


class ResponseCache:
    """Responses by key, in a JSON Lines file that only grows; see `open_response_cache`."""

    def __init__(self, path: Path, file: int, responses: dict[str, str]) -> None:
        self.path, self._file, self.responses = path, file, responses

    def append(self, key: str, response: str) -> None:
        """Write a response; it is on the disk when this returns. If this raises OSError, the file is unchanged."""
        row = {"key": key, "response": response, "checksum": _checksum(key, response)}
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        try:
            append_line(self._file, line)
        except OSError as error:
            raise OSError(f"{self.path}: {error.strerror}") from error
        self.responses[key] = response


@contextmanager
def open_response_cache(path: Path) -> Iterator[ResponseCache]:
    """Yield the cache at `path`, new if the file is missing. An incomplete last line of a killed run is removed.

    Raises InputError if another process has the cache open, and DataError that lists all other damaged lines.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another run uses this cache. Wait until it ends.") from None
        responses, size = read_responses(path)
        if path.stat().st_size > size:
            log.warning("%s: the last line is incomplete and is removed: a run was killed", path)
            file.truncate(size)
        flush(path.parent)  # the name of a new file
        yield ResponseCache(path, file.fileno(), responses)


def read_responses(path: str | Path) -> tuple[dict[str, str], int]:
    """Return the responses of a cache by key, and the size in bytes of its complete lines. Raises DataError."""
    data = Path(path).read_bytes()
    size = data.rfind(b"\n") + 1
    responses = {}
    for *_, row in read_rows(path, data[:size], is_own=True) if size else ():
        key, response, checksum = row.text("key"), row.text("response"), row.text("checksum")
        if checksum and checksum != _checksum(key, response):
            row.problem("checksum", "the line was changed. Delete it: the request is made again.")
        responses[key] = response
    return responses, size


def _checksum(key: str, response: str) -> str:
    return hashlib.sha256(f"{key} {response}".encode()).hexdigest()[:16]
