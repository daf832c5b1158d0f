"""The fields of one JSON object, read by name and type: problems, missing fields, and fields that are not read."""

import json
import math
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")
_TYPES = {str: "text", int: "number", float: "number", bool: "true/false", list: "list", dict: "object"}
_MAX_NAMES_SHOWN = 10  # of the fields of a row
_MAX_LENGTH_SHOWN = 60  # of a name or value in a message

# Names of fields in the files of other libraries and data sets, by our field.
_OTHER_NAMES = {
    "question": "query input prompt instruction user_input question_text",
    "gold_answer": "answer response output completion reference reference_answer golden_answers gold_answers "
    "correct_answer ground_truth ground_truths cot_answer",
    "gold_docs": "gold_passages golden_docs oracle_context positive_ctxs positives positive_docs supporting_facts "
    "reference_contexts evidence",
    "hard_neg_docs": "hard_negatives hard_negative_docs hard_negative_ctxs hard_negs negatives negative_ctxs "
    "negative_docs",
    "chat_history": "history messages conversation conversations dialog dialogue turns",
    "ctxs": "context contexts passages retrieved_contexts retrieved_docs retrieved_passages",
    "unanswerable": "is_impossible impossible is_unanswerable no_answer",
    "id": "_id uid qid question_id query_id example_id",
    "page_content": "text content contents passage body",
    "text": "page_content content contents passage body",
    "source": "url uri link file_name filename file_path",
    "speaker": "from author",
    "message": "text value utterance",
    "role": "from",
    "content": "text value",
}
_OTHER_NAMES_OF = {field: frozenset(names.split()) for field, names in _OTHER_NAMES.items()}
_ALTERNATIVES = {"gold_answer": "answers", "speaker": "role", "message": "content"}
_ALTERNATIVES |= {second: first for first, second in _ALTERNATIVES.items()}
# Of LocalRQA, Fusion-in-Decoder and recipes/write_questions.py
_EXPECTED_UNREAD = frozenset({"fmt_content", "hasanswer", "has_answer", "written_by"})
# Fields that rows and objects of the formats of recipes/convert.py have; each entry is enough.
_CONVERTIBLE = (
    "question answer,question golden_answers,question positive_ctxs,question supporting_facts,question ground_truth,"
    "question ground_truths,question context answers,oracle_context cot_answer,user_input reference,query answer,"
    "user_input reference_contexts,query reference_answer,qa_pairs,id contents,lc kwargs,id_ text,id_ text_resource,"
    "paragraphs,queries corpus relevant_docs,docstore/data"
)
_CONVERTIBLE_FIELDS = tuple(frozenset(names.split()) for names in _CONVERTIBLE.split(","))
_OWN_FIELDS = frozenset({"gold_answer", "gold_docs", "hard_neg_docs", "ctxs"})
_FREE_FORM = "metadata."  # an object for names of the user's own


CONVERT_ADVICE = "recipes/convert.py converts this format"


class MissingFields(str):
    """A problem of an object that lacks fields. In a file of another format each row has it, and one line is enough."""


