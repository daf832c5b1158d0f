"""One generator read under different contexts: does it read, is it distracted, does position matter, does it refuse?

A generator fits the contexts that it was trained on, and answers worse from better or worse ones (Akimoto, Takeoka and
Oyamada, 2023, "Context Quality Matters in Training Fusion-in-Decoder for Extractive Open-Domain Question Answering"):
one score with one retriever does not tell.

n questions, k passages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput
from rqa.data.records import Example, Passage, distinct
from rqa.errors import InputError
from rqa.evaluation.evaluate import Generate
from rqa.evaluation.metrics import answer_scores
from rqa.evaluation.results import Row
from rqa.evaluation.significance import LEVEL, RESAMPLES, compare, interval, measures, ratio, score_intervals
from rqa.generation.generator import Answer
from rqa.retrieval.retrieve import Retrieved

SCORES = ("em", "f1", "rougeL", "bleu", "refusal")
TITLES = ("EM, %", "F1, %", "ROUGE-L, %", "BLEU", "refused, %")

# The score under the second condition less that under the first. By these definitions context gain = gold gain -
# distractor cost - retrieval loss.
DIFFERENCES = {
    "context_gain": ("none", "retrieved"),
    "gold_gain": ("none", "gold"),
    "distractor_cost": ("gold_and_retrieved", "gold"),
    "retrieval_loss": ("retrieved", "gold_and_retrieved"),
}

# As many of either, whatever k is: precision depends on what share should be refused.
TO_REFUSE = ("distractors", "none")
TO_ANSWER = ("gold", "gold_and_retrieved")


@dataclass(frozen=True)
class Contexts:
    """The readings of the same n questions under each condition, in the same order; see `build_contexts`.

    `unanswerable` are those of the questions to refuse whatever is read; `left_out` counts the others, by the reason.
    """

    k: int
    readings: dict[str, list[GeneratorInput]]
    unanswerable: list[GeneratorInput]
    left_out: dict[str, int]


def build_contexts(examples: Sequence[Example], found: Sequence[Sequence[Retrieved]], *, k: int) -> Contexts:
    """Return what a generator that reads `k` passages reads under each condition.

    `found[i]` are the passages retrieved for `examples[i]`, best first, more than `k` of them: those that are not gold
    are its distractors, even if one should tell the answer. The conditions:

    - gold: the gold passages alone, in their order.
    - retrieved: the first k retrieved, what an evaluation reads.
    - gold_and_retrieved: the same with all gold in it; what retrieval missed comes last, in the place of the last
      distractors. Of k passages, or as many as are gold.
    - gold_at_1 ... gold_at_k: the gold, one after the other where there are several, at this place among the first
      k - 1 distractors.
    - distractors: the first k distractors.
    - none: no passage, closed book.

    Where the prompt is too long, the gold that was put in is cut last: its place decides nothing but its place.

    The questions are those that have an answer, gold passages, and k - 1 distractors, one at least. Raises InputError
    if there are none.
    """
    chosen: list[dict[str, GeneratorInput]] = []
    unanswerable: list[GeneratorInput] = []
    left_out = {"no gold passage": 0, f"fewer than {max(1, k - 1)} distractors": 0}
    without_gold, too_few = left_out
    for example, hits in zip(examples, found, strict=True):
        retrieved = [hit.passage for hit in hits]
        gold = distinct(example.gold_passages)
        distractors = _without(retrieved, gold)
        if example.unanswerable or not example.answers:
            unanswerable.append(GeneratorInput.from_ranked(example, retrieved[:k]))
        elif not gold:
            left_out[without_gold] += 1
        elif len(distractors) < max(1, k - 1):
            left_out[too_few] += 1
        else:
            chosen.append(_conditions(example, retrieved[:k], gold, distractors, k))
    if not chosen:
        reasons = {**left_out, "unanswerable": len(unanswerable)}
        raise InputError(
            "--context_report true: expected questions with an answer, gold passages, and retrieved passages that are "
            f"not gold, found none among {len(examples)}: {_counted(reasons)}"
        )
    return Contexts(k, {name: [of[name] for of in chosen] for name in chosen[0]}, unanswerable, left_out)


def _conditions(
    example: Example, first: list[Passage], gold: list[Passage], distractors: list[Passage], k: int
) -> dict[str, GeneratorInput]:
    missing = _without(gold, first)
    dropped = _without(first, gold)[max(0, k - len(gold)) :]
    at = {
        f"gold_at_{place + 1}": [*distractors[:place], *gold, *distractors[place : k - 1]]  # k passages, of one gold
        for place in range(k)
    }
    return {
        "gold": GeneratorInput.from_ranked(example, gold),
        "retrieved": GeneratorInput.from_ranked(example, first),
        "gold_and_retrieved": _cut_last(
            missing, GeneratorInput.from_ranked(example, [*_without(first, dropped), *missing])
        ),
        **{name: _cut_last(gold, GeneratorInput.from_ranked(example, passages)) for name, passages in at.items()},
        "distractors": GeneratorInput.from_ranked(example, distractors[:k]),
        "none": GeneratorInput.from_ranked(example, ()),
    }


def _without(passages: Sequence[Passage], others: Sequence[Passage]) -> list[Passage]:
    ids = {passage.id for passage in others}
    return [passage for passage in passages if passage.id not in ids]


def _cut_last(best: Sequence[Passage], reading: GeneratorInput) -> GeneratorInput:
    """Return the reading with its passages where they stand, and those that are `best` before the others in rank."""
    ids = {passage.id for passage in best}
    order = sorted(range(len(reading.passages)), key=lambda i: reading.passages[i].id not in ids)
    return replace(reading, ranks=tuple(order.index(i) for i in range(len(order))))


def context_report(contexts: Contexts, generate: Generate, *, refusal_answer: str = REFUSAL_ANSWER) -> dict[str, Any]:
    """Answer every reading, equal ones once, in one call, and return what the answers tell, ready for JSON.

    - conditions: the scores under each, in per cent, with their intervals. `refusal` is the share of answers that are
      `refusal_answer` by the rule of exact match (`metrics.answer_scores`): the same in other words is none.
    - differences: paired, with interval and p-value, of each score. context_gain = retrieved - none; gold_gain = gold -
      none; distractor_cost = gold - gold_and_retrieved; retrieval_loss = gold_and_retrieved - retrieved.
    - positions: see `_spread`. refusals: see `_refusals`.
    - answers: to each question under each condition; to an unanswerable one from what was retrieved.

    Intervals and p-values are those of `rqa.evaluation.significance`. Every process must call this.
    """
    asked = [*dict.fromkeys(chain(*contexts.readings.values(), contexts.unanswerable))]
    answers = dict(zip(asked, generate(asked), strict=True))

    def rows_of(readings: Sequence[GeneratorInput]) -> list[Row]:
        return [_row(reading, answers[reading], refusal_answer) for reading in readings]

    rows = {name: rows_of(readings) for name, readings in contexts.readings.items()}
    unanswerable = rows_of(contexts.unanswerable)
    return {
        "k": contexts.k,
        "questions": len(rows["none"]),
        "unanswerable": len(unanswerable),
        "left_out": contexts.left_out,
        "readings": len(asked),
        "refusal_answer": refusal_answer,
        "level": LEVEL,
        "resamples": RESAMPLES,
        "conditions": {
            name: {
                "scores": {score: measure.value for score, measure in measures(of).items()},
                "intervals": {score: list(ends) for score, ends in score_intervals(of).items()},
                "passage_tokens_cut": sum(answers[reading].num_cut for reading in contexts.readings[name]),
            }
            for name, of in rows.items()
        },
        "differences": {
            name: {score: asdict(difference) for score, difference in compare(rows[first], rows[second]).items()}
            for name, (first, second) in DIFFERENCES.items()
        },
        "positions": _spread([_scores(of, "f1") for name, of in rows.items() if name.startswith("gold_at_")]),
        "refusals": _refusals(rows, unanswerable),
        "answers": [
            {"id": of[0]["id"], **{name: row["answer"] for name, row in zip(rows, of, strict=True)}}
            for of in zip(*rows.values(), strict=True)
        ]
        + [{"id": row["id"], "unanswerable": True, "retrieved": row["answer"]} for row in unanswerable],
    }


def _row(reading: GeneratorInput, answer: Answer, refusal_answer: str) -> Row:
    """Return an answer as a row of predictions.jsonl, with whether it refuses among its scores."""
    references = reading.example.answers or (refusal_answer,)
    scores = answer_scores(answer.text, references)
    scores["refusal"] = answer_scores(answer.text, [refusal_answer])["em"]
    kept = {name: scores[name] for name in SCORES if name in scores}
    return {"id": reading.example.id, "answer": answer.text, "references": references, "answer_scores": kept}


def _scores(rows: Sequence[Row], name: str) -> list[float]:
    return [row["answer_scores"][name] for row in rows]


def _spread(f1: ArrayLike) -> dict[str, Any]:
    """Return the mean F1 at each place of the gold, of scores (k, n), the best and the worst place, and their spread.

    Some place is always best: the p-value is the share of RESAMPLES random ways to change places among the k scores of
    each question in which the best and the worst differ as much (a permutation test, counted as `paired` does).
    """
    table = np.asarray(f1, np.float64).T  # (n, k)
    sums, numbers = table.sum(0), np.random.default_rng(0)
    varying = table[(table != table[:, :1]).any(1)]
    observed = np.ptp(varying.sum(0)) * (1 - 1e-9)  # equal but for the order of their sums
    hits = sum(bool(np.ptp(numbers.permuted(varying, axis=1).sum(0)) >= observed) for _ in range(RESAMPLES))
    return {
        "f1": (sums / len(table)).tolist(),
        "best": int(sums.argmax()) + 1,
        "worst": int(sums.argmin()) + 1,
        "spread": float(np.ptp(sums)) / len(table),
        "p_value": (1 + hits) / (1 + RESAMPLES),
    }


def _refusals(rows: Mapping[str, Sequence[Row]], unanswerable: Sequence[Row]) -> dict[str, Any]:
    """Return precision and recall of refusing, in per cent, with intervals by the question.

    To be refused are the readings without a gold passage, distractors and none, and what unanswerable questions read;
    not to be refused are gold and gold_and_retrieved. precision = rightly refused / refused, null where nothing is, its
    interval null where so little is that a resample holds none; recall = rightly refused / to be refused. Of a
    generator that is to answer from memory too they say nothing.
    """
    extra = len(unanswerable)
    to_refuse = np.sum([_scores(rows[name], "refusal") for name in TO_REFUSE], axis=0) / 100
    to_answer = np.sum([_scores(rows[name], "refusal") for name in TO_ANSWER], axis=0) / 100
    right = np.append(to_refuse, np.array(_scores(unanswerable, "refusal")) / 100)  # of each question, (n,)
    refused = right + np.append(to_answer, np.zeros(extra))
    due = np.append(np.full(len(to_refuse), float(len(TO_REFUSE))), np.ones(extra))
    report: dict[str, Any] = {"refused": int(refused.sum()), "rightly": int(right.sum()), "due": int(due.sum())}
    for name, of in (("precision", refused), ("recall", due)):
        table = np.column_stack([100 * right, of])
        with np.errstate(invalid="ignore"):  # nothing refused
            score, ends = float(ratio(table.sum(axis=0))), interval(table)
        report[name] = score if np.isfinite(score) else None
        report[f"{name}_interval"] = list(ends) if np.isfinite(ends).all() else None
    return report


def context_table(report: Mapping[str, Any]) -> str:
    """Return a report as text: a line for each condition, for each difference in F1, and for what is refused."""
    left_out = f"; left out: {_counted(report['left_out'])}" if any(report["left_out"].values()) else ""
    lines = [
        f"{report['questions']} questions, {report['unanswerable']} unanswerable{left_out}",
        f"{'k = ' + str(report['k']):20}" + "".join(f"{title:>12}" for title in TITLES),
    ]
    for name, of in report["conditions"].items():
        lines.append(f"{_words(name):20}" + "".join(f"{of['scores'][score]:12.2f}" for score in SCORES))
    lines.append(f"\ndifference in F1 [{report['level']:.0%} interval]")
    for name, (first, second) in DIFFERENCES.items():
        of = report["differences"][name]["f1"]
        lines.append(
            f"{_words(name):20}{of['difference']:+12.2f} [{of['low']:+.2f}, {of['high']:+.2f}]  p {of['p_value']:.4f}"
            f"  ({_words(second)} - {_words(first)})"
        )
    places = report["positions"]
    lines.append(
        f"{'spread of positions':20}{places['spread']:+12.2f}  p {places['p_value']:.4f}"
        f"  (gold at {places['best']} - gold at {places['worst']})"
    )
    refusals = report["refusals"]
    of_all = {"precision": refusals["refused"], "recall": refusals["due"]}
    lines.append("")
    for name, number in of_all.items():
        score = f"{refusals[name]:12.2f}" if number else f"{'-':>12}"
        lines.append(f"{'refusal ' + name:20}{score}  ({refusals['rightly']} rightly of {number})")
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.items() if count)
