"""Exports of libraries: RAGAS, LangChain, LlamaIndex."""

import re
from collections.abc import Iterator
from typing import Any

from rqa.conversion.rows import (
    Converted,
    Row,
    first_identifier,
    is_left_out,
    metadata_of,
    passage,
    question_row,
    texts,
)
from rqa.conversion.source import Source
from rqa.data.fields import Fields, type_name

_HOP = re.compile(r"<\d+-hop>\s*(?=\S)")  # before the contexts of questions that need several
_SOURCE_RELATION = "1"  # of a node to its document, in LlamaIndex


# RAGAS: rows {user_input, reference, reference_contexts}, or of version 0.1 {question, ground_truth, contexts}


def is_ragas(row: Row) -> bool:
    """Return True for a row of a test set or an evaluation of RAGAS."""
    is_old = "question" in row and bool(row.keys() & {"ground_truth", "ground_truths"})
    return is_old or ("user_input" in row and bool(row.keys() & {"reference", "reference_contexts", "response"}))


def ragas_questions(source: Source) -> Iterator[Converted]:
    """Yield the questions of RAGAS. Contexts that a system retrieved become the contexts of the question."""
    for place, row in source.rows():
        yield place, row, _ragas_row(row) if row.has("user_input") else _old_ragas_row(row)


def _ragas_row(row: Fields) -> Row:
    gold = [_ragas_passage(row, text) for text in texts(row, "reference_contexts")]
    contexts = [passage(text) for text in texts(row, "retrieved_contexts")]
    return question_row(row, row.text("user_input"), texts(row, "reference"), gold=gold, contexts=contexts)


def _old_ragas_row(row: Fields) -> Row:
    """Return a row of version 0.1. Beside the answer of a system, the contexts are those that it retrieved."""
    answers = [*texts(row, "ground_truth"), *texts(row, "ground_truths")]
    contexts, metadata = texts(row, "contexts"), row.value("metadata")
    if not isinstance(metadata, list) or len(metadata) != len(contexts):
        if metadata:
            row.note("metadata is not read: it has not one object for each context")
        metadata = [None] * len(contexts)
    passages = [_ragas_passage(row, *pair) for pair in zip(contexts, metadata, strict=True)]
    if not row.has("answer"):
        return question_row(row, row.text("question"), answers, gold=passages)
    row.note("answer is that of a system: it is not read, and contexts are those that the system retrieved")
    return question_row(row, row.text("question"), answers, contexts=passages)


def _ragas_passage(row: Fields, text: str, metadata: object = None) -> Row:
    if mark := _HOP.match(text):
        row.note("marks such as <1-hop> are removed from the contexts")
    return {"page_content": text[mark.end() :] if mark else text, "metadata": metadata_of(metadata)}


# LangChain: documents {page_content, metadata} or their constructors {lc, kwargs: {...}}; examples {query, answer}


def is_langchain_documents(row: Row) -> bool:
    """Return True for a document, plain or as a constructor."""
    inner = row["kwargs"] if "lc" in row and isinstance(row.get("kwargs"), dict) else row
    return "page_content" in inner


def langchain_passages(source: Source) -> Iterator[Converted]:
    """Yield the documents of LangChain. All their metadata are kept."""
    for place, row in source.rows():
        document = row
        if row.has("kwargs"):
            row.leave_out()
            document = row.object("kwargs")
        document.value("type")
        if is_left_out(document, "page_content"):
            continue
        metadata = metadata_of(document.object("metadata", optional=True).all_values())
        id = document.identifier("id")
        metadata |= {"id": id} if id and "id" not in metadata else {}
        yield place, row, {"page_content": document.text("page_content"), "metadata": metadata}


def is_langchain_qa(row: Row) -> bool:
    """Return True for a question and answer of LangChain's chains for evaluation."""
    inner = row.get("qa_pairs")
    return {"query", "answer"} <= (inner if isinstance(inner, dict) else row).keys()


def langchain_questions(source: Source) -> Iterator[Converted]:
    """Yield the examples of LangChain's evaluation; a context, if there is one, is gold."""
    for place, row in source.rows():
        example = row.object("qa_pairs") if row.has("qa_pairs") else row
        gold = [passage(text) for text in texts(example, "context")]
        id = first_identifier(row, "id")
        yield place, row, question_row(row, example.text("query"), texts(example, "answer"), id=id, gold=gold)


# LlamaIndex: EmbeddingQAFinetuneDataset {queries, corpus, relevant_docs}, LabelledRagDataset {examples}, and nodes


