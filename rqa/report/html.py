"""report.html: results of an evaluation or a training run, or a comparison of two, on one page that loads nothing.

Models and unknown authors wrote the texts in these folders. On the page they stay text: Jinja escapes them, the script
inserts the questions, a block of JSON, as `textContent`, and a policy forbids all loading and all other scripts.
"""

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rqa import __version__
from rqa.atomic_files import atomic_file
from rqa.errors import InputError
from rqa.evaluation.comparison import Evaluation, Results, differences, paired_predictions, read_results
from rqa.evaluation.metrics import METRICS
from rqa.evaluation.results import PassageRecord, PredictionRecord, RunRecords, to_json
from rqa.evaluation.significance import LEVEL, question_scores
from rqa.report.plots import SIDES, position_plots, ranking_plots, training_plots
from rqa.terminal import track

ATTRIBUTION_LABELS = {
    "cross_attention": "cross-attention, share",
    "leave_one_out": "leave one out, nats",
    "leave_one_out_reference": "leave one out of the reference, nats",
}
PERCENTAGES = {metric.name for metric in METRICS if metric.label and metric.is_percentage}


def write_report(folder: Path, other: Path | None = None, output: Path | None = None) -> Path:
    """Write report.html of the folder of an evaluation or a training run, and return its path; see `read_results`.

    With `other`, write comparison.html of two evaluations of the same questions. Equal files give equal bytes. Raises
    InputError if a file in a folder is not valid, or if the page cannot be written.
    """
    page = render([read_results(path) for path in (folder, other) if path is not None])
    path = output or folder / ("report.html" if other is None else "comparison.html")
    try:
        with atomic_file(path) as file:
            # The name of a folder may contain a lone surrogate, which UTF-8 cannot encode.
            file.write(page.encode(errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"{path}: cannot write the report: {error.strerror}") from error
    return path


def render(sides: Sequence[Results]) -> str:
    """Return the page of one folder, or of two with evaluations of the same questions."""
    evaluations = [side.evaluation for side in sides if side.evaluation]
    if len(evaluations) < len(sides) == 2:
        folder = next(side.folder for side in sides if not side.evaluation)
        raise InputError(f"{folder}: expected an evaluation to compare, got none")
    labels = {name: label for each in evaluations for name, label in each.labels.items()}
    loader = PackageLoader("rqa.report")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = (loader.get_source(jinja, name)[0] for name in ("report.css", "report.js"))
    jinja.filters |= {"score": format_score, "signed": format_difference, "milliseconds": format_milliseconds}
    return jinja.get_template("report.html").render(
        sides=sides,
        letters=SIDES,
        evaluations=evaluations,
        scores=_scores(evaluations, labels),
        level=evaluations[0].score.level if evaluations else LEVEL,
        training=training_plots([side.run for side in sides]),
        run_facts=[(i, _run_facts(side.run)) for i, side in enumerate(sides) if side.run],
        ranking=ranking_plots(evaluations),
        stages=[evaluation.score.runtime["stages"] for evaluation in evaluations],
        contexts=[(i, side.contexts) for i, side in enumerate(sides) if side.contexts],
        positions=position_plots([side.contexts for side in sides]),
        verdicts=[_verdict_counts(evaluation) for evaluation in evaluations],
        flags=_side_by_side([side.config for side in sides]),
        measurement=_side_by_side([_measurement(evaluation) for evaluation in evaluations]),
        data=_json(_questions(evaluations, labels)),
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _scores(evaluations: Sequence[Evaluation], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a row for each metric of the evaluations, those with a label first."""
    names = [*labels, *(name for evaluation in evaluations for name in evaluation.scores)]
    results = differences(*evaluations) if len(evaluations) == 2 else {}
    return [
        {
            "name": name,
            "label": labels.get(name, name),
            "is_main": name in labels,
            "is_percentage": name in PERCENTAGES,
            "cells": [(evaluation.scores.get(name), evaluation.intervals.get(name)) for evaluation in evaluations],
            "difference": results.get(name),
        }
        for name in dict.fromkeys(names)
        if any(name in evaluation.scores for evaluation in evaluations)
    ]


def format_score(value: float, name: str) -> str:
    """Return the text of a score: one decimal, three of a loss, three digits of seconds."""
    return f"{value:.3g}" if name == "seconds" else f"{value:z.{3 if name == 'loss' else 1}f}"


def format_difference(value: float, name: str) -> str:
    """Return the text of a difference of scores, with its sign."""
    text = format_score(abs(value), name)
    return f"{'+' if value > 0 else '−'}{text}" if float(text) else text


def format_milliseconds(seconds: float) -> str:
    """Return the text of seconds in milliseconds: three digits, at most four decimals."""
    milliseconds = 1000 * seconds
    return f"{milliseconds:,.{max(0, 2 - math.floor(math.log10(max(milliseconds, 0.01))))}f}"


def _run_facts(run: RunRecords) -> dict[str, str]:
    facts = {
        "steps": f"{len(run.steps):,}",
        "skipped steps (not finite)": f"{sum(step.skipped for step in run.steps):,}",
        "examples": f"{sum(step.examples for step in run.steps):,}",
        "target tokens": f"{sum(step.target_tokens for step in run.steps):,}",
    }
    if run.timings:
        facts["minutes in steps"] = f"{sum(row.seconds for row in run.timings) / 60:,.1f}"
        facts["peak memory, GiB"] = f"{max(row.memory_gib for row in run.timings):,.1f}"
    return facts


def _verdict_counts(evaluation: Evaluation) -> dict[str, str]:
    """Return the number of each verdict; if verdicts are missing, also the bounds of the accuracy."""
    words = {True: "correct", False: "incorrect"}
    verdicts = [prediction.verdict for prediction in evaluation.predictions.values() if prediction.verdict]
    counts = Counter(verdict.status if verdict.correct is None else words[verdict.correct] for verdict in verdicts)
    facts = {name: f"{count:,}" for name, count in counts.most_common()}
    support = Counter(row.citation_support.status for row in evaluation.predictions.values() if row.citation_support)
    facts |= {f"citations: {name}": f"{count:,}" for name, count in support.most_common()}
    bounds = [evaluation.scores.get(f"judge_accuracy_{end}") for end in ("low", "high")]
    if {*counts} - {*words.values()} and None not in bounds:
        facts["bounds of the accuracy"] = " to ".join(f"{bound:.1f} %" for bound in bounds)
    return facts


def _measurement(evaluation: Evaluation) -> Any:
    """Return the content of score.json without the values of other tables: metrics, intervals, stages."""
    score = to_json(evaluation.score)
    del score["metrics"], score["intervals"], score["runtime"]["stages"]
    return score


def _side_by_side(sides: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the dotted name of each value in one of the objects, with its text in each, empty if absent."""
    texts = [_flat(side) for side in sides]
    names = dict.fromkeys(name for side in texts for name in side)
    return [(name, [side.get(name, "") for side in texts]) for name in names]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}" if name else key).items()}
    is_plain = isinstance(value, str) and value.strip() and value.isprintable()
    return {name: value if is_plain else json.dumps(value, ensure_ascii=False)} if name else {}


def _questions(evaluations: Sequence[Evaluation], labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the data of the page's script: each passage once, scores in the order of `metrics`."""
    rows: list[tuple[PredictionRecord, ...]] = [(row,) for each in evaluations for row in each.predictions.values()]
    if len(evaluations) == 2:
        rows = [*paired_predictions(*evaluations)]
    metrics = list(dict.fromkeys(name for sides in rows for row in sides for name in question_scores(row)))
    attributed = [passage for sides in rows for row in sides for passage in row.attribution or ()]
    attributions = [name for name in dict.fromkeys(chain(*attributed)) if name not in ("id", "is_gold")]
    numbers: dict[tuple[str, ...], int] = {}

    def passage_data(passage: PassageRecord, attribution: dict[str, Any] | None) -> list[Any]:
        number = numbers.setdefault((passage.id, passage.title, passage.text, *passage.sources), len(numbers))
        values = [to_json(attribution.get(name)) for name in attributions] if attribution else []
        return [number, to_json(passage.score), passage.is_gold, *values]

    def side_data(row: PredictionRecord) -> dict[str, Any]:
        by_id = {passage["id"]: passage for passage in row.attribution or ()}
        names = ("answer", "reasoning", "finished", "num_passages_read", "verdict", "citation_support")
        own = {name: value for name in names if (value := getattr(row, name)) is not None}
        cites = {} if row.citation_scores is None else {"cites": True}
        return (
            own
            | cites
            | {
                "scores": [*map(question_scores(row).get, metrics)],
                "passages": [passage_data(passage, by_id.get(passage.id)) for passage in row.passages],
            }
        )

    questions = [
        {name: getattr(sides[0], name) for name in ("id", "question", "chat_history")}
        | {"references": next((row.references for row in sides if row.references), ())}  # a retriever alone has none
        | {"sides": [side_data(row) for row in sides]}
        for sides in track(rows, "report", unit="questions")
    ]
    return {
        "metrics": [labels.get(name, name).removesuffix(", %") for name in metrics],
        "attributions": [ATTRIBUTION_LABELS.get(name, name) for name in attributions],
        "passages": list(numbers),
        "questions": questions,
    }


def _json(value: Any) -> Markup:
    """Return JSON for a script element; no text in it can end the element."""
    text = json.dumps(value, default=to_json, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
