"""Read LocalRQA's document.pkl without running any code in it.

Loading a pickle may call any function that it names. Two independent checks prevent that. A scan allows only the
operations that a list of plain objects needs, none of them a call. The unpickler resolves one name, to an empty class.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from rqa.data.data_file import DataFile, open_data, read_all
from rqa.data.fields import listed, quoted
from rqa.errors import InputError
from rqa.terminal import Progress

_FIELDS = {"page_content": str, "fmt_content": str, "metadata": dict}

# No tuple but the empty one, which NEWOBJ needs: hashing a deep tuple, as a key of a dict, overflows the C stack, and
# BUILD with a pair sets attributes of the class.
_OPERATIONS = frozenset(
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 "
    "LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE "
    "GLOBAL STACK_GLOBAL NEWOBJ BUILD".split()
)


# A byte of these allocates about 64. The smallest document is 3 objects in 25 bytes.
_EMPTY_OBJECTS = frozenset({"EMPTY_LIST", "EMPTY_DICT", "NEWOBJ", "MARK"})
_MIN_BYTES_PER_OBJECT = 4
_ALWAYS_ALLOWED = 4096  # bytes


class UnsafePickleError(InputError):
    """The pickle holds anything else than LocalRQA's list of documents."""


def read_documents(path: Path, file: DataFile | None = None) -> list[dict[str, Any]]:
    """Return the documents of a document.pkl, each {"page_content": text, "fmt_content": text, "metadata": {...}}.

    Metadata values are text, numbers, true, false, null, or lists and objects of these, which may contain themselves.
    Protocols 2 to 5 are supported; 0 and 1 need a call for each new object. Raises UnsafePickleError for anything else,
    and InputError if the file cannot be read. `file` is the opened file, if it was opened before.
    """
    data = read_all(file or open_data(path))
    try:
        with Progress(f"reading {path}"):
            _scan(data)
            unpickler = _Unpickler(data)
            documents = unpickler.load()
            if type(documents) is not list:
                raise TypeError(f"expected a list, got {type(documents).__name__}")
            return [_fields(each, unpickler.document, f"document {i}") for i, each in enumerate(documents, 1)]
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError) as error:
        expected = "the list of documents that LocalRQA pickles (protocol 2 to 5)"
        advice = "Objects of other classes, also in metadata, are not read: write the documents as .jsonl"
        raise UnsafePickleError(f"{path}: expected {expected}: {error}. {advice}") from error


def _scan(data: bytes) -> None:
    """Raise UnpicklingError for an operation that is not allowed, or that allocates much more than the file has."""
    text, num_objects = "", 0
    for count, (operation, value, position) in enumerate(pickletools.genops(data)):
        name = operation.name
        if name not in _OPERATIONS:
            after = f" after the text {quoted(text)}" if text else ""
            raise pickle.UnpicklingError(f"operation {name} at byte {position}{after} is not allowed")
        limit = {"BINPUT": count, "LONG_BINPUT": count, "FRAME": len(data)}.get(name)  # a memo grows up to its index
        if limit is not None and isinstance(value, int) and value > limit:
            raise pickle.UnpicklingError(f"{name} of {value} at byte {position}, more than {limit}")
        num_objects += name in _EMPTY_OBJECTS
        if num_objects * _MIN_BYTES_PER_OBJECT > len(data) + _ALWAYS_ALLOWED:
            raise pickle.UnpicklingError(f"more than one object for each {_MIN_BYTES_PER_OBJECT} bytes of the file")
        text = value if isinstance(value, str) else text
    if position != len(data) - 1:
        raise pickle.UnpicklingError(f"more data after its end at byte {position}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.document = type("Document", (), {})  # new for each load, so that no file can change it for the next

    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ("local_rqa.schema.document", "Document"):
            raise pickle.UnpicklingError(f"a reference to {quoted(f'{module}.{name}')} is not allowed")
        return self.document


def _fields(document: object, kind: type, place: str) -> dict[str, Any]:
    if type(document) is not kind:
        raise TypeError(f"{place}: expected Document, got {type(document).__name__}")
    fields: dict[str, Any] = {"fmt_content": "", "metadata": {}, **vars(document)}
    if fields.keys() != _FIELDS.keys():
        raise TypeError(f"{place}: expected fields {', '.join(_FIELDS)}, got {listed(sorted(fields))}")
    for name, expected in _FIELDS.items():
        if type(fields[name]) is not expected:
            raise TypeError(f"{place}: {name}: expected {expected.__name__}, got {type(fields[name]).__name__}")
    return fields
