"""The lock of an index folder: two runs never build the same index."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rqa.errors import InputError

log = logging.getLogger(__name__)

OTHER_PATH = "Choose another --full_dataset_index_path."


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it is missing. The lock ends with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder for the index, got {error.strerror}. {OTHER_PATH}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for another process that builds the index", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            log.warning("%s: no lock (%s). Build the index with one process at a time.", folder, error)
        yield
    finally:
        os.close(descriptor)
