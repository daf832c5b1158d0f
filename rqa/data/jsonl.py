"""Strict JSON in UTF-8: an object a line, or an array of objects. All problems of a file are reported together."""

import gzip
import json
import mmap
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rqa.errors import InputError
from rqa.terminal import Progress, track

T = TypeVar("T")
Data = bytes | mmap.mmap
_MAX_PROBLEMS_SHOWN = 20
_EMPTY = "{}: expected at least one row, got an empty file."
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")
_TYPES = {str: "text", int: "number", float: "number", bool: "true/false", list: "list", dict: "object"}


class DataError(InputError):
    """The problems of a file: the message has a line for each of the first 20, then the number of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.problems: list[str] = []

    def add(self, where: str, problem: str) -> None:
        """Add a problem at `where`, a file:line or file[index]."""
        self.count += 1
        if self.count <= _MAX_PROBLEMS_SHOWN:
            self.problems.append(f"{where}: {problem}")

    def __str__(self) -> str:
        more = self.count - len(self.problems)
        return "\n".join([*self.problems, f"and {more} more"] if more else self.problems)


class Fields:
    """The fields of one JSON object, read by name and type.

    A field of the wrong type is reported with its place and returned as empty, so that reading continues. An optional
    field may be absent or null.
    """

    def __init__(self, values: dict[str, Any], place: str, report: Callable[[str], None]) -> None:
        self._values, self._place, self._report = values, place, report

    def problem(self, name: str, message: str) -> None:
        """Report a problem of the field `name`."""
        self._report(f'field "{self._place}{name}": {message}')

    def text(self, name: str, *, optional: bool = False) -> str:
        """Return a text unchanged; white space alone is a problem, or empty if the field is optional."""
        value = self._value(name, str, optional)
        is_blank = value is not None and not value.strip()
        if is_blank and not optional:
            self.problem(name, "expected text, got only white space" if value else "expected text, got empty text")
        return "" if value is None or is_blank else value

    def texts(self, name: str, *, optional: bool = False) -> tuple[str, ...]:
        """Return the texts of a text or of a list of at least one text."""
        if not isinstance(self._values.get(name), list):
            text = self.text(name, optional=optional)
            return (text,) if text else ()
        items = self._items(name, optional)
        if not items._values:
            self.problem(name, "expected text or list of texts, got empty list")
        return tuple(items.text(item) for item in items._values)

    def identifier(self, name: str) -> str:
        """Return an optional text, or a whole number as its digits."""
        value = self._values.get(name)
        return str(value) if type(value) is int else self.text(name, optional=True)

    def has(self, name: str) -> bool:
        """Return True if the field is present and not null."""
        return self._values.get(name) is not None

    def flag(self, name: str) -> bool:
        """Return an optional true or false."""
        return self._value(name, bool, True) or False

    def object(self, name: str, *, optional: bool = False) -> "Fields":
        """Return the fields of an object."""
        value = self._value(name, dict, optional)
        report = self._report if value is not None else ignore  # one problem, not one for each missing field
        return Fields(value or {}, f"{self._place}{name}.", report)

    def objects(self, name: str, *, optional: bool = False) -> "list[Fields]":
        """Return the fields of each object of a list."""
        items = self._items(name, optional)
        return [items.object(item) for item in items._values]

    def _items(self, name: str, optional: bool) -> "Fields":
        """Return the items of a list as fields named `name[0]`, `name[1]`, ..."""
        items = self._value(name, list, optional) or []
        return Fields({f"{name}[{i}]": item for i, item in enumerate(items)}, self._place, self._report)

    def _value(self, name: str, kind: type[T], optional: bool) -> T | None:
        value = self._values.get(name)
        if isinstance(value, kind):
            return value
        if value is not None or not optional:
            actual = type_name(value) if name in self._values else "nothing"
            self.problem(name, f"expected {_TYPES[kind]}, got {actual}")
        return None


def ignore(problem: str) -> None:
    """Report nothing: for problems that were reported before."""


def type_name(value: object) -> str:
    """Return the name of the type of `value` in JSON, as messages use it."""
    return "null" if value is None else _TYPES[type(value)]


def check_file(path: str | Path, endings: tuple[str, ...]) -> None:
    """Raise InputError unless `path` is a file that can be opened and its name ends in one of `endings`."""
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: expected a file ({', '.join(endings)}), got an error: {error.strerror}.") from error
    if not str(path).endswith(endings):
        raise InputError(f"{path}: expected a file name that ends in {' or '.join(endings)}.")


def open_data(path: str | Path) -> Data:
    """Return the bytes of a file: mapped, or decompressed into memory if the name ends in .gz.

    Raises InputError if the compressed data is damaged.
    """
    with Path(path).open("rb") as file:
        if not str(path).endswith(".gz"):
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.read(1) else b""  # mmap needs bytes
        try:
            with Progress(f"decompressing {path}"):
                return gzip.decompress(file.read())
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path}: expected gzip data, got damaged data ({error}). Compress it again.") from error


def read_rows(path: str | Path, data: Data) -> Iterator[tuple[int, int, Fields]]:
    """Yield (line from 1, offset in bytes, fields) for each row of `data` that is a JSON object.

    After the last row raises DataError with all problems, in the order of the file, or InputError if there is no row.
    """
    error, last_number = DataError(), 0
    for number, start, line in _lines(path, data):
        if not line.strip():
            continue
        for blank in range(last_number + 1, number):  # blank lines at the end of the file are allowed
            error.add(f"{path}:{blank}", "blank line")
        last_number = number
        try:
            values = parse_object(line)
        except ValueError as problem:
            error.add(f"{path}:{number}", str(problem))
        else:
            yield number, start, Fields(values, "", partial(error.add, f"{path}:{number}"))
    if error.count:
        raise error
    if not last_number:
        raise InputError(_EMPTY.format(path))


def _lines(path: str | Path, data: Data) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line from 1, offset in bytes, line), and show the progress."""
    number = start = 0
    with Progress(f"reading {path}", len(data), unit="bytes") as progress:
        while start < len(data):
            end = data.find(b"\n", start) + 1 or len(data)
            yield (number := number + 1), start, line_at(data, start)
            progress.advance(end - start)
            start = end


