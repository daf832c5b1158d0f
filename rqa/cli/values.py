"""Values of flags: texts of the command line or of a config file to text, path, number, truth value, choice."""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rqa.cli.config_file import Entry
from rqa.errors import InputError

TRUE, FALSE = ("true", "yes", "t", "y", "1", "on"), ("false", "no", "f", "n", "0", "off")
KINDS = {"is_path", "is_json", "may_be_infinite"}  # of flags, in the metadata of their fields


class ExpectedError(ValueError):
    """The text of a flag is not valid; the message is the expected value."""


@dataclass(frozen=True)
class Flag:
    """A field of a dataclass as a flag: its type without None, and its metadata."""

    name: str
    kind: Any
    is_optional: bool
    metadata: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the aliases."""
        return self.name, *self.metadata.get("aliases", ())

    def value(self, entry: Entry) -> Any:
        """Return the value of an entry, None for null. Raises InputError if it is not a value of this flag."""
        if entry.text is None:
            return None
        if entry.is_collection and not self.metadata.get("is_json"):
            raise InputError(f"{entry.where}: expected one value, got {entry.text}")
        try:
            return self._parse(entry.text)
        except ExpectedError as expected:
            raise InputError(f"{entry.where}: expected {expected}, got {entry.text!r}") from expected

    def _parse(self, text: str) -> Any:
        if self.kind is str:
            return path_of(text) if self.metadata.get("is_path") else _utf8(text)
        if self.kind is bool:
            return _truth(text)
        if get_origin(self.kind) is Literal:
            return _choice(text, get_args(self.kind))
        return _number(text, self.kind, bool(self.metadata.get("may_be_infinite")))


def flags_of(args: Any) -> Iterator[Flag]:
    """Yield the fields of a dataclass as flags."""
    types = get_type_hints(type(args))
    for field in dataclasses.fields(args):
        kinds = get_args(types[field.name])
        is_optional = NoneType in kinds
        [kind] = [part for part in kinds if part is not NoneType] if is_optional else [types[field.name]]
        yield Flag(field.name, kind, is_optional, field.metadata)


def path_of(text: str) -> str:
    """Return a path in which `~` at the start, and nothing else, is expanded; bytes that are not UTF-8 are allowed."""
    if "\0" in text:
        raise ExpectedError("a path without NUL")
    return os.path.expanduser(text)  # noqa: PTH111  # Path would change the text


def _utf8(text: str) -> str:
    if re.search("[\ud800-\udfff]", text):  # bytes of the command line that are not UTF-8: tokenizers reject them
        raise ExpectedError("UTF-8 text")
    return text


def _truth(text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise ExpectedError("true or false")
    return text.lower() in TRUE


def _choice(text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        raise ExpectedError(f"one of {', '.join(choices)}")
    return text


def _number(text: str, kind: type[int] | type[float], may_be_infinite: bool) -> float:
    expected = "a whole number" if kind is int else "a number"
    try:
        number = kind(text.replace(".inf", "inf"))  # YAML's infinity
    except ValueError as error:
        raise ExpectedError(expected) from error
    if math.isnan(number) or (math.isinf(number) and not may_be_infinite):
        raise ExpectedError("a finite number")
    return number
