"""Terminal output: results on the standard output, progress of long work, and text without control characters."""

import atexit
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO, TypeVar

from tqdm import tqdm

from rqa.atomic_files import json_text
from rqa.errors import InputError

T = TypeVar("T")
log = logging.getLogger(__name__)

BAR_DELAY = 1.0  # seconds before a bar appears: shorter work shows none
LOG_INTERVAL = 30.0  # seconds between two lines of progress in a log file
CLOSED_PIPE_STATUS = 141  # the status of shells for SIGPIPE

# Control characters but tab and line feed: a terminal would obey them. Unicode has pictures of the first 32 and DEL.
_PICTURES: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"},
    ord("\r"): None,  # of a line's end
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}


def printable(text: str) -> str:
    """Return `text` with every control character replaced: passages and answers come from unknown authors."""
    return text.translate(_PICTURES)


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# Results on the standard output, all else on the standard error


_results: TextIO | None = None  # the standard output, inside `results_on_stdout`


def write_result(value: object = "", end: str = "\n") -> None:
    """Write a part of a result, as text, to the standard output, without control characters.

    If its reader has ended, as in `| head`, the process ends too. Raises InputError if the disk is full.
    """
    stream = _results or sys.stdout
    try:
        stream.write(printable(str(value)) + end)
        stream.flush()
    except BrokenPipeError:
        sys.exit(CLOSED_PIPE_STATUS)
    except OSError as error:
        raise InputError(f"standard output: cannot be written: {error.strerror}") from error


def write_json_result(value: Any) -> None:
    """Write a JSON value as one line to the standard output, with every control character escaped."""
    write_result(json_text(value))


def stdout_as_file() -> Path:
    """Return a path of the standard output, for a file; later results go to the standard error."""
    global _results
    path = Path("/dev/stdout") if _results is None else Path(f"/dev/fd/{_results.fileno()}")
    _results = sys.stderr
    return path


@contextmanager
def results_on_stdout() -> Iterator[None]:
    """Reserve the standard output for `write_result`.

    All other output, of libraries, C code and child processes, goes to the standard error. Log records of all
    libraries, and tracebacks, lose their control characters.
    """
    global _results
    _open_closed_streams()
    logging.setLogRecordFactory(_PrintableRecord)
    sys.excepthook = _print_exception
    stdout, previous = sys.stdout, _results
    is_process = stdout is sys.__stdout__  # False for a stream of Python alone, as in a notebook
    stdout.flush()
    output: TextIO
    if is_process:
        output = os.fdopen(os.dup(1), "w", encoding=stdout.encoding, errors="backslashreplace")
        os.dup2(2, 1)
    else:
        output, sys.stdout = stdout, sys.stderr
    _results = output
    try:
        yield
    finally:
        if is_process:
            stdout.flush()
            os.dup2(output.fileno(), 1)
            with suppress(OSError):  # of a closed pipe, at which the process ends
                output.close()
            atexit.register(os.dup2, 2, 1)  # before the functions that libraries have registered, which print too
        sys.stdout, _results = stdout, previous


def _open_closed_streams() -> None:
    """Open the null device as each standard stream that is closed; otherwise some file would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115  # it gets the lowest number that is free
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


class _PrintableRecord(logging.LogRecord):
    """A log record of any library without control characters."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


def _print_exception(*exception: Any) -> None:
    sys.stderr.write(printable("".join(traceback.format_exception(*exception))))


class Progress:
    """Shows the progress of work inside a `with` block; call `advance` after each part.

    On a terminal it is a bar, which appears after one second. Otherwise it is a log line every 30 seconds of all work
    with progress, also while one part takes longer. Only the first process (RANK 0) shows it. `total` is the number of
    parts, None if unknown.
    """

    last_line = time.monotonic()  # of any progress: short pieces of work share the interval

    def __init__(self, description: str, total: int | None = None, *, unit: str = "") -> None:
        self.description, self.total, self.unit, self.done = printable(description), total, unit, 0
        self._ended = threading.Event()
        is_terminal, is_main = sys.stderr.isatty(), os.environ.get("RANK", "0") == "0"
        style: dict[str, Any] = {"unit": f" {unit}" if unit else "it", "leave": False, "dynamic_ncols": True}
        self._bar = tqdm(
            desc=self.description, total=total, delay=BAR_DELAY, disable=not (is_terminal and is_main), **style
        )
        self._thread = threading.Thread(target=self._watch, daemon=True) if is_main else None

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
        self._bar.close()

    def advance(self, parts: int = 1) -> None:
        """Count `parts` more as done."""
        self.done += parts
        self._bar.update(parts)

    def describe(self, description: str) -> None:
        """Replace the description."""
        self.description = printable(description)
        self._bar.set_description(self.description, refresh=False)

    def _watch(self) -> None:
        while not self._ended.wait(min(BAR_DELAY, LOG_INTERVAL)):
            now = time.monotonic()
            if not self._bar.disable:
                self._bar.refresh()  # the clock of the bar moves while one part takes long
            elif now - Progress.last_line >= LOG_INTERVAL:
                Progress.last_line = now
                log.info("%s", self._line(now - self._start))

    def _line(self, seconds: float) -> str:
        count = f"{self.done:,}{f' of {self.total:,}' if self.total else ''} {self.unit}".rstrip()
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        left = seconds * (self.total - self.done) / self.done if self.total and self.done else 0
        line = f"{self.description}: {f'{count}{share}, ' if self.done or share else ''}{seconds:.0f} s so far"
        return f"{line}, about {left:.0f} s left" if left else line


def track(parts: Iterable[T], description: str, total: int | None = None, *, unit: str = "") -> Iterator[T]:
    """Yield `parts` one by one and show the progress; see `Progress`."""
    size = len(parts) if isinstance(parts, Sized) else None
    with Progress(description, size if total is None else total, unit=unit) as progress:
        for part in parts:
            yield part
            progress.advance()
