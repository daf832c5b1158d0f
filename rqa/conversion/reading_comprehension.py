"""Data sets whose questions come with their paragraphs: SQuAD and HotpotQA."""

from collections.abc import Iterable, Iterator
from typing import Any

from rqa.conversion.rows import Converted, Row, first_identifier, passage, question_row, texts
from rqa.conversion.source import Source
from rqa.data.fields import Fields, type_name

# SQuAD: one object {"data": [{title, paragraphs: [{context, qas: [{id, question, answers, is_impossible?}]}]}]}, or
# rows {id, title, context, question, answers: {text: [...], answer_start: [...]}}, as in the hub's copy.


def is_squad(values: Row) -> bool:
    """Return True for the object of a SQuAD file, or for a row of the hub's copy."""
    articles = values.get("data")
    if isinstance(articles, list) and articles and isinstance(articles[0], dict):
        return "paragraphs" in articles[0]
    has_names = {"question", "context", "answers"} <= values.keys()
    return has_names and isinstance(values["context"], str) and isinstance(values["answers"], dict)


def squad_questions(source: Source) -> Iterator[Converted]:
    """Yield the questions of SQuAD. The paragraph is gold, also of an unanswerable question."""
    if source.shape == "object" and "data" in source.first_rows[0]:
        yield from _squad_articles(source)
        return
    for place, row in source.rows():
        answers = texts(row.object("answers"), "text")
        paragraph = passage(row.text("context"), row.text("title", optional=True))
        yield place, row, _squad_row(row, answers, paragraph, is_impossible=not answers)


def _squad_articles(source: Source) -> Iterator[Converted]:
    report, values = source.report(), Fields(source.object())
    for i, article in enumerate(values.objects("data")):
        title = article.text("title", optional=True)
        for j, paragraph in enumerate(article.objects("paragraphs")):
            place = f"{source.path}: .data[{i}].paragraphs[{j}]"
            paragraph.problems = []  # its own, not those of the file
            gold, rows = passage(paragraph.text("context"), title), _objects(paragraph, "qas")
            for k, values_of_row in enumerate(rows):
                row = Fields(values_of_row)
                row.problems = [*paragraph.problems]
                yield f"{place}.qas[{k}]", row, _squad_question(row, gold)
                report.add_row(f"{place}.qas[{k}]", row)
            if paragraph.problems and not rows:
                report.add_bad_row(place, *paragraph.problems)
    if values.problems or values.unread():
        report.add_row(str(source.path), values)


def _objects(fields: Fields, name: str) -> list[Row]:
    """Return the objects of a list, without fields: each is a row with its own problems."""
    value = fields.value(name)
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    fields.problem(name, f"expected list of objects, got {type_name(value)}")
    return []


def _squad_question(row: Fields, paragraph: Row) -> Row:
    is_impossible = row.flag("is_impossible")
    answers = dict.fromkeys(answer.text("text") for answer in row.objects("answers", optional=True))
    return _squad_row(row, [] if is_impossible else [*answers], paragraph, is_impossible=is_impossible)


def _squad_row(row: Fields, answers: list[str], paragraph: Row, *, is_impossible: bool) -> Row:
    question, id = row.text("question"), row.identifier("id")
    return question_row(row, question, answers, id=id, gold=[paragraph], unanswerable=is_impossible)


# HotpotQA: rows {_id, question, answer, supporting_facts: [[title, sentence]], context: [[title, [sentence]]]}. In the
# hub's copy the lists of pairs are {title: [...], sent_id: [...]} and {title: [...], sentences: [[...]]}.


def is_hotpotqa(row: Row) -> bool:
    """Return True for a row of HotpotQA. The rows of its test set have no supporting facts."""
    context = row.get("context")
    pairs = isinstance(context, list) and context and isinstance(context[0], list)
    return "question" in row and (bool(pairs) or (isinstance(context, dict) and "supporting_facts" in row))


def hotpotqa_questions(source: Source) -> Iterator[Converted]:
    """Yield the questions of HotpotQA. Paragraphs with supporting facts are gold, the others hard negatives."""
    for place, row in source.rows():
        id = first_identifier(row, "_id", "id")
        answers = texts(row, "answer")
        yield place, row, question_row(row, row.text("question"), answers, id=id, **hotpotqa_passages(row))


def hotpotqa_passages(row: Fields) -> dict[str, Any]:
    """Return the lists of passages of a row, as `question_row` takes them.

    Without supporting facts all are contexts of the question.
    """
    paragraphs = [passage(text, title) for title, text in _paragraphs(row)]
    if not row.has("supporting_facts"):
        return {"contexts": paragraphs}
    supporting = {title for title, _ in _pairs(row, "supporting_facts", "sent_id")}
    gold = [each for each in paragraphs if each["metadata"].get("title", "") in supporting]
    if supporting - {each["metadata"].get("title", "") for each in gold}:
        row.note("paragraphs with supporting facts are not in the context")
    return {"gold": gold, "negatives": [each for each in paragraphs if each not in gold]}


def _paragraphs(row: Fields) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of each paragraph that has a text."""
    for title, sentences in _pairs(row, "context", "sentences"):
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            row.problem("context", f"expected lists of sentences, got {type_name(sentences)}")
        elif not (text := _joined(sentences)).strip():
            row.note("paragraphs without text are left out of context")
        else:
            yield title, text


def _joined(sentences: Iterable[str]) -> str:
    """Return the sentences as one text, with a space where neither has one: HotpotQA has it, its kin lack it."""
    text = ""
    for sentence in sentences:
        needs_space = text and sentence and not (text[-1].isspace() or sentence[0].isspace())
        text += " " * bool(needs_space) + sentence
    return text


def _pairs(row: Fields, name: str, second: str) -> list[tuple[str, Any]]:
    """Return the (title, value) pairs of a field: a list of pairs, or {title: [...], `second`: [...]}."""
    value = row.value(name)
    if isinstance(value, dict):
        titles, values = value.get("title"), value.get(second)
        is_columns = isinstance(titles, list) and isinstance(values, list) and len(titles) == len(values)
        pairs: Any = list(zip(titles, values, strict=True)) if is_columns else None  # type: ignore[arg-type]
    else:
        pairs = value
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        row.problem(name, f"expected a list of pairs [title, value], got {type_name(value)}")
        return []
    return [(title, value) for title, value in pairs]


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)
