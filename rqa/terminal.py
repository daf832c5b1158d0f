"""Terminal output: progress of long work, and text without control characters."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

log = logging.getLogger(__name__)

BAR_DELAY = 1.0  # seconds before a bar appears: shorter work shows none
LOG_INTERVAL = 30.0  # seconds between two lines of progress in a log file

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


class Progress:
    """Shows the progress of work inside a `with` block; call `advance` after each part.

    On a terminal it is a bar, which appears after one second. Otherwise it is a log line every 30 seconds, also while
    one part takes longer. Only the first process (RANK 0) shows it. `total` is the number of parts, None if unknown.
    """

    def __init__(self, description: str, total: int | None = None, *, unit: str = "") -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self._ended = threading.Event()
        is_terminal = sys.stderr.isatty()
        is_main = os.environ.get("RANK", "0") == "0"
        self._bar = tqdm(
            desc=description,
            total=total,
            unit=f" {unit}" if unit else "it",
            leave=False,
            delay=BAR_DELAY,
            dynamic_ncols=True,
            disable=not (is_terminal and is_main),
        )
        self._interval = BAR_DELAY if is_terminal else LOG_INTERVAL
        self._thread = threading.Thread(target=self._watch, daemon=True) if is_main else None

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        if self._thread:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
        self._bar.close()

    def advance(self, parts: int = 1) -> None:
        """Count `parts` more as done."""
        self.done += parts
        self._bar.update(parts)

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            if self._bar.disable:
                log.info("%s", self._line(time.monotonic() - self._start))
            elif time.monotonic() - self._start > BAR_DELAY:
                self._bar.refresh()  # the clock of the bar moves while one part takes long

    def _line(self, seconds: float) -> str:
        if not self.total:
            count = f"{self.done:,} {self.unit}, ".replace(" ,", ",") if self.done else ""
            return f"{self.description}: {count}{_duration(seconds)} so far"
        line = f"{self.description}: {self.done:,} of {self.total:,} {self.unit}".rstrip()
        line += f" ({self.done / self.total:.0%}), {_duration(seconds)} so far"
        if 0 < self.done < self.total:
            line += f", about {_duration(seconds * (self.total - self.done) / self.done)} left"
        return line


def track(parts: Iterable[T], description: str, total: int | None = None, *, unit: str = "") -> Iterator[T]:
    """Yield `parts` one by one and show the progress; see `Progress`."""
    if total is None and hasattr(parts, "__len__"):
        total = len(parts)
    with Progress(description, total, unit=unit) as progress:
        for part in parts:
            yield part
            progress.advance()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
