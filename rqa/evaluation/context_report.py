"""One generator with the same questions in different contexts: reading, distraction, position of gold, refusals.

A generator fits the contexts that it was trained on, and answers worse from better or worse ones (Akimoto, Takeoka and
Oyamada, 2023, "Context Quality Matters in Training Fusion-in-Decoder for Extractive Open-Domain Question Answering"):
one score with one retriever does not show this.

n questions, k passages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import ArrayLike

from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput
from rqa.data.records import Example, Passage, distinct
from rqa.distributed.accelerator import call_on_main
from rqa.errors import InputError
from rqa.evaluation.evaluate import Generate
from rqa.evaluation.metrics import LABELS, answer_scores
from rqa.evaluation.results import ContextsRecord, PredictionRecord
from rqa.evaluation.significance import LEVEL, RESAMPLES, compare, interval, ratio, resampled_scores, score_intervals
from rqa.generation.answers import Answer
from rqa.retrieval.retrieve import Retrieved
from rqa.terminal import track

SCORES = ("em", "f1", "rougeL", "bleu", "refusal")  # the columns; refusal is only in this report

# The score under the second condition minus that under the first. By these definitions context gain = gold gain -
# distractor cost - retrieval loss.
DIFFERENCES = {
    "context_gain": ("none", "retrieved"),
    "gold_gain": ("none", "gold"),
    "distractor_cost": ("gold_and_retrieved", "gold"),
    "retrieval_loss": ("retrieved", "gold_and_retrieved"),
}

# Two conditions each, for every k: precision depends on the share of questions to refuse.
TO_REFUSE = ("distractors", "none")
TO_ANSWER = ("gold", "gold_and_retrieved")


@dataclass(frozen=True)
class Contexts:
    """The inputs for the same n questions under each condition, in the same order; see `build_contexts`.

    `unanswerable` are the inputs for questions to refuse in every context; `left_out` counts all other questions by
    reason.
    """

    k: int
    inputs: dict[str, list[GeneratorInput]]
    unanswerable: list[GeneratorInput]
    left_out: dict[str, int]


def build_contexts(examples: Sequence[Example], retrieved: Sequence[Sequence[Retrieved]], *, k: int) -> Contexts:
    """Return the inputs of a generator for `k` passages under each condition.

    `retrieved[i]` are more than `k` passages for `examples[i]`, best first: those that are not gold are its
    distractors, even if one contains the answer. The conditions:

    - gold: the gold passages alone, in their order.
    - retrieved: the first k retrieved, as in an evaluation.
    - gold_and_retrieved: the same with all gold in it; gold that was not retrieved comes last, and replaces the last
      distractors. The number of passages is k, or that of the gold passages if it is larger.
    - gold_at_1 ... gold_at_k: the gold at this position among the first k - 1 distractors, several one after the other.
    - distractors: the first k distractors.
    - none: no passage, closed book.

    If the prompt is too long, inserted gold is truncated last, so that its position has no other effect.

    The questions are those with an answer, gold passages, and k - 1 distractors, at least one. Raises InputError if
    there are none.
    """
    chosen: list[dict[str, GeneratorInput]] = []
    unanswerable: list[GeneratorInput] = []
    left_out = {(without_gold := "no gold passage"): 0, (too_few := f"fewer than {max(1, k - 1)} distractors"): 0}
    left_out[without_references := "no reference"] = 0
    for example, hits in zip(examples, retrieved, strict=True):
        passages = [hit.passage for hit in hits]
        gold = distinct(example.gold_passages)
        distractors = _without(passages, gold)
        if example.unanswerable:
            unanswerable.append(GeneratorInput.from_ranked(example, passages[:k]))
        elif not example.answers:
            left_out[without_references] += 1
        elif not gold:
            left_out[without_gold] += 1
        elif len(distractors) < max(1, k - 1):
            left_out[too_few] += 1
        else:
            chosen.append(_conditions(example, passages[:k], gold, distractors, k))
    if not chosen:
        counts = _counted({**left_out, "unanswerable": len(unanswerable)})
        raise InputError(
            "--context_report true: expected questions with an answer, gold passages, and retrieved passages that are "
            f"not gold, got none among {len(examples)}: {counts}"
        )
    inputs = {name: [conditions[name] for conditions in chosen] for name in chosen[0]}
    return Contexts(k, inputs, unanswerable, left_out)


def _conditions(
    example: Example, first: list[Passage], gold: list[Passage], distractors: list[Passage], k: int
) -> dict[str, GeneratorInput]:
    missing = _without(gold, first)
    dropped = _without(first, gold)[max(0, k - len(gold)) :]
    gold_and_retrieved = GeneratorInput.from_ranked(example, [*_without(first, dropped), *missing])
    gold_at = {  # k passages if there is one gold passage
        f"gold_at_{i + 1}": GeneratorInput.from_ranked(example, [*distractors[:i], *gold, *distractors[i : k - 1]])
        for i in range(k)
    }
    return {
        "gold": GeneratorInput.from_ranked(example, gold),
        "retrieved": GeneratorInput.from_ranked(example, first),
        "gold_and_retrieved": _truncated_last(missing, gold_and_retrieved),
        **{name: _truncated_last(gold, item) for name, item in gold_at.items()},
        "distractors": GeneratorInput.from_ranked(example, distractors[:k]),
        "none": GeneratorInput.from_ranked(example, ()),
    }


def _without(passages: Sequence[Passage], others: Sequence[Passage]) -> list[Passage]:
    ids = {passage.id for passage in others}
    return [passage for passage in passages if passage.id not in ids]


def _truncated_last(best: Sequence[Passage], item: GeneratorInput) -> GeneratorInput:
    """Return the input with the same order of passages, in which the `best` have the first ranks."""
    ids = {passage.id for passage in best}
    order = sorted(range(len(item.passages)), key=lambda i: item.passages[i].id not in ids)
    return replace(item, ranks=tuple(order.index(i) for i in range(len(order))))


def compare_contexts(
    contexts: Contexts,
    generate: Generate,
    *,
    refusal_answer: str = REFUSAL_ANSWER,
    citations: bool = False,
    accelerator: Accelerator | None = None,
) -> ContextsRecord:
    """Answer all inputs in one call, equal ones once, and return the report. Every rank must call this.

    Scores are computed on the main process of the `accelerator`, or on each process without one. With `citations` they
    are those of texts without citations.

    - conditions: the scores under each, in per cent, with their intervals. `refusal` is the share of answers that are
      `refusal_answer` by the rule of `metrics.exact_match`: other words are no refusal.
    - differences: of each score, paired, with interval and p-value; see DIFFERENCES.
    - positions: see `_positions`. refusals: see `_refusals`.
    - answers: to each question under each condition; to an unanswerable one from the retrieved passages.
    """
    inputs = [*dict.fromkeys(chain(*contexts.inputs.values(), contexts.unanswerable))]
    answers = dict(zip(inputs, generate(inputs), strict=True))
    report = partial(_report, contexts, answers, refusal_answer, citations)
    return call_on_main(accelerator, report) if accelerator else report()


def _report(
    contexts: Contexts, answers: Mapping[GeneratorInput, Answer], refusal_answer: str, citations: bool
) -> ContextsRecord:
    predictions = {
        name: [_prediction(item, answers[item], refusal_answer, citations) for item in of_condition]
        for name, of_condition in track(contexts.inputs.items(), "scoring contexts", unit="contexts")
    }
    unanswerable = [_prediction(item, answers[item], refusal_answer, citations) for item in contexts.unanswerable]
    return ContextsRecord(
        k=contexts.k,
        questions=len(predictions["none"]),
        unanswerable=len(unanswerable),
        left_out=contexts.left_out,
        inputs=len(answers),
        refusal_answer=refusal_answer,
        level=LEVEL,
        resamples=RESAMPLES,
        conditions={
            name: {
                "scores": {score: resampled.value for score, resampled in resampled_scores(rows).items()},
                "intervals": score_intervals(rows),
                "truncated_passage_tokens": sum(answers[item].truncated for item in contexts.inputs[name]),
            }
            for name, rows in predictions.items()
        },
        differences={
            name: compare(predictions[first], predictions[second]) for name, (first, second) in DIFFERENCES.items()
        },
        positions=_positions(
            [_scores(rows, "f1") for name, rows in predictions.items() if name.startswith("gold_at_")]
        ),
        refusals=_refusals(predictions, unanswerable),
        answers=(
            *(
                {"id": rows[0].id, **{name: row.answer for name, row in zip(predictions, rows, strict=True)}}
                for rows in zip(*predictions.values(), strict=True)
            ),
            *({"id": row.id, "unanswerable": True, "retrieved": row.answer} for row in unanswerable),
        ),
    )


def _prediction(item: GeneratorInput, answer: Answer, refusal_answer: str, citations: bool) -> PredictionRecord:
    """Return the prediction, with the refusal among its scores."""
    example = item.example
    prediction = PredictionRecord(
        id=example.id,
        question=example.question,
        passages=(),
        answer=answer.text,
        references=example.answers or (refusal_answer,),
        citation_scores={} if citations else None,  # not scored here
    )
    text = prediction.scored_answer or ""
    scores = answer_scores(text, prediction.scored_references)
    scores["refusal"] = answer_scores(text, [refusal_answer])["em"]
    return replace(prediction, answer_scores={name: scores[name] for name in SCORES if name in scores})


def _scores(predictions: Sequence[PredictionRecord], name: str) -> list[float]:
    return [(prediction.answer_scores or {})[name] for prediction in predictions]


def _positions(f1: ArrayLike) -> dict[str, Any]:
    """Return the mean F1 at each position of the gold, of scores (k, n), and the spread of best and worst position.

    Some position is always best: the p-value is the share of RESAMPLES random permutations of the k scores of each
    question in which best and worst differ at least as much (a permutation test, counted as in `paired_test`).
    """
    table = np.asarray(f1, np.float64).T  # (n, k)
    sums, numbers = table.sum(0), np.random.default_rng(0)
    varying = table[(table != table[:, :1]).any(1)]
    observed = np.ptp(varying.sum(0)) * (1 - 1e-9)  # equal except for the order of summation
    permutations = track(range(RESAMPLES), "permutation test of positions", unit="permutations")
    hits = sum(bool(np.ptp(numbers.permuted(varying, axis=1).sum(0)) >= observed) for _ in permutations)
    return {
        "f1": (sums / len(table)).tolist(),
        "best": int(sums.argmax()) + 1,
        "worst": int(sums.argmin()) + 1,
        "spread": float(np.ptp(sums)) / len(table),
        "p_value": (1 + hits) / (1 + RESAMPLES),
    }


def _refusals(
    predictions: Mapping[str, Sequence[PredictionRecord]], unanswerable: Sequence[PredictionRecord]
) -> dict[str, Any]:
    """Return precision and recall of refusals, in per cent, with intervals by question.

    To refuse are the inputs without a gold passage, distractors and none, and all for unanswerable questions; to answer
    are gold and gold_and_retrieved. precision = right refusals / refusals, None if there are no refusals; its interval
    is None if a resample has none. recall = right refusals / inputs to refuse. Neither is meaningful for a generator
    that may answer from memory.
    """
    extra = len(unanswerable)
    to_refuse = np.sum([_scores(predictions[name], "refusal") for name in TO_REFUSE], axis=0) / 100
    to_answer = np.sum([_scores(predictions[name], "refusal") for name in TO_ANSWER], axis=0) / 100
    right = np.append(to_refuse, np.array(_scores(unanswerable, "refusal")) / 100)  # of each question, (n,)
    refused = right + np.append(to_answer, np.zeros(extra))
    due = np.append(np.full(len(to_refuse), float(len(TO_REFUSE))), np.ones(extra))

    summary: dict[str, Any] = {"refused": int(refused.sum()), "correct": int(right.sum()), "to_refuse": int(due.sum())}
    for name, total in {"precision": refused, "recall": due}.items():
        table = np.column_stack([100 * right, total])
        with np.errstate(invalid="ignore"):  # 0 / 0 if there are no refusals
            score, ends = float(ratio(table.sum(axis=0))), interval(table)
        summary[name] = score if np.isfinite(score) else None
        summary[f"{name}_interval"] = [*ends] if np.isfinite(ends).all() else None
    return summary


def context_table(report: ContextsRecord) -> str:
    """Return a report as text: a line for each condition, for each difference in F1, and for refusals."""
    left_out = f"; left out: {_counted(report.left_out)}" if any(report.left_out.values()) else ""
    titles = [LABELS.get(name, "refused, %") for name in SCORES]
    lines = [
        f"{report.questions} questions, {report.unanswerable} unanswerable{left_out}",
        f"{'k = ' + str(report.k):20}" + "".join(f"{title:>12}" for title in titles),
    ]
    for name, condition in report.conditions.items():
        lines.append(f"{_words(name):20}" + "".join(f"{condition['scores'][score]:12.2f}" for score in SCORES))
    lines.append(f"\ndifference in F1 [{report.level:.0%} interval]")
    for name, (first, second) in DIFFERENCES.items():
        result = report.differences[name]["f1"]
        lines.append(
            f"{_words(name):20}{result.difference:+12.2f} [{result.low:+.2f}, {result.high:+.2f}]"
            f"  p {result.p_value:.4f}  ({_words(second)} - {_words(first)})"
        )
    if report.k > 1:  # else there is one position
        spread = "{spread:+12.2f}  p {p_value:.4f}  (gold at {best} - gold at {worst})".format(**report.positions)
        lines.append(f"{'spread of positions':20}{spread}")
    lines.append("")
    for name, number in {"precision": "refused", "recall": "to_refuse"}.items():
        score = report.refusals[name]
        value = "-" if score is None else f"{score:.2f}"
        lines.append(
            f"{'refusal ' + name:20}{value:>12}  ({report.refusals['correct']} correct of {report.refusals[number]})"
        )
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.items() if count)
