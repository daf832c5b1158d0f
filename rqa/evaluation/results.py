"""What a folder of results holds, an evaluation's or a training run's: read strictly, checked to belong together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rqa.data.jsonl import parse_object, type_name
from rqa.errors import InputError
from rqa.evaluation.significance import PairedResult, compare, measures, score_intervals

Row = dict[str, Any]

TITLES = {  # of the scores that come first, in this order
    "recall@1": "Recall@1, %",
    "recall@3": "Recall@3, %",
    "recall@10": "Recall@10, %",
    "bleu": "BLEU",
    "rougeL": "ROUGE-L, %",
    "em": "EM, %",
    "f1": "F1, %",
    "judge_accuracy": "judged correct, %",
    "judge_accuracy_low": "  at least, %",
    "judge_accuracy_high": "  at most, %",
    "answer_words": "words in an answer",
    "loss": "loss, nats per token",
    "seconds": "seconds per answer",
}


@dataclass(frozen=True)
class Maybe:
    """A shape, or null, or a field that is absent."""

    shape: Any


# Shapes of JSON: one of some types; a list of a shape; an object by its fields, where `str` stands for all others.
TEXT, WHOLE, FLAG, NUMBER = (str,), (int,), (bool,), (int, float)
FINITE = Maybe(NUMBER)  # null is a number that was not finite
PASSAGE = {
    "id": TEXT,
    "title": Maybe(TEXT),
    "text": Maybe(TEXT),
    "sources": Maybe([TEXT]),
    "score": FINITE,
    "gold": FLAG,
}
PREDICTION = {
    "id": TEXT,
    "question": TEXT,
    "chat_history": Maybe([{"role": TEXT, "text": TEXT}]),
    "passages": Maybe([PASSAGE]),
    "read": Maybe(WHOLE),
    "answer": Maybe(TEXT),
    "references": Maybe([TEXT]),
    "finished": Maybe(FLAG),
    "attribution": Maybe([{"id": TEXT, "gold": FLAG, str: FINITE}]),
    "judge": Maybe({"status": TEXT, "correct": Maybe(FLAG), "explanation": Maybe(TEXT)}),
    "reference_nll": Maybe(NUMBER),
    "reference_tokens": Maybe(WHOLE),
    **{f"{kind}_scores": Maybe({str: NUMBER}) for kind in ("retrieval", "answer", "attribution", "judge")},
}
SCORE = {
    "metrics": {str: FINITE},
    "intervals": Maybe({str: [NUMBER]}),
    "generation": Maybe({"seconds_per_answer": NUMBER}),
    "level": Maybe(NUMBER),
    "retrieval": Maybe({"seconds_per_question": Maybe(NUMBER)}),
    "runtime": Maybe({"stages": Maybe({str: {"seconds_per_question": NUMBER, str: NUMBER}})}),
}
UPDATE = {
    "number": WHOLE,
    "loss": FINITE,
    "gradient_norm": FINITE,
    "learning_rate": NUMBER,
    "target_tokens": WHOLE,
    "examples": WHOLE,
    "skipped": FLAG,
}
EVALUATED = {"evaluation": TEXT, str: FINITE}
CONTEXTS = {  # see `rqa.evaluation.context_report.context_report`
    "k": WHOLE,
    "questions": WHOLE,
    "conditions": {str: {"scores": {"f1": NUMBER, str: NUMBER}, "intervals": {"f1": [NUMBER], str: [NUMBER]}}},
    "differences": {str: {"f1": {"difference": NUMBER, "low": NUMBER, "high": NUMBER, "p_value": NUMBER}}},
    "positions": {"best": WHOLE, "worst": WHOLE, "spread": NUMBER, "p_value": NUMBER},
    "refusals": {"precision": FINITE, "recall": FINITE},
}
TIMING = {"number": WHOLE, "seconds": NUMBER, "memory_gib": NUMBER}

RESUME = "go on with the run: --resume_from_checkpoint latest"  # which puts its logs back


@dataclass(frozen=True)
class Evaluation:
    """An evaluation: its scores that are finite, with the seconds per answer, and their intervals; predictions by id.

    `about` is all else that score.json has.
    """

    folder: Path
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    predictions: dict[str, Row]
    about: Row


@dataclass(frozen=True)
class Run:
    """A training run: what metrics.jsonl and timings.jsonl say of each update, and the scores of its evaluations."""

    updates: list[Row]
    timings: list[Row]
    evaluations: list[Row]


@dataclass(frozen=True)
class Results:
    """What a folder holds: a run and its evaluation, or one of both; a report on contexts; the flags it came of."""

    folder: Path
    run: Run | None
    evaluation: Evaluation | None
    contexts: Row | None
    config: Row


def read_results(folder: Path) -> Results:
    """Read a folder of either kind. Of a run the evaluation is its test, or else the last on the way.

    Raises InputError where the folder is of neither kind, or a file in it is not what it should be.
    """
    run = read_run(folder) if (folder / "metrics.jsonl").is_file() else None
    on_the_way = sorted(folder.glob("eval-*"), key=lambda path: (len(path.name), path.name), reverse=True)
    evaluated = [path for path in (folder, folder / "test", *on_the_way) if (path / "score.json").is_file()]
    reported = [path for path in (folder, *evaluated[:1]) if (path / "contexts.json").is_file()]
    if not (run or evaluated or reported):
        raise InputError(
            f"{folder}: expected the folder of an evaluation, with its score.json, or of a training run, with its "
            "metrics.jsonl; found neither in it"
        )
    is_in_run = not run and (folder.parent / "metrics.jsonl").is_file()
    config = (folder.parent if is_in_run else folder) / "config.json"
    return Results(
        folder,
        run,
        read_evaluation(evaluated[0]) if evaluated else None,
        read_object(reported[0] / "contexts.json", CONTEXTS) if reported else None,
        read_object(config, {}) if config.is_file() else {},
    )


def read_evaluation(folder: Path) -> Evaluation:
    """Read score.json and predictions.jsonl. Raises InputError unless both are there, and of one evaluation."""
    for name in ("score.json", "predictions.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: expected the folder of an evaluation, found no {name} in it")
    about = read_object(folder / "score.json", SCORE)
    scores = {name: score for name, score in about.pop("metrics").items() if score is not None}
    predictions = read_predictions(folder / "predictions.jsonl")
    rows = list(predictions.values())
    for name, measure in measures(rows).items():
        if name in scores and not math.isclose(scores[name], measure.value, rel_tol=1e-6, abs_tol=1e-6):
            raise InputError(
                f"{folder}: expected score.json and predictions.jsonl of one evaluation, found {name} "
                f"{scores[name]:.4f} in the one and {measure.value:.4f} by the other; evaluate again"
            )
    intervals = {name: tuple(ends) for name, ends in (about.pop("intervals", None) or score_intervals(rows)).items()}
    for name, ends in intervals.items():
        if len(ends) != 2:
            raise InputError(f'{folder}/score.json: field "intervals.{name}": expected 2 ends, found {len(ends)}')
    if about.get("generation"):
        scores["seconds"] = about["generation"]["seconds_per_answer"]
    return Evaluation(
        folder, scores, {name: (low, high) for name, (low, high) in intervals.items()}, predictions, about
    )


def read_predictions(path: Path) -> dict[str, Row]:
    """Return the rows of a predictions.jsonl by id, in its order."""
    rows: dict[str, Row] = {}
    for place, row in _lines(path, "evaluate again"):
        _check(row, PREDICTION, place)
        if row.get("answer") is not None and row.get("references") is None:
            raise InputError(f'{place}: field "references": expected list beside an answer, found nothing')
        if row["id"] in rows:
            raise InputError(f"{place}: expected an id that no line before has, found {row['id']!r}")
        rows[row["id"]] = row
    return rows


def read_run(folder: Path) -> Run:
    """Read metrics.jsonl, and timings.jsonl where there is one."""
    updates: list[Row] = []
    evaluations: list[Row] = []
    timings: list[Row] = []
    for place, row in _lines(folder / "metrics.jsonl", RESUME):
        is_evaluation = "evaluation" in row
        _check(row, EVALUATED if is_evaluation else UPDATE, place)
        (evaluations if is_evaluation else updates).append(row)
    if (folder / "timings.jsonl").is_file():
        for place, row in _lines(folder / "timings.jsonl", RESUME):
            _check(row, TIMING, place)
            timings.append(row)
    return Run(updates, timings, evaluations)


def read_object(path: Path, shape: Row) -> Row:
    """Read a JSON file that holds one object of the `shape`."""
    try:
        row = parse_object(path.read_bytes())
    except ValueError as problem:
        raise InputError(f"{path}: {problem}; evaluate again") from problem
    _check(row, shape, str(path))
    return row


def _lines(path: Path, remedy: str) -> Iterator[tuple[str, Row]]:
    """Yield file:line, and the object of each line."""
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        try:
            row = parse_object(line)
        except ValueError as problem:
            raise InputError(f"{path}:{number}: {problem}; {remedy}") from problem
        yield f"{path}:{number}", row


def _check(value: Any, shape: Any, place: str, name: str = "") -> None:
    """Raise InputError unless a JSON value, the field `name` of what stands at `place`, is of the shape."""
    if isinstance(shape, Maybe):
        if value is None:
            return
        shape = shape.shape
    kinds = shape if isinstance(shape, tuple) else (type(shape),)
    if type(value) not in kinds:
        found = "nothing" if value is None else type_name(value)
        raise InputError(f'{place}: field "{name}": expected {type_name(kinds[0]())}, found {found}')
    if isinstance(shape, list):
        for i, part in enumerate(value):
            _check(part, shape[0], place, f"{name}[{i}]")
    elif isinstance(shape, dict):
        for field, part in shape.items():
            for key in [other for other in value if other not in shape] if field is str else [field]:
                _check(value.get(key), part, place, f"{name}.{key}" if name else key)


def check_same_questions(first: Evaluation, second: Evaluation) -> None:
    """Raise InputError unless both have the same ids, and under each the same question and references."""
    found = f"expected two evaluations of the same questions, found in {first.folder} and {second.folder}"
    a, b = first.predictions, second.predictions
    if lone := [name for name in {**a, **b} if (name in a) != (name in b)]:
        raise InputError(f'{found} {len(lone)} ids that only one of them has, the first "{lone[0]}"')
    for key in ("question", "references"):  # which a retriever's evaluation has none of
        if unlike := [name for name in a if key in a[name] and a[name][key] != b[name].get(key, a[name][key])]:
            raise InputError(f'{found} {len(unlike)} ids with unlike "{key}", the first "{unlike[0]}"')


def paired_rows(first: Evaluation, second: Evaluation) -> list[tuple[Row, Row]]:
    """Return the predictions of both for each question, in the first's order. Raises as `check_same_questions`."""
    check_same_questions(first, second)
    return [(row, second.predictions[name]) for name, row in first.predictions.items()]


def differences(first: Evaluation, second: Evaluation) -> dict[str, PairedResult]:
    """Return by how much the second's scores are higher; see `rqa.evaluation.significance.compare`.

    What was owed to gold is compared where the same questions had gold to read, and else has no difference. Raises
    InputError unless all other scores but a judge's are of the same questions.
    """
    pairs = paired_rows(first, second)
    owed = "attribution_scores"
    if any((a.get(owed) or {}).keys() != (b.get(owed) or {}).keys() for a, b in pairs):
        pairs = [(a | {owed: {}}, b | {owed: {}}) for a, b in pairs]
    try:
        return compare([row for row, _ in pairs], [row for _, row in pairs])
    except ValueError as problem:
        raise InputError(f"{first.folder} and {second.folder}: {problem}") from problem
