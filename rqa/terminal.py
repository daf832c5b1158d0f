"""Terminal output: progress of long work, and text without control characters."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Self, TypeVar

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

    On a terminal it is a bar, which appears after one second. Otherwise it is a log line every 30 seconds of all work
    with progress, also while one part takes longer. Only the first process (RANK 0) shows it. `total` is the number of
    parts, None if unknown.
    """

    last_line = time.monotonic()  # of any progress: short pieces of work share the interval

    def __init__(self, description: str, total: int | None = None, *, unit: str = "") -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, 0
        self._ended = threading.Event()
        is_terminal, is_main = sys.stderr.isatty(), os.environ.get("RANK", "0") == "0"
        style: dict[str, Any] = {"unit": f" {unit}" if unit else "it", "leave": False, "dynamic_ncols": True}
        self._bar = tqdm(desc=description, total=total, delay=BAR_DELAY, disable=not (is_terminal and is_main), **style)
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
        self.description = description
        self._bar.set_description(description, refresh=False)

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