def is_llamaindex_pairs(values: Row) -> bool:
    """Return True for an EmbeddingQAFinetuneDataset."""
    return {"queries", "corpus", "relevant_docs"} <= values.keys()


def llamaindex_pairs_questions(source: Source) -> Iterator[Converted]:
    """Yield the queries of an EmbeddingQAFinetuneDataset. They have relevant passages and no answers."""
    values, report = Fields(source.object()), source.report()
    corpus, relevant = (values.object(name).all_values() for name in ("corpus", "relevant_docs"))
    for id, query in values.object("queries").all_values().items():
        place, row = f"{source.path}: .queries[{id!r}]", Fields({"query": query, "relevant_docs": relevant.get(id)})
        ids = texts(row, "relevant_docs")
        if missing := [each for each in ids if not isinstance(corpus.get(each), str)]:
            row.problem("relevant_docs", f"expected ids of the corpus, got {missing[0]!r}")
        if blank := [each for each in ids if each not in missing and not corpus[each].strip()]:
            row.note("passages without text are left out of relevant_docs")
        gold = [passage(corpus[each], source=each, id=each) for each in ids if each not in {*missing, *blank}]
        yield place, row, question_row(row, row.text("query"), [], id=id, gold=gold)
        report.add_row(place, row)
    if values.problems:
        report.add_bad_row(str(source.path), *values.problems)


def llamaindex_pairs_passages(source: Source) -> Iterator[Converted]:
    """Yield the corpus of an EmbeddingQAFinetuneDataset."""
    report = source.report()
    for id, text in Fields(source.object()).object("corpus").all_values().items():
        place, row = f"{source.path}: .corpus[{id!r}]", Fields({"text": text})
        if not is_left_out(row, "text"):
            yield place, row, passage(row.text("text"), source=id, id=id)
        report.add_row(place, row)


def is_llamaindex_rag(values: Row) -> bool:
    """Return True for a LabelledRagDataset, or for a row of it."""
    examples = values.get("examples")
    first = examples[0] if isinstance(examples, list) and examples else values
    return isinstance(first, dict) and {"query", "reference_answer"} <= first.keys()


def llamaindex_rag_questions(source: Source) -> Iterator[Converted]:
    """Yield the examples of a LabelledRagDataset."""
    for place, row in _items(source, "examples"):
        gold = [passage(text) for text in texts(row, "reference_contexts")]
        yield place, row, question_row(row, row.text("query"), texts(row, "reference_answer"), gold=gold)


def is_llamaindex_nodes(values: Row) -> bool:
    """Return True for a node, or for docstore.json."""
    return "docstore/data" in values or ("id_" in values and bool(values.keys() & {"text", "text_resource"}))


def llamaindex_passages(source: Source) -> Iterator[Converted]:
    """Yield the nodes of LlamaIndex. All their metadata are kept; the default source is the document's id."""
    for place, row in _nodes(source):
        inner = row.object("text_resource") if row.has("text_resource") else row
        if is_left_out(inner, "text"):
            continue
        metadata = metadata_of(row.value("metadata") or row.value("extra_info"))
        document = row.value("relationships")
        relation: Any = document.get(_SOURCE_RELATION) if isinstance(document, dict) else None
        parent = relation.get("node_id") if isinstance(relation, dict) else None
        id = row.identifier("id_")
        if "source" not in metadata:
            metadata["source"] = parent if isinstance(parent, str) and parent else id
        metadata |= {"id": id} if id and "id" not in metadata else {}
        yield place, row, {"page_content": inner.text("text"), "metadata": metadata}


def _nodes(source: Source) -> Iterator[tuple[str, Fields]]:
    if source.shape != "object" or "docstore/data" not in source.first_rows[0]:
        yield from source.rows()
        return
    report = source.report()
    for id, entry in Fields(source.object()).object("docstore/data").all_values().items():
        place, row = f'{source.path}: .["docstore/data"][{id!r}]', Fields(entry if isinstance(entry, dict) else {})
        node = row.object("__data__")
        yield place, node
        report.add_row(place, node)


def _items(source: Source, name: str) -> Iterator[tuple[str, Fields]]:
    """Yield (place, fields) of the objects in a list of the one object, or of the rows of the file."""
    if source.shape != "object" or name not in source.first_rows[0]:
        yield from source.rows()
        return
    report, items = source.report(), source.object()[name]
    for index, item in enumerate(items if isinstance(items, list) else []):
        place, row = f"{source.path}: .{name}[{index}]", Fields(item if isinstance(item, dict) else {})
        if not isinstance(item, dict):
            row.problems.append(f"expected object, got {type_name(item)}")
        yield place, row
        report.add_row(place, row)
