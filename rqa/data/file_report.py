"""The problems of a file of rows, and the fields that are not read: raised, logged, or listed."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqa.data.fields import Fields, MissingFields, quoted
from rqa.errors import InputError
from rqa.terminal import plural, printable

log = logging.getLogger(__name__)

_MAX_PROBLEMS_SHOWN = 20
_MAX_PLACES_SHOWN = 3  # of bad rows in a warning
_MAX_FIELDS_SHOWN = 10  # that are not read, in a line of the log
_MAX_PLACES_KEPT = 1000  # of bad rows: a file of any size needs little memory
_MAX_NAMES_KEPT = 1000  # of fields that are not read: the keys of rows may all differ
_MAX_FIRST_BAD_ROWS = 10_000  # without a good row before them: the file has another format
_FEW = 0.01  # a share of bad rows that is probably not a mistake of the format


class DataError(InputError):
    """The problems of a file: the message has a line for each of the first 20, then the number of the others.

    A problem that many rows share because they lack the same fields has one line with their number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.advice: list[str] = []  # last lines
        self._lines: list[str] = []
        self._lines_of_missing: dict[str, int] = {}
        self._repeats: dict[int, int] = {}
        self._count_shown = 0

    def add(self, where: str, problem: str) -> None:
        """Add a problem at `where`, a file:line or file[index]."""
        self.count += 1
        line = self._lines_of_missing.get(problem) if isinstance(problem, MissingFields) else None
        if line is not None:
            self._repeats[line] = self._repeats.get(line, 0) + 1
        elif len(self._lines) < _MAX_PROBLEMS_SHOWN:
            if isinstance(problem, MissingFields):
                self._lines_of_missing[problem] = len(self._lines)
            self._lines.append(printable(f"{where}: {problem}"))

    @property
    def problems(self) -> list[str]:
        """The lines of the first problems."""
        return [
            f"{line}; the same in {self._repeats[i]} more rows" if i in self._repeats else line
            for i, line in enumerate(self._lines)
        ]

    def __str__(self) -> str:
        more = self.count - len(self._lines) - sum(self._repeats.values())
        return "\n".join([*self.problems, *([f"and {more} more"] if more else []), *self.advice])


@dataclass
class _Count:
    """The number of rows with one thing, and the place of the first."""

    first: str
    rows: int = 0


