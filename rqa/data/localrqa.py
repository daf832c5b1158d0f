"""Read LocalRQA's document.pkl without running anything that it says.

A pickle is a program: loading one may call any function that it names. Two gates stand before that, each enough by
itself: a scan that lets only those operations pass that a list of plain objects needs (none of them a call), and an
unpickler that knows a single name, for which it hands out an empty class.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from rqa.errors import InputError

_DOCUMENT = ("local_rqa.schema.document", "Document")
_FIELDS = {"page_content": str, "fmt_content": str, "metadata": dict}
_METADATA = (str, int, float, bool, type(None))

# Of the tuples only the empty one: NEWOBJ needs it. A deep one as a key of a dict would overflow the C stack when
# hashed, and a pair given to BUILD would set attributes on the class.
_OPERATIONS = frozenset((
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "NONE",
    "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE",
    "GLOBAL", "STACK_GLOBAL", "NEWOBJ", "BUILD",
))  # fmt: skip
_REFUSALS = (pickle.UnpicklingError, ValueError, TypeError, AttributeError)


class UnsafePickleError(InputError):
    """A pickle that is not LocalRQA's list of documents, or not only that."""


def read_documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a document.pkl, each {"page_content": text, "fmt_content": text, "metadata": {...}}.

    The values of the metadata are text, numbers, true, false or null. Protocols 2 to 5 are read; 0 and 1 cannot say
    "a new object" without a call. Raises UnsafePickleError for anything else, OSError where the file cannot be read.
    """
    data = path.read_bytes()
    try:
        _scan(data)
        unpickler = _Unpickler(data)
        return _plain(unpickler.load(), unpickler.document)
    except _REFUSALS as error:
        raise UnsafePickleError(
            f"{path}: not read: {error}. Expected the list of documents that LocalRQA pickles (protocol 2 to 5)."
        ) from error


def _scan(data: bytes) -> None:
    """Refuse an operation that a list of documents does not need, and a number that would allocate beyond the file."""
    for count, (operation, value, position) in enumerate(pickletools.genops(data)):
        name = operation.name
        if name not in _OPERATIONS:
            raise pickle.UnpicklingError(f"operation {name} at byte {position}")
        limit = {"BINPUT": count, "LONG_BINPUT": count, "FRAME": len(data)}.get(name)  # a memo grows up to its index
        if limit is not None and isinstance(value, int) and value > limit:
            raise pickle.UnpicklingError(f"{name} of {value} at byte {position}, where {limit} is the most")
    if position != len(data) - 1:
        raise pickle.UnpicklingError(f"it goes on after its end at byte {position}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.document = type("Document", (), {})  # new for each load: nothing that a file does to it can outlive it

    def find_class(self, module: str, name: str) -> type:
        if (module, name) != _DOCUMENT:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return self.document


def _plain(documents: object, kind: type) -> list[dict[str, Any]]:
    if type(documents) is not list:
        raise TypeError(f"it holds {type(documents).__name__}, not a list")
    return [_fields(document, kind, f"document {number}") for number, document in enumerate(documents, 1)]


def _fields(document: object, kind: type, place: str) -> dict[str, Any]:
    if type(document) is not kind:
        raise TypeError(f"{place}: expected Document, found {type(document).__name__}")
    fields: dict[str, Any] = {"fmt_content": "", "metadata": {}, **vars(document)}
    if fields.keys() != _FIELDS.keys():
        raise TypeError(f"{place}: expected the fields {', '.join(_FIELDS)}")
    for name, expected in _FIELDS.items():
        if type(fields[name]) is not expected:
            raise TypeError(f"{place}: {name}: expected {expected.__name__}, found {type(fields[name]).__name__}")
    for key, value in fields["metadata"].items():
        if type(key) is not str or type(value) not in _METADATA:
            raise TypeError(f"{place}: metadata: expected text, number, true, false or null by name")
    return fields
