"""Hard negatives: passages that a retriever ranks high for a question and that do not answer it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rqa.atomic_files import atomic_file, json_text
from rqa.data.data_file import open_data
from rqa.data.file_report import FileReport
from rqa.data.jsonl import read_array, read_rows
from rqa.data.records import Example, Passage
from rqa.data.words import contains_words, words
from rqa.retrieval.retrieve import Retrieval, Retrieved
from rqa.terminal import track

Scorer = Callable[[str, Sequence[str]], NDArray[np.float32]]  # `Reranker.scores`

MIN_ANSWER_CHARACTERS = 3  # a shorter answer, such as "no" or "7", is in most passages


def mine_negatives(
    examples: Sequence[Example],
    queries: Sequence[str],
    retrieval: Retrieval,
    *,
    negatives_per_question: int,
    first_rank: int,
    last_rank: int,
    max_gold_overlap: float = 0.8,
    score: Scorer | None = None,
    score_margin: float = 0.0,
) -> tuple[list[list[Passage]], dict[str, int]]:
    """Return the negatives of each example, best ranked first, and counts.

    Candidates are the passages at `first_rank` (from 1) to `last_rank` of `retrieval`. Left out are gold passages, near
    copies of them, whose words overlap by `max_gold_overlap` or more, and passages that contain an answer. With
    `score`, the cross-encoder whose scores `retrieval` has, also those with at least the best score of a gold passage
    minus `score_margin`. An answerable question without gold passages gets no
    negatives, because candidates may answer it. Counts of passages are of all candidates.
    """
    counts: Counter[str] = Counter()

    def chosen(example: Example, query: str, hits: Sequence[Retrieved]) -> Iterator[Passage]:
        golds = {passage.id: passage.content for passage in example.gold_passages}
        if not golds and not example.unanswerable:
            counts["questions without gold passages"] += 1
            return
        answers = [] if example.unanswerable else [answer for answer in example.answers if _is_searched(answer)]
        gold_words = [{*words(passage.text)} for passage in example.gold_passages]
        limit = score(query, [*golds.values()]).max() - score_margin if score and golds else None
        for hit in hits:
            if hit.passage.id in golds:
                counts["left out: gold"] += 1
            elif any(_overlap({*words(hit.passage.text)}, own) >= max_gold_overlap for own in gold_words):
                counts["left out: near copy of gold"] += 1
            elif any(contains_words(hit.passage.content, answer) for answer in answers):
                counts["left out: contains an answer"] += 1
            elif limit is not None and hit.score >= limit:
                counts["left out: score near gold"] += 1
            else:
                yield hit.passage

    negatives = []
    for i in track(range(len(examples)), "mining negatives", unit="questions"):
        hits = retrieval.retrieved[i][first_rank - 1 : last_rank]
        own = [*chosen(examples[i], queries[i], hits)][:negatives_per_question]
        counts["negatives"] += len(own)
        counts["questions with fewer negatives"] += len(own) < negatives_per_question
        negatives.append(own)
    reasons = ("gold", "near copy of gold", "contains an answer", "score near gold")
    names = [f"left out: {reason}" for reason in reasons]
    further = ("questions without gold passages", "questions with fewer negatives")
    return negatives, {"questions": len(examples)} | {name: counts[name] for name in ("negatives", *names, *further)}


def _overlap(one: set[str], other: set[str]) -> float:
    """Return the share of distinct words that both texts have (the Jaccard index), from 0 to 1."""
    return len(one & other) / len(one | other) if one or other else 1.0


def _is_searched(answer: str) -> bool:
    return len(" ".join(words(answer))) >= MIN_ANSWER_CHARACTERS


def write_negatives(
    source: str | Path, examples: Sequence[Example], negatives: Sequence[Sequence[Passage]], output: Path
) -> None:
    """Write the rows of the examples in `source` to a .jsonl file, with `hard_neg_docs` and all other fields kept.

    The examples are those of `source`; rows with problems have none, and are left out. Raises OSError.
    """
    rows = dict(_raw_rows(source))
    with atomic_file(output) as file:
        for example, own in zip(examples, negatives, strict=True):
            row = rows[example.where] | {"hard_neg_docs": [_document(passage) for passage in own]}
            file.write(f"{json_text(row)}\n".encode())


def _document(passage: Passage) -> dict[str, Any]:
    metadata = {"source": next(iter(passage.sources), ""), "title": passage.title}
    return {"page_content": passage.text, "metadata": {name: text for name, text in metadata.items() if text}}


def _raw_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row, as `Example.where`, and its fields as JSON values."""
    data, report = open_data(path), FileReport(path)  # its problems are known: the examples were read from it
    if str(path).endswith(".json"):
        for index, fields in read_array(path, data, report):
            yield f"{path}[{index}]", fields.all_values()
    else:
        for line, *_, fields in read_rows(path, data, report):
            yield f"{path}:{line}", fields.all_values()
