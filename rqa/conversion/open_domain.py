"""Data sets of open-domain questions: Natural Questions (DPR, NQ-open), FlashRAG, RAFT."""

from collections.abc import Iterator
from typing import Any

from rqa.conversion.reading_comprehension import hotpotqa_passages
from rqa.conversion.rows import (
    Converted,
    Row,
    first_identifier,
    is_left_out,
    passage,
    question_row,
    texts,
    with_text,
)
from rqa.conversion.source import Source
from rqa.data.fields import Fields, type_name
from rqa.data.records import Passage

PASSAGE_FIELDS = (
    "context contexts ctxs supporting_facts oracle_context positive_ctxs golden_answers gold_answer ground_truth "
    "ground_truths reference_contexts gold_docs hard_neg_docs passages"
)
DPR_KINDS = ("positive", "hard_negative")


def is_dpr(row: Row) -> bool:
    """Return True for a row of DPR's training files, such as biencoder-nq-train.json."""
    return {"question", "positive_ctxs"} <= row.keys()


def dpr_questions(source: Source) -> Iterator[Converted]:
    """Yield the questions of DPR. `negative_ctxs`, random passages, are no hard negatives: they are not read."""
    for place, row in source.rows():
        gold, negatives = (list(map(_dpr_passage, with_text(row, f"{kind}_ctxs"))) for kind in DPR_KINDS)
        id = first_identifier(row, "id", "_id")
        answers = texts(row, "answers")
        yield place, row, question_row(row, row.text("question"), answers, id=id, gold=gold, negatives=negatives)


def _dpr_passage(row: Fields) -> Row:
    id = first_identifier(row, "passage_id", "psg_id", "id")
    return passage(row.text("text"), row.text("title", optional=True), id=id)


def is_nq_open(row: Row) -> bool:
    """Return True for a row with a question and answers, without passages."""
    return {"question", "answer"} <= row.keys() and not row.keys() & {*PASSAGE_FIELDS.split()}


def nq_open_questions(source: Source) -> Iterator[Converted]:
    """Yield questions without passages."""
    for place, row in source.rows():
        id = first_identifier(row, "id", "_id")
        yield place, row, question_row(row, row.text("question"), texts(row, "answer"), id=id)


def is_flashrag(row: Row) -> bool:
    """Return True for a row of FlashRAG's data sets."""
    return {"question", "golden_answers"} <= row.keys()


def flashrag_questions(source: Source) -> Iterator[Converted]:
    """Yield the questions of FlashRAG. The metadata of HotpotQA has the paragraphs of the question."""
    for place, row in source.rows():
        metadata = row.object("metadata", optional=True)
        passages: dict[str, Any] = {}
        if metadata.has("context") and metadata.has("supporting_facts"):
            passages = hotpotqa_passages(metadata)
            row.note("of metadata only the paragraphs are read")
        elif metadata.all_values():
            row.note("metadata is not read")
        id = row.identifier("id")
        yield place, row, question_row(row, row.text("question"), texts(row, "golden_answers"), id=id, **passages)


def is_flashrag_corpus(row: Row) -> bool:
    """Return True for a row of FlashRAG's corpora."""
    return {"id", "contents"} <= row.keys()


def flashrag_passages(source: Source) -> Iterator[Converted]:
    """Yield the passages of a corpus of FlashRAG. The first of several lines is the title, in quotation marks."""
    for place, row in source.rows():
        if not is_left_out(row, "contents"):
            title, text = _title_and_text(row.text("contents"))
            title, id = row.text("title", optional=True) or title, row.identifier("id")
            yield place, row, passage(text, title, title or id, id=id)


def _title_and_text(contents: str) -> tuple[str, str]:
    """Return the first line without its quotation marks, and the rest; of one line, no title."""
    first, _, rest = contents.partition("\n")
    if not rest.strip() or not first.strip():
        return "", contents
    return first[1:-1] if len(first) > 2 and first[0] == first[-1] == '"' else first, rest


def is_raft(row: Row) -> bool:
    """Return True for a row of RAFT in its own form; those of chats and completions have no passages."""
    return {"question", "oracle_context", "cot_answer"} <= row.keys()


def raft_questions(source: Source) -> Iterator[Converted]:
    """Yield the questions of RAFT. The answer is the whole `cot_answer`, with its reasoning."""
    for place, row in source.rows():
        gold = passage(row.text("oracle_context"))
        documents = [passage(text) for text in _raft_documents(row)]
        oracle = Passage(gold["page_content"]).id
        negatives = [each for each in documents if Passage(each["page_content"]).id != oracle]
        if len(negatives) == len(documents):
            row.note("oracle_context is not in the context; it is gold")
        answers = [row.text("cot_answer")]
        id = row.identifier("id")
        yield place, row, question_row(row, row.text("question"), answers, id=id, gold=[gold], negatives=negatives)


def _raft_documents(row: Fields) -> list[str]:
    """Return the texts of {"sentences": [[text, ...]]}. The titles are all "placeholder_title"."""
    value = row.value("context")
    documents = value.get("sentences") if isinstance(value, dict) else value
    if isinstance(documents, list) and documents and isinstance(documents[0], list):
        documents = [text for inner in documents for text in (inner if isinstance(inner, list) else [inner])]
    if not isinstance(documents, list) or not all(isinstance(text, str) for text in documents):
        row.problem("context", f"expected an object with lists of texts as sentences, got {type_name(value)}")
        return []
    if not all(text.strip() for text in documents):
        row.note("empty texts are left out of context")
    return [text for text in documents if text.strip()]
