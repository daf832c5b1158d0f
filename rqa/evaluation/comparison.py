"""The folders of evaluations and training runs: read, checked, and compared in pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rqa.errors import InputError
from rqa.evaluation import results
from rqa.evaluation.metrics import LABELS
from rqa.evaluation.results import PredictionRecord
from rqa.evaluation.significance import compare, question_scores, resampled_scores

Pair = tuple[PredictionRecord, PredictionRecord]


@dataclass(frozen=True)
class Evaluation:
    """The files of an evaluation: score.json, and the predictions by id."""

    folder: Path
    score: results.ScoreRecord
    predictions: dict[str, PredictionRecord]

    @property
    def scores(self) -> dict[str, float]:
        """The metrics that are finite, and the seconds per answer if it was timed."""
        scores = {name: value for name, value in self.score.metrics.items() if math.isfinite(value)}
        seconds = (self.score.generation or {}).get("seconds_per_answer")
        return scores | ({} if seconds is None else {"seconds": seconds})

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The interval of each metric that has one."""
        return self.score.intervals

    @property
    def labels(self) -> dict[str, str]:
        """The metrics of the main table in its order, each with its label."""
        return LABELS | (self.score.labels or {})


@dataclass(frozen=True)
class Results:
    """The content of a folder: a run, an evaluation or both, a context report, and the flags in config.json."""

    folder: Path
    run: results.RunRecords | None
    evaluation: Evaluation | None
    contexts: results.ContextsRecord | None
    config: Mapping[str, Any]


def read_results(folder: Path) -> Results:
    """Read the folder of an evaluation or a training run. The evaluation of a run is its test, or its last evaluation.

    Raises InputError if the folder contains neither, or if a file in it is not valid.
    """
    run = results.read_run(folder) if (folder / "metrics.jsonl").is_file() else None
    validations = sorted(folder.glob("eval-*"), key=lambda path: (len(path.name), path.name), reverse=True)
    evaluated = [path for path in (folder, folder / "test", *validations) if (path / "score.json").is_file()]
    reported = [path for path in (folder, *evaluated[:1]) if (path / "contexts.json").is_file()]
    if not (run or evaluated or reported):
        raise InputError(
            f"{folder}: expected the folder of an evaluation, with score.json, or of a training run, with "
            "metrics.jsonl, got neither"
        )
    is_in_run = not run and (folder.parent / "metrics.jsonl").is_file()
    config = (folder.parent if is_in_run else folder) / "config.json"
    return Results(
        folder,
        run,
        read_evaluation(evaluated[0]) if evaluated else None,
        results.read_record(reported[0] / "contexts.json", results.ContextsRecord) if reported else None,
        results.read_object(config) if config.is_file() else {},
    )


def read_evaluation(folder: Path) -> Evaluation:
    """Read score.json and predictions.jsonl. Raises InputError if one is missing, or not of the same evaluation."""
    for name in ("score.json", "predictions.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: expected the folder of an evaluation, with {name}, got no such file")
    score = results.read_record(folder / "score.json", results.ScoreRecord)
    predictions = results.read_predictions(folder / "predictions.jsonl")
    for name, resampled in resampled_scores([*predictions.values()]).items():
        value = score.metrics.get(name, math.nan)
        if math.isfinite(value) and not math.isclose(value, resampled.value, rel_tol=1e-6, abs_tol=1e-6):
            raise InputError(
                f"{folder}: expected score.json and predictions.jsonl of one evaluation, got {name} {value:.4f} in "
                f"score.json and {resampled.value:.4f} by predictions.jsonl. {results.EVALUATE_AGAIN}"
            )
    return Evaluation(folder, score, predictions)


def check_same_questions(first: Evaluation, second: Evaluation) -> None:
    """Raise InputError unless both have the same ids, each with the same question and references."""
    subject = f"{first.folder} and {second.folder}: expected evaluations of the same questions"
    a, b = first.predictions, second.predictions
    if unshared := [id for id in {**a, **b} if (id in a) != (id in b)]:
        raise InputError(f'{subject}, got {len(unshared)} ids that only one of them has, the first "{unshared[0]}"')
    for name in ("question", "references"):
        values = {id: (getattr(a[id], name), getattr(b[id], name)) for id in a}
        # The evaluation of a retriever alone has no references.
        if unlike := [id for id, (one, other) in values.items() if one and other and one != other]:
            raise InputError(f'{subject}, got {len(unlike)} ids with different "{name}", the first "{unlike[0]}"')


def paired_predictions(first: Evaluation, second: Evaluation) -> list[Pair]:
    """Return both predictions of each question, in the first's order. Raises InputError as `check_same_questions`."""
    check_same_questions(first, second)
    return [(prediction, second.predictions[id]) for id, prediction in first.predictions.items()]


def differences(first: Evaluation, second: Evaluation) -> dict[str, results.PairedResult]:
    """Return the second's scores minus the first's; see `rqa.evaluation.significance.compare`.

    Attribution scores are compared only if the same questions have them on both sides. Raises InputError unless every
    other score, but the judge's, is of the same questions.
    """
    pairs = paired_predictions(first, second)
    if any((a.attribution_scores or {}).keys() != (b.attribution_scores or {}).keys() for a, b in pairs):
        pairs = [(replace(a, attribution_scores=None), replace(b, attribution_scores=None)) for a, b in pairs]
    try:
        return compare([a for a, _ in pairs], [b for _, b in pairs])
    except ValueError as problem:
        raise InputError(f"{first.folder} and {second.folder}: {problem}") from problem


def differing_questions(first: Evaluation, second: Evaluation, *, metric: str = "") -> tuple[str, list[Pair]]:
    """Return the metric, and both predictions of each question whose scores differ, largest difference first.

    The default is F1, or the first score of a retriever. Raises InputError if `metric` is not a score of questions.
    """
    pairs = paired_predictions(first, second)
    scores = {a.id: (question_scores(a), question_scores(b)) for a, b in pairs}
    names = dict.fromkeys(name for a, b in scores.values() for name in a if name in b)
    if metric and metric not in names:
        raise InputError(f"--metric {metric}: expected a score of single questions: {', '.join(names)}")
    metric = metric or ("f1" if "f1" in names else next(iter(names), ""))
    changes = {id: abs(b[metric] - a[metric]) for id, (a, b) in scores.items() if metric in a and metric in b}
    differing = [pair for pair in pairs if changes.get(pair[0].id)]
    return metric, sorted(differing, key=lambda pair: -changes[pair[0].id])
