"""Comments of constants and fields as their docstrings, on the page of the Python API. An extension of griffe."""

import sys
from pathlib import Path
from typing import Any

from griffe import Docstring, Extension

sys.path[:0] = [str(Path(__file__).parent)]

from reference_pages import comment_of  # noqa: E402


class CommentDocstrings(Extension):
    """Documents each attribute without a docstring by its comment."""

    def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
        """Set the docstring of an attribute."""
        text = comment_of(str(attr.filepath), attr.lineno, attr.endlineno) if attr.lineno else ""
        if attr.docstring is None and text:
            attr.docstring = Docstring(text, lineno=attr.lineno, parent=attr)
