"""Files that are not JSON rows, recognized by their content: one message in place of one for each line."""

import json
from pathlib import Path
from typing import Any

from rqa.atomic_files import LFS_POINTER
from rqa.data.fields import CONVERT_ADVICE, is_convertible, listed, quoted
from rqa.errors import InputError

SNIFFED_BYTES = 2**20  # from the start of a file

_OBJECT_LINES = "expected a JSON object on each line"
_FIRST_BYTES = {  # of a file: format and advice
    b"PAR1": ("Parquet", 'pandas.read_parquet(FILE).to_json("NAME.jsonl", orient="records", lines=True) converts it'),
    b"ARROW1": ("Arrow", "Export it as JSON Lines"),
    b"\xff\xff\xff\xff": ("Arrow", "Export it as JSON Lines"),
    b"PK\x03\x04": ("a ZIP archive or an Excel file", "Extract it, or export it as JSON Lines"),
    b"\x1f\x8b": ("gzip data", "Name the file .jsonl.gz"),
    b"BZh": ("bzip2 data", "Decompress it"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "Decompress it"),
    b"\xfd7zXZ": ("xz data", "Decompress it"),
    b"SQLite format 3": ("an SQLite database", "Export it as JSON Lines"),
    b"\x80": ("a pickle or other binary data", "A corpus of LocalRQA has a name in .pkl"),
    b"\xff\xfe": ("UTF-16", "Save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "Save it as UTF-8"),
    b"%PDF": ("a PDF file", "Extract its text"),
    LFS_POINTER: ("a pointer of Git LFS in place of its content", "Run git lfs pull"),
    b"<!DOCTYPE": ("an HTML page", "Download the file itself"),
    b"<html": ("an HTML page", "Download the file itself"),
}


def check_binary(path: str | Path, start: bytes) -> None:
    """Raise InputError if the first bytes of a file are those of a binary format."""
    for first, (name, advice) in _FIRST_BYTES.items():
        if start.startswith(first):
            raise InputError(f"{path}: expected JSON, got {name}. {advice}.")


def check_json_lines(path: str | Path, line: bytes, start: bytes) -> None:
    """Raise InputError if a file of lines has another format.

    `line` is its first one, which is not an object, and `start` are its first bytes from there.
    """
    check_binary(path, start)
    start = start.removeprefix(b"\xef\xbb\xbf")
    first = line.lstrip()[:1]
    if first == b"[" and (not _is_json(line) or not start[len(line) :].strip()):
        advice = _advice(start, "Write each item in one line (jq -c '.[]' FILE)")
        raise InputError(f"{path}: {_OBJECT_LINES}, got an array. {advice}.")
    if first == b"{" and (last_line := _last_line_of_value(start)) > 1:
        advice = _advice(start, "Write each in one line (jq -c . FILE)")
        raise InputError(f"{path}: {_OBJECT_LINES}, got one over {last_line} lines. {advice}.")
    text = line.decode(errors="replace")
    for name, delimiter in {"TSV": "\t", "CSV": ",", "CSV with semicolons": ";"}.items():
        if first not in (b"[", b"{") and delimiter in text:
            raise InputError(
                f"{path}: {_OBJECT_LINES}, got {quoted(text)}: it looks like {name}. Export it as JSON Lines."
            )


def check_json_array(path: str | Path, text: str, start: int) -> None:
    """Raise InputError if the text of a .json file does not begin with an array at `start`."""
    if text.startswith("[", start) or start == len(text):
        return
    problem = f'{path}: expected "[" and objects, got {quoted(text[start])}'
    try:
        value, end = json.JSONDecoder(parse_int=str).raw_decode(text, start)
    except (ValueError, RecursionError):
        raise InputError(f"{problem}.") from None
    if text[end:].strip():
        raise InputError(f"{problem}. Name a file of lines .jsonl.")
    if not isinstance(value, dict):
        raise InputError(f"{problem}.")
    lists = [name for name, items in value.items() if isinstance(items, list) and items and isinstance(items[0], dict)]
    advice = f"Its rows may be in {quoted(lists[0])}" if len(lists) == 1 else "It looks like another format"
    advice = CONVERT_ADVICE if _is_convertible(value) else advice
    raise InputError(f'{path}: expected "[" and objects, got one object with {listed(value)}. {advice}.')


def _advice(start: bytes, advice: str) -> str:
    """Return the advice for a file, or that to convert it, by the first object in its first bytes."""
    text = start.decode(errors="replace").lstrip("[ \t\r\n")
    try:
        value, _ = json.JSONDecoder(parse_int=str).raw_decode(text)
    except (ValueError, RecursionError):
        return advice
    return CONVERT_ADVICE if isinstance(value, dict) and _is_convertible(value) else advice


def _is_convertible(value: dict[str, Any]) -> bool:
    """Return True if an object, or the first object in one of its lists, can be converted."""
    firsts = [items[0] for items in value.values() if isinstance(items, list) and items]
    return any(is_convertible(each) for each in (value, *firsts) if isinstance(each, dict))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _last_line_of_value(start: bytes) -> int:
    """Return the line, from 1, where the JSON value at the start of some bytes ends; 0 if it is not complete."""
    text = start.decode(errors="replace")
    try:
        _, end = json.JSONDecoder(parse_int=str).raw_decode(text, len(text) - len(text.lstrip()))
    except (ValueError, RecursionError):
        return 0
    return text.count("\n", 0, end) + 1