def line_at(data: Data, start: int) -> bytes:
    r"""Return the line of `data` at offset `start` without its \n or a BOM at offset 0; \r is white space in JSON."""
    end = data.find(b"\n", start)
    line = data[start : len(data) if end < 0 else end]
    return line if start else line.removeprefix(_BOM)


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the JSON object on one line. Raises ValueError with the reason for anything else."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line") from error
    values, end = _parse(text, _after_space(text, 0))
    if (end := _after_space(text, end)) < len(text):
        raise ValueError(_broken(text, end, "Extra data"))
    return values


def read_array(path: str | Path, data: Data) -> Iterator[tuple[int, Fields]]:
    """Yield (index from 0, fields) for each item of a JSON array that is an object.

    Raises as `read_rows` does. The place of a problem is path[index], which `jq '.[index]'` shows. Broken syntax ends
    the reading. In memory are the text of the file and one item.
    """
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 at byte {problem.start + 1} of the file") from problem
    start = _after_space(text, text.startswith("\ufeff"))
    first = _after_space(text, start + 1)
    if text[start : start + 1] not in ("[", ""):
        raise InputError(f'{path}: expected "[" and objects, got "{text[start]}". Name a file of lines .jsonl.')
    if start == len(text) or text.startswith("]", first):
        raise InputError(_EMPTY.format(path))
    error = DataError()
    for index, item in enumerate(track(_items(text, first), f"reading {path}", unit="rows")):
        place = f"{path}[{index}]"
        if isinstance(item, ValueError):
            error.add(place, str(item))
        else:
            yield index, Fields(item, "", partial(error.add, place))
    if error.count:
        raise error


def _items(text: str, start: int) -> Iterator[dict[str, Any] | ValueError]:
    """Yield each object of an array whose first item is at `start`, or its problem. Broken syntax is the end."""
    delimiter = ","
    while delimiter == ",":
        try:
            item, end = _parse(text, start)
        except ValueError as problem:
            yield problem
            try:
                _, end = _LENIENT.raw_decode(text, start)
            except (ValueError, RecursionError):
                return
        else:
            yield item
        end = _after_space(text, end)
        delimiter, start = text[end : end + 1], _after_space(text, end + 1)
    if delimiter != "]":
        yield ValueError(_broken(text, end, "Expecting ',' delimiter"))
    elif start < len(text):
        yield ValueError(_broken(text, start, "Extra data"))


def _parse(text: str, start: int) -> tuple[dict[str, Any], int]:
    """Return the JSON object at `start` and its end. Raises ValueError with the reason if it is not an object."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        if text.find("\\u", start, end) >= 0:  # only an escape can be half of a surrogate pair
            json.dumps(value, ensure_ascii=False).encode()  # raises UnicodeEncodeError for it
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair (\\ud800 to \\udfff) without the other") from error
    except json.JSONDecodeError as error:
        raise ValueError(_broken(text, error.pos, error.msg)) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if type(value) is not dict:
        raise ValueError(f"expected object, got {type_name(value)}")
    return value, end


def _after_space(text: str, start: int) -> int:
    return next(_SPACE.finditer(text, start)).end()


def _broken(text: str, position: int, reason: str) -> str:
    error = json.JSONDecodeError(reason, text, position)
    return f"not JSON at {f'line {error.lineno}, ' if error.lineno > 1 else ''}column {error.colno}: {error.msg}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"field {json.dumps(name)} appears twice in one object")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
_LENIENT = json.JSONDecoder(parse_int=str)  # only for the end of an object that _DECODER refuses
