"""Strict JSON in UTF-8: an object a line, or an array of objects. All problems of a file are reported together."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from rqa.data.data_file import BLOCK_BYTES, Data, read_all
from rqa.data.fields import Fields, quoted, type_name
from rqa.data.file_report import FileReport
from rqa.data.foreign_files import SNIFFED_BYTES, check_binary, check_json_array, check_json_lines
from rqa.errors import InputError
from rqa.terminal import Progress, track

MAX_LINE_BYTES = 2**24  # of a row: bounds the memory that one line can take
_EMPTY = "{}: expected at least one row, got an empty file."
BOM = b"\xef\xbb\xbf"
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_SPACE = re.compile(r"[ \t\n\r]*")


def read_rows(
    path: str | Path, data: Data, report: FileReport | None = None, *, is_own: bool = False
) -> Iterator[tuple[int, int, bytes, Fields]]:
    """Yield (number of the line from 1, its start in `data`, the line, fields) for each row that is a JSON object.

    After the last row raises DataError with all problems, in the order of the file, or adds them to `report`. Raises
    InputError if there is no row, or if the file has another format; a file that rqa wrote (`is_own`) has none.
    """
    own, last_number = report or FileReport(path), 0
    for number, start, line in _lines(path, data):
        if not line.strip():
            continue
        for blank in range(last_number + 1, number):  # blank lines at the end of the file are allowed
            own.add_bad_row(f"{path}:{blank}", "blank line")
        is_first, last_number = not last_number, number
        try:
            row = Fields(parse_object(line))
        except ValueError as problem:
            if is_first and not is_own:
                check_json_lines(path, line, data[start : start + SNIFFED_BYTES])
            own.add_bad_row(f"{path}:{number}", str(problem))
        else:
            yield number, start, line, row
            own.add_row(f"{path}:{number}", row)
    if not last_number:
        raise InputError(_EMPTY.format(path))
    if not report and own.num_bad_rows:
        raise own.error


def _lines(path: str | Path, data: Data) -> Iterator[tuple[int, int, bytes]]:
    r"""Yield (number from 1, start in `data`, bytes without \n or a BOM) of each line, and show the progress."""
    start = 0
    with Progress(f"reading {path}", len(data), unit="bytes") as progress:
        lines = (line for _, block in line_blocks(path, data) for line in block.removesuffix(b"\n").split(b"\n"))
        for number, line in enumerate(lines, 1):
            content = line if start else line.removeprefix(BOM)
            yield number, start + len(line) - len(content), content
            start = min(start + len(line) + 1, len(data))  # the last line may have no end
            progress.advance(start - progress.done)


def line_blocks(path: str | Path, data: Data) -> Iterator[tuple[int, bytes]]:
    r"""Yield start and bytes of blocks of whole lines. They end at \n alone: \r is white space in JSON."""
    number, start, rest = 1, 0, b""
    for position in range(0, len(data), BLOCK_BYTES):
        rest += data[position : position + BLOCK_BYTES]
        if end := rest.rfind(b"\n") + 1:
            yield start, rest[:end]
            number += rest.count(b"\n")
            start, rest = start + end, rest[end:]
        if len(rest) > MAX_LINE_BYTES:
            if number == 1:
                check_json_lines(path, rest[:SNIFFED_BYTES], rest[:SNIFFED_BYTES])
            problem = f"expected lines of at most {MAX_LINE_BYTES:,} bytes, got a longer one"
            raise InputError(f"{path}:{number}: {problem}. Write one object on each line.")
    if rest:
        yield start, rest


def parse_object(line: bytes, *, lone_surrogates: bool = False) -> dict[str, Any]:
    """Return the JSON object on one line. Raises ValueError with the reason for anything else.

    `lone_surrogates` allows escapes such as \\udcff, which stand for the bytes of a path that is not UTF-8.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line") from error
    values, end = _parse(text, _after_space(text, 0), lone_surrogates)
    if (end := _after_space(text, end)) < len(text):
        raise ValueError(_broken(text, end, "Extra data"))
    return values


def read_array(path: str | Path, data: Data, report: FileReport | None = None) -> Iterator[tuple[int, Fields]]:
    """Yield (index from 0, fields) for each item of a JSON array that is an object.

    Raises as `read_rows` does. The place of a problem is path[index], which `jq '.[index]'` shows. Broken syntax ends
    the reading. In memory are the text of the file and one item.
    """
    check_binary(path, data[:SNIFFED_BYTES])
    try:
        text = str(read_all(data), "utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(f"{path}: not UTF-8 at byte {problem.start + 1} of the file") from problem
    start = _after_space(text, text.startswith("\ufeff"))
    first = _after_space(text, start + 1)
    check_json_array(path, text, start)
    if start == len(text) or text.startswith("]", first):
        raise InputError(_EMPTY.format(path))
    own = report or FileReport(path)
    for index, item in enumerate(track(_items(text, first), f"reading {path}", unit="rows")):
        place = f"{path}[{index}]"
        if isinstance(item, ValueError):
            own.add_bad_row(place, str(item))
            own.is_cut |= isinstance(item, _CutArray)
        else:
            row = Fields(item)
            yield index, row
            own.add_row(place, row)
    if not report and own.num_bad_rows:
        raise own.error


class _CutArray(ValueError):
    """Broken syntax: the number of later items is unknown."""


def _items(text: str, start: int) -> Iterator[dict[str, Any] | ValueError]:
    """Yield each object of an array whose first item is at `start`, or its problem. Broken syntax is the end."""
    delimiter = ","
    while delimiter == ",":
        try:
            item, end = _parse(text, start)
        except ValueError as problem:
            try:
                _, end = _LENIENT.raw_decode(text, start)
            except (ValueError, RecursionError):
                yield _CutArray(problem)
                return
            yield problem
        else:
            yield item
        end = _after_space(text, end)
        delimiter, start = text[end : end + 1], _after_space(text, end + 1)
    if delimiter != "]":
        yield _CutArray(_broken(text, end, "Expecting ',' delimiter"))
    elif start < len(text):
        yield _CutArray(_broken(text, start, "Extra data"))


def _parse(text: str, start: int, lone_surrogates: bool = False) -> tuple[dict[str, Any], int]:
    """Return the JSON object at `start` and its end. Raises ValueError with the reason if it is not an object."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        # Only an escape can be half of a surrogate pair.
        if not lone_surrogates and text.find("\\u", start, end) >= 0 and _HALF_PAIR.search(text, start, end):
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
    return _SPACE.match(text, start).end()  # type: ignore[union-attr]  # it matches "" too


def _broken(text: str, position: int, reason: str) -> str:
    if text.startswith("\ufeff", position):
        reason = "byte order mark, as between two files that were joined. Remove the bytes EF BB BF"
    error = json.JSONDecodeError(reason, text, position)
    return f"not JSON at {f'line {error.lineno}, ' if error.lineno > 1 else ''}column {error.colno}: {error.msg}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"field {quoted(name)} appears twice in one object")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
scan_value: Callable[[str, int], tuple[Any, int]] = _DECODER.scan_once  # type: ignore[attr-defined]
_LENIENT = json.JSONDecoder(parse_int=str)  # only for the end of an object that _DECODER refuses
