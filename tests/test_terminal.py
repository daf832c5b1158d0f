"""Progress: a bar on a terminal, lines at an interval in a log file, nothing on other ranks, no thread left."""

import logging
import os
import re
import sys
import termios
import threading
import time
import unicodedata
from contextlib import contextmanager, suppress

import pytest

from rqa import terminal
from rqa.terminal import Progress, plural, printable, track

INTERVAL = 0.05  # seconds


@pytest.fixture
def lines(caplog, monkeypatch):
    """A function that returns the logged lines; the interval is short."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(terminal, "LOG_INTERVAL", INTERVAL)
    monkeypatch.setattr(terminal, "BAR_DELAY", INTERVAL)
    caplog.set_level(logging.INFO, "rqa.terminal")
    return lambda: [record.getMessage() for record in caplog.records]


@contextmanager
def terminal_on_stderr(monkeypatch):
    """Make the standard error a terminal, and yield a function that returns what the terminal received since."""
    master, slave = os.openpty()
    os.set_blocking(master, False)
    termios.tcsetwinsize(slave, (24, 100))  # the bar has no room in a window of 0 columns

    def read():
        try:
            return os.read(master, 1 << 16).decode()
        except BlockingIOError:
            return ""

    with os.fdopen(slave, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        yield read
    os.close(master)


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(INTERVAL / 5)


def test_a_log_file_gets_a_line_at_each_interval(lines):
    with Progress("reading the corpus", 4, unit="rows") as progress:
        wait_until(lambda: len(lines()) >= 2)  # also while one part takes long
        progress.advance(3)
        count = len(lines())
        wait_until(lambda: len(lines()) > count + 1)
    assert re.fullmatch(r"reading the corpus: 0 of 4 rows \(0%\), \d+ s so far", lines()[0])
    assert re.fullmatch(r"reading the corpus: 3 of 4 rows \(75%\), \d+ s so far, about \d+ s left", lines()[-1])


def test_short_pieces_of_long_work_share_the_interval(lines, monkeypatch):
    monkeypatch.setattr(terminal, "BAR_DELAY", INTERVAL / 10)
    end = time.monotonic() + 10
    while len(lines()) < 3:  # no piece is as long as an interval
        assert time.monotonic() < end
        for _ in track(range(2), "a piece"):
            time.sleep(INTERVAL / 5)


def test_the_lines_end_with_the_work(lines):
    with Progress("embedding", 4):
        wait_until(lines)
    count = len(lines())
    time.sleep(3 * INTERVAL)
    assert len(lines()) == count


def test_an_unknown_total_is_not_shown(lines):
    with Progress("reading", unit="rows") as progress:
        progress.advance(1200)
        progress.describe("checking")
        wait_until(lines)
    assert re.fullmatch(r"checking: 1,200 rows, \d+ s so far", lines()[-1])


def test_short_work_shows_nothing(lines, monkeypatch, capfd):
    monkeypatch.setattr(terminal, "LOG_INTERVAL", 30.0)
    assert list(track(range(5), "counting")) == list(range(5))
    assert lines() == []
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_and_no_lines(lines, monkeypatch):
    shown = ""
    with (
        terminal_on_stderr(monkeypatch) as read,
        Progress("reading the corpus", 4, unit="rows") as progress,
    ):
        time.sleep(2 * INTERVAL)
        progress.advance(3)
        end = time.monotonic() + 10
        while "3/4" not in shown:
            assert time.monotonic() < end
            shown += read()
            time.sleep(INTERVAL / 5)
    assert "reading the corpus" in shown
    assert "75%" in shown
    assert lines() == []


def test_another_rank_shows_nothing_in_a_log_file(lines, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Progress("reading", 4) as progress:
        progress.advance(2)
        time.sleep(4 * INTERVAL)
    assert lines() == []


def test_another_rank_shows_nothing_on_a_terminal(lines, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with terminal_on_stderr(monkeypatch) as read:
        with Progress("reading", 4) as progress:
            progress.advance(2)
            time.sleep(4 * INTERVAL)
        assert read() == ""
    assert lines() == []


def fails():
    with Progress("reading", 4):
        raise ZeroDivisionError


def stops_early():
    for part in track(range(10), "counting"):
        if part == 3:
            break


@pytest.mark.parametrize("work", [lambda: list(track(range(3), "counting")), stops_early, fails])
def test_no_thread_is_left(work):
    before = threading.enumerate()
    with suppress(ZeroDivisionError):
        work()
    assert threading.enumerate() == before


def test_track_counts_its_parts(lines):
    parts = track((part for part in range(10)), "counting", 10, unit="parts")
    for _ in range(4):
        next(parts)
    wait_until(lines)
    parts.close()
    assert lines()[-1].startswith("counting: 3 of 10 parts (30%)")


def test_control_characters_are_not_printed():
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x1b[31mred\x07\x9b1m\r\n\x7f") == "␛[31mred␇\ufffd1m\n␡"


def test_printable_text_has_no_control_characters_but_tab_and_line_feed():
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        printed = printable(character)
        if unicodedata.category(character) == "Cc" and character not in "\t\n":
            assert not any(unicodedata.category(c) == "Cc" for c in printed)
        else:
            assert printed == character
    assert printable("a\r\n\x1b[31mred\x1b]0;title\x07\x9b1m\x7f") == "a\n␛[31mred␛]0;title␇\ufffd1m␡"


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (2000, "2,000 rows")])
def test_a_number_has_its_noun(number, text):
    assert plural(number, "row") == text


def test_a_description_has_no_control_characters(lines):
    with Progress("reading a\x1b[2J.jsonl") as progress:
        wait_until(lines)
        progress.describe("checking \x9b")
        count = len(lines())
        wait_until(lambda: len(lines()) > count + 1)
    assert lines()[0].startswith("reading a␛[2J.jsonl: ")
    assert lines()[-1].startswith("checking \ufffd: ")
