"""The lock of an output folder: one run at a time, until the last process of the run has ended.

Every process of a run holds a file of its own, OUTPUT_DIR/.lock-PID-RANDOM. The kernel locks it until the process ends,
also if the process is killed, and its content names the process. A rank that outlives its launcher keeps the folder.
Some network file systems have no locks, and another machine may be off: only the user can break such a lock.
"""

import atexit
import fcntl
import json
import logging
import os
import platform
import secrets
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from rqa.errors import InputError
from rqa.terminal import printable

log = logging.getLogger(__name__)

PREFIX = ".lock-"
OWN_NAME = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"  # process ids are equal in two containers
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SHOWN_CHARACTERS = 200  # of a command


@dataclass(frozen=True)
class Holder:
    """A process that holds a folder."""

    pid: int = 0
    host: str = "an unknown host"
    boot: str = ""  # differs between machines of equal names, and is equal in the containers of one machine
    started: str = "at an unknown time"
    command: str = ""

    def __str__(self) -> str:
        return printable(f"process {self.pid} on {self.host}, started {self.started}: {self.command}")


def lock_folder(folder: Path, *, break_lock: bool = False) -> None:
    """Lock a folder for the run of this process. Raises InputError if a process of another run holds it.

    The lock of a process that has ended on this machine is replaced. `break_lock` also replaces locks whose process
    cannot be seen from here, but never that of a process that lives on this machine.
    """
    with _one_at_a_time(folder):
        join_lock(folder)  # before the others are read: where `_one_at_a_time` has no effect, both of two runs fail
        others = [path for path in folder.glob(f"{PREFIX}*") if path.name != OWN_NAME]
        try:
            for path in others:
                _check_other(path, break_lock)
        except InputError:
            (folder / OWN_NAME).unlink()
            raise
        for path in others:
            path.unlink(missing_ok=True)


def join_lock(folder: Path) -> None:
    """Hold a folder until this process ends, beside the main process of its run."""
    path = folder / OWN_NAME
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # never closed: the end of the process unlocks it
    atexit.register(path.unlink, missing_ok=True)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(descriptor, json.dumps(asdict(_this_process())).encode())
    os.fsync(descriptor)


def _check_other(path: Path, break_lock: bool) -> None:
    """Raise InputError unless the process of a lock has ended, or `break_lock` is set and it is not on this machine."""
    is_locked, holder = _read(path)
    is_here = holder.boot == _boot()
    if is_here and is_locked is False:
        return
    expected = f"--output_dir {path.parent}: expected a folder that no other process uses, got {holder}."
    if is_here and is_locked:
        raise InputError(f"{expected} Wait until it has ended, or end it: kill {holder.pid}.")
    if not break_lock:
        raise InputError(f"{expected} If that process has ended, or its machine, add --break_lock true.")
    log.warning("--break_lock true: the folder was held by %s", holder)


def _read(path: Path) -> tuple[bool | None, Holder]:
    """Return whether a lock is held, None if that is unknown, and its process."""
    is_locked: bool | None = False
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                is_locked = True
            except OSError:
                is_locked = None
            return is_locked, Holder(**json.load(file))
    except FileNotFoundError:  # its process has just ended
        return False, Holder(boot=_boot())
    except (OSError, ValueError, TypeError):  # of another user, or the power failed before it was written
        return is_locked, Holder()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time read and change the locks of a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # network file systems lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _this_process() -> Holder:
    command = shlex.join([sys.executable, *sys.argv])
    shown = command if len(command) <= SHOWN_CHARACTERS else f"{command[:SHOWN_CHARACTERS]} …"
    started = datetime.now().astimezone().isoformat(" ", "seconds")
    return Holder(os.getpid(), platform.node(), _boot(), started, shown)


def _boot() -> str:
    """Return an identifier of this start of this machine; without one, its name."""
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else platform.node()
