"""Comments of constants and fields as their docstrings, on the page of the Python API. An extension of griffe."""

import linecache
import re
from typing import Any

from griffe import Docstring, Extension


class CommentDocstrings(Extension):
    """Documents each attribute without a docstring by its comment."""

    def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
        """Set the docstring of an attribute."""
        if (
            attr.docstring is None
            and attr.lineno
            and (text := comment_of(str(attr.filepath), attr.lineno, attr.endlineno))
        ):
            attr.docstring = Docstring(text, lineno=attr.lineno, parent=attr)


def comment_of(path: str, first: int, last: int) -> str:
    """Return the comment at the end of the lines `first` to `last`, or directly above them; "" for none."""
    lines = linecache.getlines(path)
    for number in (last, first):
        if found := re.search(r"  # (?!noqa|type:)(.*)", lines[number - 1]):
            return _sentence(found[1])
    above: list[str] = []
    for line in reversed(lines[: first - 1]):
        if not line.lstrip().startswith("# "):
            break
        above.insert(0, line.strip().removeprefix("# "))
    return _sentence(" ".join(above))


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + "." * (bool(text) and text[-1] not in ".:?")
