"""The answers of an evaluation, judged: a verdict beside each, and what they come to beside the other scores."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rqa.data.jsonl import check_file, open_data, read_rows
from rqa.data.records import Passage, Turn
from rqa.errors import InputError
from rqa.evaluation.results import Row, read_evaluation
from rqa.evaluation.significance import score_intervals
from rqa.judge.client import Judge
from rqa.judge.prompt import PROMPT_VERSION, JudgeRequest
from rqa.judge.verdicts import Verdict, cost_of, kappa, summary

log = logging.getLogger(__name__)

STORE = "judge.jsonl"  # in the folder of an evaluation
SCORES = ("judge_accuracy", "judge_accuracy_low", "judge_accuracy_high")


def judge_folder(
    folder: Path,
    judge: Judge,
    *,
    labels: str = "",
    dry_run: bool = False,
    prompt_price: float | None = None,
    completion_price: float | None = None,
) -> None:
    """Judge the answers of an evaluation; verdicts and scores go into its files.

    With a file of people's `labels` the judge's agreement with them does too, with the prices of a million tokens what
    all verdicts cost, whenever they were paid for. A dry run makes no call and writes nothing: what judging would take
    is logged. Raises InputError as `Judge` and `read_labels` do, and where the folder is none of an evaluation, or has
    no answers.
    """
    rows = list(read_evaluation(folder).predictions.values())
    cases = cases_of(rows)
    given = read_labels(labels, [row["id"] for row in rows]) if labels else {}
    if dry_run:
        cost = judge.cost(cases, prompt_price=prompt_price, completion_price=completion_price)
        log.info(
            "%s: to judge %d answers takes %d calls, %d tokens of requests and %d of verdicts%s\n(%d are stored; %s)",
            folder,
            len(cases),
            cost.calls,
            cost.prompt_tokens,
            cost.completion_tokens,
            "" if cost.price is None else f", which cost {cost.price:.2f}",
            cost.stored,
            cost.basis,
        )
        return
    verdicts = judge(cases)
    scores = summary(verdicts)
    told: dict[str, Any] = {
        "model": judge.model,
        "endpoint": str(judge.url),
        "parameters": dict(judge.parameters),
        "prompt_version": PROMPT_VERSION,
        **{name.removeprefix("judge_"): value for name, value in scores.items() if name not in SCORES},
    }
    if not prompt_price is completion_price is None:
        told["cost"] = cost_of(told["prompt_tokens"], told["completion_tokens"], prompt_price, completion_price)
    if given:
        by_id = {row["id"]: verdict.correct for row, verdict in zip(rows, verdicts, strict=True)}
        try:
            told["agreement"] = asdict(kappa(by_id, given))
        except InputError as problem:  # the verdicts are there all the same
            log.warning("--judge_labels %s: %s", labels, problem)
    scores = {name: scores[name] for name in SCORES if name in scores}
    _write(folder, [_judged(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)], scores, told)
    log.info("%s: %s", folder, "  ".join(f"{name} {value:.3g}" for name, value in scores.items()))
    counts = {name: value for name, value in told.items() if name not in ("model", "endpoint", "parameters")}
    log.info("%s", "  ".join(f"{name} {value}" for name, value in counts.items()))


def cases_of(predictions: Sequence[Row]) -> list[JudgeRequest]:
    """Return what is judged of rows of predictions.jsonl: each answer, with the passages that its generator read.

    A passage that was cut is judged whole. Raises InputError where they have no answers, or do not say what was read.
    """
    if not all("answer" in row for row in predictions):
        raise InputError("expected answers to judge, found none: a retriever alone was evaluated")
    if not all("read" in row for row in predictions):
        raise InputError("predictions.jsonl does not say how many passages were read: evaluate again")
    return [
        JudgeRequest(
            row["question"],
            row["answer"],
            tuple(row["references"]),
            tuple(Passage(read["text"], read["title"]).content for read in row["passages"][: row["read"]]),
            tuple(Turn(turn["role"], turn["text"]) for turn in row.get("chat_history", ())),
        )
        for row in predictions
    ]


def read_labels(path: str | Path, ids: Collection[str]) -> dict[str, bool]:
    """Return people's verdicts on the answers of an evaluation: rows of {"id": ..., "correct": true or false}.

    Raises DataError of rows without either, and of ids that stand twice or are none of `ids`.
    """
    check_file(path, (".jsonl", ".jsonl.gz"))
    known, labels = set(ids), dict[str, bool]()
    for _, _, row in read_rows(path, open_data(path)):
        name = row.identifier("id")
        if name not in known or name in labels:
            row.problem("id", f'expected the id of a question of the evaluation, once, found "{name}"')
        if not row.has("correct"):
            row.problem("correct", "expected true or false, found nothing")
        labels[name] = row.flag("correct")
    return labels


def _judged(row: Row, verdict: Verdict) -> Row:
    told = {"status": verdict.status, "correct": verdict.correct, "explanation": verdict.explanation}
    scores = {} if verdict.correct is None else {"judge_accuracy": 100.0 * verdict.correct}
    return row | {"judge": told, "judge_scores": scores}


def _write(folder: Path, rows: Sequence[Row], scores: Mapping[str, float], told: Mapping[str, Any]) -> None:
    """Write verdicts and scores in the place of those of a judge before."""
    score = json.loads((folder / "score.json").read_bytes())
    others = {name: value for name, value in score["metrics"].items() if name not in SCORES}
    score["metrics"] = others | dict(scores)
    score["intervals"] = score_intervals(rows)
    score["judge"] = told
    predictions = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # First without the scores of a judge: whoever is killed between these leaves files that agree, and can be judged.
    _replace(folder / "score.json", _text(score | {"metrics": others}))
    _replace(folder / "predictions.jsonl", predictions)
    _replace(folder / "score.json", _text(score))


def _text(score: Mapping[str, Any]) -> str:
    return json.dumps(score, indent=2, ensure_ascii=False) + "\n"


def _replace(path: Path, text: str) -> None:
    """Write a file anew, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
