"""Config files, YAML or JSON: the text of each flag, as it was written, and its place for messages."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rqa.data.jsonl import parse_object
from rqa.errors import InputError

MAX_BYTES = 2**20  # of a config file: a larger one is data, or an endless device
_NULL = "tag:yaml.org,2002:null"
_STANDARD_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Entry:
    """The value of one flag: its text, or None for null. `where` is the flag, or file:line and key, for messages."""

    where: str
    text: str | None
    is_collection: bool = False  # an object or a list: `text` is its JSON


def read_config(path: Path, subject: str) -> list[tuple[str, Entry]]:
    """Return the keys and values of a file, in its order; `subject` names the file in messages.

    The file has one object. Scalars are texts: the types of YAML 1.1, where `no` is false and `010` is 8, are not
    used. Raises InputError if the file cannot be read or a key is repeated inside a value.
    """
    text = _read_text(path, subject)
    try:
        return [*(_json_entries if path.suffix == ".json" else _yaml_entries)(text, subject)]
    except yaml.MarkedYAMLError as error:
        mark, reasons = error.problem_mark, filter(None, (error.context, error.problem))
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{subject}{place}: not YAML: {', '.join(reasons)}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{subject}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{subject}: nested too deeply") from error


def _read_text(path: Path, subject: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{subject}: expected a YAML or JSON file, got an error: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{subject}: expected UTF-8, got another encoding at byte {error.start + 1}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{subject}: expected at most {MAX_BYTES} bytes, got more")
    if not text.strip():
        raise InputError(f"{subject}: expected lines of `flag: value`, got an empty file")
    return text


# JSON


def _json_entries(text: str, subject: str) -> Iterator[tuple[str, Entry]]:
    try:
        values = parse_object(text.encode(), lone_surrogates=True)  # a path of any bytes may contain them
    except ValueError as problem:
        raise InputError(f"{subject}: {problem}") from problem
    as_written = json.loads(text, parse_int=str, parse_float=str)
    for key, value in values.items():
        entry = Entry(f"{subject}: {key}", as_written[key])
        if isinstance(value, bool | dict | list):  # null is None in both
            entry = Entry(entry.where, json.dumps(value, ensure_ascii=False), not isinstance(value, bool))
        yield key, entry


# YAML


def _yaml_entries(text: str, subject: str) -> Iterator[tuple[str, Entry]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (ValueError, OverflowError) as error:  # an escape such as "\U00110000"
        raise InputError(f"{subject}: not YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        actual = "a list" if isinstance(node, yaml.SequenceNode) else "no flag" if node is None else "one text"
        raise InputError(f"{subject}: expected lines of `flag: value`, got {actual}")
    for key, value in node.value:
        where = f"{subject}:{key.start_mark.line + 1}"
        name = _scalar(key, where)
        where = f"{where}: {name}"
        if isinstance(value, yaml.ScalarNode):
            yield str(name), Entry(where, _scalar(value, where))
        else:
            yield str(name), Entry(where, json.dumps(_json_value(value, where, set()), ensure_ascii=False), True)


def _scalar(node: yaml.Node, where: str) -> str | None:
    """Return the text of a scalar, None for null. Raises InputError for other nodes, and for tags such as `!x`."""
    if not isinstance(node, yaml.ScalarNode) or not node.tag.startswith(_STANDARD_TAG):
        raise InputError(f"{where}: expected text, got {node.tag.removeprefix(_STANDARD_TAG)}. Put text in quotes")
    return None if node.tag == _NULL else str(node.value)


def _json_value(node: yaml.Node, where: str, seen: set[int]) -> Any:
    """Return a node inside a value, by the rules of JSON: `no` is a text, `1e-4` a number."""
    if isinstance(node, yaml.ScalarNode):
        text = _scalar(node, where)
        return text if text is None or node.style else _plain_json(text)
    if id(node) in seen:  # aliases of aliases grow without bound
        raise InputError(f"{where}: expected no alias to an object or a list, got one")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_json_value(item, where, seen) for item in node.value]
    values: dict[str, Any] = {}
    for key, value in node.value:
        name = str(_scalar(key, where))
        if name in values:
            raise InputError(f"{where}: {name} is set twice in one object, again in line {key.start_mark.line + 1}")
        values[name] = _json_value(value, where, seen)
    return values


def _plain_json(text: str) -> Any:
    """Return the number or the truth value that JSON reads, or the text itself."""
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        return text
