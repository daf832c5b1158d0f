"""BEIR: a folder with corpus.jsonl, queries.jsonl and qrels/*.tsv."""

from collections.abc import Iterator
from pathlib import Path

from rqa.conversion.rows import Converted, Row, is_left_out, passage, question_row
from rqa.conversion.source import Source
from rqa.data.data_file import open_data, read_all
from rqa.data.fields import Fields, listed
from rqa.errors import InputError

CORPUS, QUERIES = ("corpus.jsonl", "corpus.jsonl.gz"), ("queries.jsonl", "queries.jsonl.gz")
Judgments = dict[str, tuple[str, list[str]]]  # place, and relevant ids of the corpus, by the id of the query


def is_beir(source: Source) -> bool:
    """Return True for a folder with corpus and queries."""
    return all(any((source.path / name).is_file() for name in names) for names in (CORPUS, QUERIES))


def beir_questions(source: Source) -> Iterator[Converted]:
    """Yield the queries that one file of qrels judges. They have relevant passages and no answers.

    Memory holds the relevant passages alone.
    """
    judgments = _judgments(source)
    passages = _passages_with_ids(source, {id for _, ids in judgments.values() for id in ids})
    report = None
    for place, row in source.rows_of(*QUERIES):
        id = row.identifier("_id")
        if not id:
            row.problem("_id", "expected text, got none")
        if id not in judgments:
            row.leave_out()
            row.note("queries without relevant passages in the qrels are left out")
            continue
        _, ids = judgments.pop(id)
        if missing := [each for each in ids if each not in passages]:
            row.problem("_id", f"expected the relevant passages in the corpus, got none with the id {listed(missing)}")
        gold = [relevant for each in ids if (relevant := passages.get(each))]
        yield place, row, question_row(row, row.text("text"), [], id=id, gold=gold)
    for id, (place, _) in judgments.items():
        report = report or source.report(_qrels_path(source))
        report.add_bad_row(place, f"expected the id of a query, got {listed([id])}, which the queries lack")


def beir_passages(source: Source) -> Iterator[Converted]:
    """Yield the passages of the corpus."""
    for place, row in source.rows_of(*CORPUS):
        if converted := _passage(row):
            yield place, row, converted


def _passage(row: Fields) -> Row | None:
    """Return a passage, None if it is empty. A passage of a title alone has it as its text."""
    id, title = row.identifier("_id"), row.text("title", optional=True)
    if not (row.is_blank("text") and title):
        return None if is_left_out(row, "text") else passage(row.text("text"), title, title or id, id=id)
    row.note("passages without text have their title as text")
    return passage(title, source=title, id=id)


def _passages_with_ids(source: Source, wanted: set[str]) -> dict[str, Row | None]:
    passages: dict[str, Row | None] = {}
    for _, row in source.rows_of(*CORPUS):
        if (id := row.identifier("_id")) in wanted:
            if id in passages:
                row.problem("_id", f"{listed([id])} is already the id of an earlier passage")
            relevant = _passage(row)
            if not row.problems:
                passages[id] = relevant
        row.leave_out()
    return passages


def _qrels_path(source: Source) -> Path:
    """Return the file of qrels that `split` names, or the only one. Raises InputError if there are several."""
    if source.split:
        return source.file(f"qrels/{source.split}.tsv")
    names = sorted(path.stem for path in source.path.glob("qrels/*.tsv"))
    if len(names) > 1:
        raise InputError(f"{source.path}: expected one file in qrels, got {listed(names)}. Choose one with --split.")
    return source.file(f"qrels/{names[0] if names else 'test'}.tsv")


def _judgments(source: Source) -> Judgments:
    """Return the relevant ids of each query: those with a score above 0. The first line may be a header."""
    path = _qrels_path(source)
    report = source.report(path)
    judgments: Judgments = {}
    lines = str(read_all(open_data(path)), "utf-8", errors="replace").removeprefix("\ufeff").rstrip().split("\n")
    for number, line in enumerate(lines, 1):
        query, passage_id, score = [*line.rstrip("\r").split("\t"), "", "", ""][:3]
        if number == 1 and not _is_whole(score):
            continue
        place = f"{path}:{number}"
        row = Fields({})
        if not (query and passage_id and _is_whole(score)) or line.count("\t") != 2:
            row.problems.append("expected query-id, corpus-id and a whole number as score, with tabs between them")
        elif int(score) > 0:
            judgments.setdefault(query, (place, []))[1].append(passage_id)
        else:
            row.note("passages with a score of 0 or less are not relevant: they are left out")
        report.add_row(place, row)
    return judgments


def _is_whole(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()