class Fields:
    """The fields of one JSON object, read by name and type.

    A field of the wrong type is added to `problems`, with its place, and returned as empty, so that reading continues.
    An optional field may be absent or null. All missing fields of an object are one problem. Nested objects share the
    list of problems.
    """

    __slots__ = ("_children", "_kind", "_missing", "_place", "_read", "_values", "notes", "problems")

    def __init__(self, values: dict[str, Any], place: str = "", kind: str = "") -> None:
        self._values, self._place, self._kind = values, place, kind
        self._read: set[str] = set()
        self._missing: dict[str, str] = {}  # the expected type of each field
        self._children: list[Fields] = []
        self.problems: list[str] = []
        self.notes: list[str] = []

    def note(self, note: str) -> None:
        """Count an event that is no problem: the log has one line for the file."""
        self.notes.append(note)

    def problem(self, name: str, message: str) -> None:
        """Report a problem of the field `name`."""
        self.problems.append(f'field "{self._place}{name}": {message}')

    def text(self, name: str, *, optional: bool = False) -> str:
        """Return a text unchanged; white space alone is a problem, or empty if the field is optional."""
        value = self._value(name, str, optional)
        is_blank = value is not None and not value.strip()
        if is_blank and not optional:
            self.problem(name, "expected text, got only white space" if value else "expected text, got empty text")
        return "" if value is None or is_blank else value

    def texts(self, name: str, *, optional: bool = False, may_be_empty: bool = False) -> tuple[str, ...]:
        """Return the texts of a text or of a list, which has at least one text unless it `may_be_empty`."""
        if not isinstance(self._values.get(name), list):
            text = self.text(name, optional=optional)
            return (text,) if text else ()
        items = self._items(name, optional)
        if not (items._values or may_be_empty):
            self.problem(name, "expected text or list of texts, got empty list")
        return tuple(items.text(item) for item in items._values)

    def identifier(self, name: str) -> str:
        """Return an optional text, or a whole number as its digits."""
        value = self._values.get(name)
        if type(value) is not int:
            return self.text(name, optional=True)
        self._read.add(name)
        return str(value)

    def number(self, name: str) -> float | None:
        """Return a finite number, also from a text, or None if the field has none."""
        self._read.add(name)
        value: Any = self._values.get(name)
        try:
            number = float(value) if type(value) in (int, float, str) else math.nan
        except (ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None

    def has(self, name: str) -> bool:
        """Return True if the field is present and not null."""
        self._read.add(name)
        return self._values.get(name) is not None

    def value(self, name: str) -> Any:
        """Return the value of an optional field of any type, None if the field is absent."""
        self._read.add(name)
        return self._values.get(name)

    def all_values(self) -> dict[str, Any]:
        """Return all fields, and count them as read."""
        self._read.update(self._values)
        return self._values

    def is_list(self, name: str) -> bool:
        """Return True if the field is a list."""
        return isinstance(self._values.get(name), list)

    def is_blank(self, name: str) -> bool:
        """Return True if the field is a text without content."""
        value = self._values.get(name)
        return isinstance(value, str) and not value.strip()

    def leave_out(self) -> None:
        """Count no field as unread: the object is left out as a whole."""
        self._read.update(self._values)

    def flag(self, name: str) -> bool:
        """Return an optional true or false."""
        return self._value(name, bool, True) or False

    def object(self, name: str, *, optional: bool = False) -> "Fields":
        """Return the fields of an object."""
        return self._child(name, name, self._value(name, dict, optional))

    def objects(self, name: str, *, optional: bool = False) -> "list[Fields]":
        """Return the fields of each object of a list."""
        items = self._items(name, optional)
        return [self._child(item, f"{name}[]", items._value(item, dict, False)) for item in items._values]

    @property
    def num_missing(self) -> int:
        """The number of fields that are required and absent, without those of nested objects."""
        return len(self._missing)

    def unread(self) -> list[tuple[str, str]]:
        """Return each field with content that was not read, also in nested objects, and the field that may be meant.

        The second is "" if the name resembles none of the fields that this object lacks. Items of lists have the place
        `name[]`. Names of the user's own in `metadata` are left out.
        """
        fields = []
        if not self._values.keys() <= self._read:
            lacking = frozenset(
                n for n in self._read if not (self._values.get(n) or self._values.get(_ALTERNATIVES.get(n, n)))
            )
            is_free_form = self._kind.endswith(_FREE_FORM)
            for name in () if is_free_form and not lacking else self._values:
                if name in self._read or name in _EXPECTED_UNREAD or not self._values[name]:
                    continue
                nearest = nearest_field(name, lacking)
                # The problem of a missing field names the likely meant one.
                if nearest not in self._missing and (nearest or not is_free_form):
                    fields.append((self._kind + name, nearest and self._kind + nearest))
        for child in self._children:
            fields += child.unread()
        return fields

    def _child(self, name: str, kind: str, value: dict[str, Any] | None) -> "Fields":
        child = Fields(value or {}, f"{self._place}{name}.", f"{self._kind}{kind}.")
        if value is not None:  # else one problem, not one for each missing field
            child.problems = self.problems
            self._children.append(child)
        return child

    def _items(self, name: str, optional: bool) -> "Fields":
        """Return the items of a list as fields named `name[0]`, `name[1]`, ..."""
        values = self._value(name, list, optional) or []
        items = Fields({f"{name}[{i}]": item for i, item in enumerate(values)}, self._place, self._kind)
        items.problems = self.problems
        return items

    def _value(self, name: str, kind: type[T], optional: bool) -> T | None:
        self._read.add(name)
        value = self._values.get(name)
        if isinstance(value, kind):
            return value
        if name not in self._values and not optional:
            self._report_missing(name, _TYPES[kind])
        elif value is not None or not optional:
            self.problem(name, f"expected {_TYPES[kind]}, got {type_name(value)}")
        return None

    def _report_missing(self, name: str, kind: str) -> None:
        earlier = self._missing_problem() if self._missing else None
        self._missing[name] = kind
        if earlier is None:
            self.problems.append(self._missing_problem())
        else:
            self.problems[self.problems.index(earlier)] = self._missing_problem()

    def _missing_problem(self) -> MissingFields:
        """Return one problem for all missing fields, with the fields that the object has and the likely meant ones."""
        names = [f'"{self._place}{name}"' for name in self._missing]
        if len(names) == 1:
            [kind] = self._missing.values()
            problem = f"field {names[0]}: expected {kind}, got no such field"
        else:
            problem = f"fields {', '.join(names)}: expected them, got no such fields"
        meant = {name: nearest_field(name, frozenset(self._missing)) for name in self._values}
        hints = [
            f"is {quoted(name)} meant{f' for {quoted(nearest)}' if len(names) > 1 else ''}?"
            for name, nearest in meant.items()
            if nearest
        ]
        has = f"the {'object' if self._place else 'row'} has {listed(self._values)}"
        advice = "" if self._place or not is_convertible(self._values) else f". {CONVERT_ADVICE}"
        return MissingFields(f"{problem}; {has}{f' ({chr(32).join(hints)})' if hints else ''}{advice}")


@lru_cache(maxsize=10_000)
def nearest_field(name: str, fields: frozenset[str]) -> str:
    """Return the one of `fields` that `name` misspells, or is another name of; "" if there is none."""
    if len(name) > _MAX_LENGTH_SHOWN:
        return ""
    plain = name.casefold().replace("-", "_").replace(" ", "_")
    if field := next((field for field in sorted(fields) if plain in _OTHER_NAMES_OF.get(field, ())), ""):
        return field
    return next(iter(get_close_matches(plain, sorted(fields), 1, 0.8)), "")


def is_convertible(names: Iterable[str]) -> bool:
    """Return True if a row or object with these fields is in a format of recipes/convert.py."""
    present = {*names}
    return not present & _OWN_FIELDS and any(fields <= present for fields in _CONVERTIBLE_FIELDS)


def type_name(value: object) -> str:
    """Return the name of the type of `value` in JSON, as messages use it."""
    return "null" if value is None else _TYPES[type(value)]


def listed(names: Iterable[str]) -> str:
    """Return the first names, quoted, for a message."""
    texts = [quoted(name) for name in names]
    more = len(texts) - _MAX_NAMES_SHOWN
    return ", ".join(texts[:_MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "") or "no fields"


def quoted(value: object) -> str:
    """Return a name or value for a message: on one line, printable, of limited length."""
    text = str(value)
    text = text if len(text) <= _MAX_LENGTH_SHOWN else text[: _MAX_LENGTH_SHOWN - 1] + "…"
    return "".join(
        char if char.isprintable() else json.dumps(char)[1:-1] for char in json.dumps(text, ensure_ascii=False)
    )
