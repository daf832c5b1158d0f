"""Precision and recall of the citations in answers, against gold passages."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rqa.data.citations import cited_numbers
from rqa.evaluation.results import PassageRecord


def citation_scores(cited: Iterable[int], read_ids: Sequence[str], gold_ids: Iterable[str]) -> dict[str, float]:
    """Score the citations of one answer, in per cent; `read_ids` are the passages of its prompt in order.

    - cited_answers: 100 if the answer has a citation.
    - citation_precision: the share of the distinct cited numbers whose passage is gold. A number without a passage is
      wrong. Absent without citations.
    - citation_recall: the share of the gold passages in the prompt that are cited. Absent without gold in the prompt.
    """
    numbers, gold = {*cited}, {*gold_ids}
    ids = {read_ids[number - 1] for number in numbers if 1 <= number <= len(read_ids)}
    right = [number for number in numbers if 1 <= number <= len(read_ids) and read_ids[number - 1] in gold]
    scores = {"cited_answers": 100.0 * bool(numbers)}
    if numbers:
        scores["citation_precision"] = 100.0 * (len(right) / len(numbers))
    if read_gold := gold.intersection(read_ids):
        scores["citation_recall"] = 100.0 * (len(read_gold & ids) / len(read_gold))
    return scores


def score_citations(answer: str, read: Sequence[PassageRecord]) -> dict[str, Any]:
    """Return the ids of the cited passages, and the scores of the citations; `read` are the passages of the prompt."""
    numbers, ids = cited_numbers(answer), [passage.id for passage in read]
    cited = dict.fromkeys(ids[number - 1] for number in numbers if 1 <= number <= len(ids))
    gold = {passage.id for passage in read if passage.is_gold}
    return {"cited_ids": tuple(cited), "citation_scores": citation_scores(numbers, ids, gold)}


def mean_citation_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each score over the answers that have it."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row["citation_scores"].items():
            scores.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in scores.items()}