class FileReport:
    """Everything about a file of rows that is not an example or a passage.

    `num_rows` includes bad rows: those with a problem. `bad_rows` are their first problems with their places,
    `num_bad_rows` is their number.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.error = DataError()
        self.num_rows = self.num_bad_rows = 0
        self.bad_rows: list[str] = []
        self.is_cut = False  # broken syntax: the number of later rows is unknown
        self.num_misnamed_rows = self.num_unread_rows = 0
        self._num_foreign_rows = 0  # with several missing fields
        self._unread: dict[tuple[str, str], _Count] = {}  # by field and the field that may be meant
        self._notes: dict[str, _Count] = {}

    def add_bad_row(self, where: str, *problems: str, is_foreign: bool = False) -> None:
        """Add a row and its problems. Raises DataError if no row of a long file is good: the rest is not read.

        A foreign row lacks several fields.
        """
        self._num_foreign_rows += is_foreign
        self.num_rows += 1
        self.num_bad_rows += 1
        if len(self.bad_rows) < _MAX_PLACES_KEPT:
            self.bad_rows.append(printable(f"{where}: {problems[0]}"))
        for problem in problems:
            self.error.add(where, problem)
        if self.num_bad_rows == self.num_rows == _MAX_FIRST_BAD_ROWS:
            self.error.advice = [f"{self.path}: the first {self.num_rows:,} rows are all bad: the rest is not read"]
            raise self.error

    def add_row(self, where: str, row: Fields) -> None:
        """Add a row after its fields were read."""
        if row.problems:
            self.add_bad_row(where, *row.problems, is_foreign=row.num_missing > 1)
        else:
            self.num_rows += 1
        if unread := row.unread():
            self.add_unread(where, {*unread})
        for note in row.notes:
            self.add_note(where, note)

    def add_note(self, where: str, note: str, rows: int = 1) -> None:
        """Count an event that is no problem in some rows, the first of them at `where`."""
        self._notes.setdefault(note, _Count(where)).rows += rows

    def add_unread(self, where: str, fields: set[tuple[str, str]], rows: int = 1) -> None:
        """Count fields that are not read in some rows, and the fields that may be meant."""
        self.num_misnamed_rows += any(meant for _, meant in fields) * rows
        self.num_unread_rows += any(not meant for _, meant in fields) * rows
        for field in sorted(fields):
            if field in self._unread or len(self._unread) < _MAX_NAMES_KEPT:
                self._unread.setdefault(field, _Count(where)).rows += rows

    def state(self) -> dict[str, Any]:
        """Return the counts of a file without bad rows as a JSON object."""
        unread = [[*field, count.first, count.rows] for field, count in self._unread.items()]
        notes = [[note, count.first, count.rows] for note, count in self._notes.items()]
        names = ("num_rows", "num_misnamed_rows", "num_unread_rows")
        return {"path": self.path, "unread": unread, "notes": notes, **{name: getattr(self, name) for name in names}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the counts that `state` returned, with the path of this report in their places."""

        def place(first: str) -> str:
            return self.path + first.removeprefix(state["path"]) if first.startswith(state["path"]) else first

        for name in ("num_rows", "num_misnamed_rows", "num_unread_rows"):
            setattr(self, name, state[name])
        self._unread = {(name, meant): _Count(place(first), rows) for name, meant, first, rows in state["unread"]}
        self._notes = {note: _Count(place(first), rows) for note, first, rows in state["notes"]}

    @property
    def misnamed_fields(self) -> list[str]:
        """Fields that are not read and resemble a known one that the row lacks, each with count and first place."""
        return [
            f"{quoted(name)} in {plural(count.rows, 'row')}, first {printable(count.first)} (is {quoted(meant)} meant?)"
            for (name, meant), count in self._unread.items()
            if meant
        ]

    @property
    def unread_fields(self) -> list[str]:
        """The other fields that are not read, with their counts."""
        return [
            f"{quoted(name)} ({plural(count.rows, 'row')})"
            for (name, meant), count in self._unread.items()
            if not meant
        ]

    def is_refused(self, max_bad_rows: int) -> bool:
        """Return True if the file has more than `max_bad_rows` bad rows, or no others."""
        return self.num_bad_rows > max_bad_rows or self.is_cut or 0 < self.num_bad_rows == self.num_rows

    def check(self, max_bad_rows: int = 0) -> None:
        """Raise DataError if the file is refused, else log rows that are left out, and fields that are not read.

        One line of the log names the rows that are left out, one the misnamed fields, one the other fields that are not
        read, and one each of the notes.
        """
        fields = f"{self.path}: fields that are not read:"
        misnamed = [f"{fields} {_first(self.misnamed_fields, '; ')}"] if self.misnamed_fields else []
        if self.is_refused(max_bad_rows):
            self.error.advice = [*misnamed, *self._advice(max_bad_rows)]
            raise self.error
        for line in misnamed:
            log.warning("%s", line)
        if self.num_bad_rows:
            places = "; ".join(self.bad_rows[:_MAX_PLACES_SHOWN])
            log.warning(
                "%s: %d of %s are left out: %s", self.path, self.num_bad_rows, plural(self.num_rows, "row"), places
            )
        if self.unread_fields:
            log.info("%s %s", fields, _first(self.unread_fields, ", "))
        self.log_notes()

    def log_notes(self) -> None:
        """Log passages that were left out or sorted."""
        for note, count in self._notes.items():
            log.warning("%s: %s: %s, first %s", self.path, note, plural(count.rows, "row"), printable(count.first))

    def _advice(self, max_bad_rows: int) -> list[str]:
        if self._num_foreign_rows == self.num_rows:
            return [f"{self.path}: no row has the required fields: the file looks like another format"]
        bad = f"{self.path}: {self.num_bad_rows} of {plural(self.num_rows, 'row')} are bad"
        if max_bad_rows:
            return [f"{bad}, --max_bad_rows allows {max_bad_rows}"]
        if self.num_bad_rows <= _FEW * self.num_rows and not self.is_cut:
            return [f"{bad}. Correct them, or leave them out with --max_bad_rows {self.num_bad_rows}"]
        return []


def _first(names: list[str], separator: str) -> str:
    more = len(names) - _MAX_FIELDS_SHOWN
    return separator.join(names[:_MAX_FIELDS_SHOWN]) + (f" and {more} more" if more > 0 else "")
