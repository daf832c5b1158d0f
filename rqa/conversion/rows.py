"""Parts that the formats share: texts, passages and questions in the form that rqa reads."""

from collections.abc import Iterator, Sequence
from typing import Any

from rqa.data.fields import Fields, type_name
from rqa.data.records import Passage

Row = dict[str, Any]
# The place of a row, its fields, which collect problems and notes, and the row that rqa reads.
Converted = tuple[str, Fields, Row]
_SOURCE_NAMES = ("source", "file_path", "file_name", "filename", "url", "document_id")  # of metadata, best first
_TITLE_NAMES = ("title", "document_title", "Title")


def passage(text: str, title: str = "", source: str = "", **others: Any) -> Row:
    """Return a passage. The default source is the title: later splits by document need one."""
    metadata = {"source": source or title, "title": title, **others}
    return {"page_content": text, "metadata": {name: value for name, value in metadata.items() if value}}


def metadata_of(values: object) -> Row:
    """Return metadata with texts as source and title, and all other fields as they are."""
    metadata = dict(values) if isinstance(values, dict) else {}
    source = _first_text(metadata, _SOURCE_NAMES)
    title = _first_text(metadata, _TITLE_NAMES)
    own = {"source": source or title, "title": title}
    others = {name: value for name, value in metadata.items() if name not in own}
    return {**{name: value for name, value in own.items() if value}, **others}


def _first_text(values: Row, names: Sequence[str]) -> str:
    texts = (value for name in names if isinstance(value := values.get(name), str))
    return next((text for text in texts if text.strip()), "")


def texts(row: Fields, name: str) -> list[str]:
    """Return the distinct texts of an optional text or list. Empty ones are left out and counted."""
    value = row.value(name)
    items = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(items, list):
        row.problem(name, f"expected text or list of texts, got {type_name(items)}")
        return []
    if wrong := [item for item in items if not isinstance(item, str)]:
        row.problem(name, f"expected list of texts, got {type_name(wrong[0])} in it")
        return []
    kept = [item for item in items if item.strip()]
    if len(kept) < len(items):
        row.note(f"empty texts are left out of {name}")
    return list(dict.fromkeys(kept))


def with_text(row: Fields, name: str) -> list[Fields]:
    """Return the objects of an optional list that have a text. Empty ones are left out and counted."""
    objects = row.objects(name, optional=True)
    blank = [each for each in objects if each.is_blank("text")]
    for each in blank:
        each.leave_out()
    if blank:
        row.note(f"passages without text are left out of {name}")
    return [each for each in objects if each not in blank]


def is_left_out(row: Fields, name: str) -> bool:
    """Return True, and count the row, if the text of a passage is empty."""
    if is_blank := row.is_blank(name):
        row.leave_out()
        row.note("passages without text are left out")
    return is_blank


def first_identifier(row: Fields, *names: str) -> str:
    """Return the first id that the row has, "" if it has none."""
    return next(filter(None, map(row.identifier, names)), "")


def question_row(
    row: Fields,
    question: str,
    answers: Sequence[str],
    *,
    id: str = "",
    gold: Sequence[Row] = (),
    negatives: Sequence[Row] = (),
    contexts: Sequence[Row] = (),
    unanswerable: bool = False,
) -> Row:
    """Return a question in the form that rqa reads.

    Without an answer it has an empty list of answers, and a note: retrieval is measured with it, training is not
    possible. Repeated passages, and negatives that are gold, are left out and counted.
    """
    if not (answers or unanswerable):
        row.note('questions without an answer have "answers": []; they can measure retrieval, and cannot train')
    gold_docs = list(_distinct(row, gold, "gold_docs", set()))
    known = {Passage(each["page_content"]).id for each in gold_docs}
    negative_docs = list(_distinct(row, negatives, "hard_neg_docs", known))
    ctxs = [{"text": each["page_content"], **_title_and_id(each["metadata"])} for each in contexts]
    return {
        **({"id": id} if id else {}),
        "question": question,
        **_answer_fields(list(answers), unanswerable),
        "gold_docs": gold_docs,
        **({"hard_neg_docs": negative_docs} if negative_docs else {}),
        **({"ctxs": ctxs} if ctxs else {}),
    }


def _answer_fields(answers: list[str], unanswerable: bool) -> Row:
    fields: Row = {"unanswerable": True} if unanswerable else {}
    if answers:
        fields["gold_answer"] = answers[0] if len(answers) == 1 else answers
    elif not unanswerable:
        fields["answers"] = []
    return fields


def _title_and_id(metadata: Row) -> Row:
    fields = {"title": metadata.get("title"), "id": metadata.get("source")}
    return {name: value for name, value in fields.items() if value}


def _distinct(row: Fields, passages: Sequence[Row], name: str, known: set[str]) -> Iterator[Row]:
    """Yield the passages whose text is not among the ids `known`, each once."""
    known = set(known)
    for each in passages:
        if (identity := Passage(each["page_content"]).id) in known:
            row.note(f"passages with the text of an earlier one are left out of {name}")
        else:
            known.add(identity)
            yield each
