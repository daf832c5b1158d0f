"""feedback.jsonl of recipes/serve.py: answers that users rated as correct become gold answers."""

from collections.abc import Iterator

from rqa.conversion.rows import Converted, Row, passage, question_row
from rqa.conversion.source import Source
from rqa.data.citations import cited_numbers, renumber
from rqa.data.fields import Fields


def is_rqa_feedback(row: Row) -> bool:
    """Return True for a row of feedback.jsonl."""
    return {"question", "answer", "passages", "correct"} <= row.keys()


def feedback_questions(source: Source) -> Iterator[Converted]:
    """Yield the questions with an answer that is rated as correct. The others are left out and counted."""
    for place, row in source.rows():
        if not row.has("correct"):
            row.problem("correct", "expected true or false, got nothing")
        if row.flag("correct"):
            yield place, row, _question(row)
        elif not row.problems:
            row.leave_out()
            row.note("answers that are rated as wrong are left out: no field has the right answer")


def _question(row: Fields) -> Row:
    """Return a question. Its gold passages are those that the answer cites, or all of the prompt if it cites none."""
    row.value("time")
    answer, passages = row.text("answer"), [_passage(each) for each in row.objects("passages")]
    numbers = {*cited_numbers(answer)} if row.flag("citations") else set[int]()
    cited = sorted(number for number in numbers if 1 <= number <= len(passages))
    if len(cited) < len(numbers):
        row.note("citations of a number without a passage are removed from the answers")
    answer = renumber(answer, dict.fromkeys(numbers) | {old: new for new, old in enumerate(cited, 1)})
    gold = [passages[number - 1] for number in cited] or passages
    question, answers = row.text("question"), [answer] if answer.strip() else []
    turns = row.objects("chat_history", optional=True)
    history = [{name: turn.text(name) for name in ("speaker", "message")} for turn in turns]
    return {**question_row(row, question, answers, id=row.identifier("id"), gold=gold), "chat_history": history}


def _passage(row: Fields) -> Row:
    row.leave_out()  # the other fields are those of one prompt: number, score
    sources = row.texts("sources", optional=True, may_be_empty=True)
    return passage(row.text("text"), row.text("title", optional=True), ", ".join(sources))
