"""Strict JSON Lines: UTF-8, one object a line; every problem of a file is found before any is reported."""

import gzip
import json
import mmap
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rqa.errors import InputError

T = TypeVar("T")
Data = bytes | mmap.mmap

_SHOWN = 20
_BOM = b"\xef\xbb\xbf"
_TYPES = {
    str: "text",
    int: "number",
    float: "number",
    bool: "true/false",
    list: "list",
    dict: "object",
    type(None): "null",
}


class DataError(InputError):
    """The problems of some data: its message gives each of the first 20 a line, then says how many more there are."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.problems: list[str] = []

    def add(self, where: str, problem: str) -> None:
        """Note a problem at `where`, a file:line."""
        self.count += 1
        if self.count <= _SHOWN:
            self.problems.append(f"{where}: {problem}")

    def __str__(self) -> str:
        more = self.count - len(self.problems)
        return "\n".join([*self.problems, f"and {more} more"] if more else self.problems)


class Fields:
    """The fields of one JSON object, read by name and type.

    What is not as expected is reported with its place and reads as empty, so that a reader goes on to the next field.
    An optional field may be absent or null. A text that is not optional has a character that is not white space.
    """

    def __init__(self, values: dict[str, Any], place: str, report: Callable[[str], None]) -> None:
        self._values, self._place, self._report = values, place, report

    def problem(self, name: str, message: str) -> None:
        """Report a problem of the field `name`."""
        self._report(f'field "{self._place}{name}": {message}')

    def text(self, name: str, *, optional: bool = False) -> str:
        """Return a text as it stands; one of white space only is a problem, or empty where it is optional."""
        value = self._value(name, str, optional)
        if value is None or value.strip():
            return value or ""
        if not optional:
            self.problem(name, "expected text, found only white space" if value else "expected text, found empty text")
        return ""

    def texts(self, name: str, *, optional: bool = False) -> tuple[str, ...]:
        """Return the texts of a text or of a list of at least one text."""
        if not isinstance(self._values.get(name), list):
            text = self.text(name, optional=optional)
            return (text,) if text else ()
        items = self._items(name, optional)
        if not items._values:
            self.problem(name, "expected text or list of texts, found empty list")
        return tuple(items.text(item) for item in items._values)

    def flag(self, name: str) -> bool:
        """Return an optional true or false."""
        return self._value(name, bool, True) or False

    def object(self, name: str, *, optional: bool = False) -> "Fields":
        """Return the fields of an object."""
        value = self._value(name, dict, optional)
        report = self._report if value is not None else ignore  # one problem, not one for each field it lacks
        return Fields(value or {}, f"{self._place}{name}.", report)

    def objects(self, name: str, *, optional: bool = False) -> "list[Fields]":
        """Return the fields of each object of a list."""
        items = self._items(name, optional)
        return [items.object(item) for item in items._values]

    def _items(self, name: str, optional: bool) -> "Fields":
        """Return the items of a list as fields, by the names `name[0]`, `name[1]`, ..."""
        items = self._value(name, list, optional) or []
        return Fields({f"{name}[{i}]": item for i, item in enumerate(items)}, self._place, self._report)

    def _value(self, name: str, kind: type[T], optional: bool) -> T | None:
        value = self._values.get(name)
        if isinstance(value, kind):
            return value
        if value is not None or not optional:
            found = type_name(value) if name in self._values else "nothing"
            self.problem(name, f"expected {_TYPES[kind]}, found {found}")
        return None


def ignore(problem: str) -> None:
    """Report nothing: for what has been reported before."""


def type_name(value: object) -> str:
    """Return what JSON, and a message, calls the type of `value`."""
    return _TYPES[type(value)]


def check_file(path: str | Path, endings: tuple[str, ...]) -> None:
    """Raise InputError unless `path` is a file that can be opened and its name ends in one of `endings`."""
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a file ({', '.join(endings)})") from error
    if not str(path).endswith(endings):
        raise InputError(f"{path}: expected a file whose name ends in {' or '.join(endings)}")


def open_data(path: str | Path) -> Data:
    """Return the bytes of a file: mapped, or decompressed into memory where the name ends in .gz.

    Raises InputError where the compressed data is damaged.
    """
    with Path(path).open("rb") as file:
        if not str(path).endswith(".gz"):
            empty = not file.read(1)  # which cannot be mapped
            return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            return gzip.decompress(file.read())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path}: not gzip data, or damaged ({error}); compress the file again") from error


def read_rows(path: str | Path, data: Data) -> Iterator[tuple[int, int, Fields]]:
    """Yield (line from 1, offset in bytes, fields) for each row of `data` that is a JSON object.

    After the last raises DataError with all that was found or reported on the way, in the order of the file, or
    InputError if there was no row at all. `path` is only for the messages.
    """
    error = DataError()
    empty, blanks = True, 0
    for number, start in enumerate(_starts(data), 1):
        line = line_at(data, start)
        if not line.strip():
            blanks += 1
            continue
        for blank in range(number - blanks, number):  # only now is it known that they do not end the file
            error.add(f"{path}:{blank}", "blank line")
        empty, blanks = False, 0
        try:
            values = parse_object(line)
        except ValueError as problem:
            error.add(f"{path}:{number}", str(problem))
        else:
            yield number, start, Fields(values, "", partial(error.add, f"{path}:{number}"))
    if error.count:
        raise error
    if empty:
        raise InputError(f"{path}: the file is empty; expected at least one row")


def _starts(data: Data) -> Iterator[int]:
    start = 0
    while start < len(data):
        yield start
        start = data.find(b"\n", start) + 1 or len(data)


def line_at(data: Data, start: int) -> bytes:
    r"""Return the line of `data` at offset `start` without its \n or a BOM at offset 0; \r is white space in JSON."""
    end = data.find(b"\n", start)
    line = data[start : len(data) if end < 0 else end]
    return line if start else line.removeprefix(_BOM)


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on one line. Raises ValueError with the reason where it is anything else."""
    try:
        value = _DECODER.decode(line.decode())
        if b"\\u" in line:  # only an escape can bring half of a surrogate pair, which no encoder takes
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line") from error
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) without the other") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if type(value) is not dict:
        raise ValueError(f"expected object, found {type_name(value)}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"field {json.dumps(name)} stands twice in one object")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
