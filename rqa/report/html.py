"""report.html: all that is known of an evaluation, of a training run, or of two, on one page that loads nothing.

What the folders hold was written by models and strangers. On the page it is text: Jinja escapes it; the questions stand
in a block of JSON, which a script shows as `textContent`; a policy forbids all scripts but that one, and all loading.
"""

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rqa import __version__
from rqa.errors import InputError
from rqa.evaluation.results import TITLES, Evaluation, Results, Row, Run, differences, paired_rows, read_results
from rqa.evaluation.significance import LEVEL, question_scores
from rqa.report.plots import SIDES, position_plots, ranking_plots, short_title, training_plots

ATTRIBUTIONS = {"cross_attention": "cross-attention, share", "leave_one_out": "leave one out, nats"}


def write_report(folder: Path, other: Path | None = None, output: Path | None = None) -> Path:
    """Write report.html of an evaluation's folder or a training run's, and return its path; see `read_results`.

    With `other` both stand side by side, two evaluations of the same questions, in comparison.html. The same files give
    the same bytes. Raises InputError where a file is not what it should be, or the page cannot be written.
    """
    page = render([read_results(path) for path in (folder, other) if path is not None])
    path = output or folder / ("report.html" if other is None else "comparison.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half of a surrogate pair, which the name of a folder can bring, is in no file: it is shown as its escape.
        path.write_bytes(page.encode(errors="backslashreplace"))
    except OSError as error:
        raise InputError(f"{path}: the report cannot be written: {error.strerror}") from error
    return path


def render(sides: Sequence[Results]) -> str:
    """Return the page of one, or of two whose evaluations are of the same questions."""
    evaluations = [side.evaluation for side in sides if side.evaluation]
    if len(evaluations) < len(sides) == 2:
        lacking = next(side.folder for side in sides if not side.evaluation)
        raise InputError(f"{lacking}: expected two evaluations to compare, found none in it")
    script = files("rqa.report").joinpath("templates/report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("rqa.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": shown_score, "signed": signed, "milliseconds": milliseconds}
    return environment.get_template("report.html").render(
        sides=sides,
        letters=SIDES,
        evaluations=evaluations,
        scores=_scores(evaluations),
        level=evaluations[0].about.get("level", LEVEL) if evaluations else LEVEL,
        training=training_plots([side.run for side in sides]),
        run_facts=[(i, _run_facts(side.run)) for i, side in enumerate(sides) if side.run],
        ranking=ranking_plots(evaluations),
        stages=[_stages(evaluation) for evaluation in evaluations],
        contexts=[(i, side.contexts) for i, side in enumerate(sides) if side.contexts],
        positions=position_plots([side.contexts for side in sides]),
        verdicts=[_verdicts(evaluation) for evaluation in evaluations],
        flags=_side_by_side([side.config for side in sides]),
        about=_side_by_side([_traces(evaluation) for evaluation in evaluations]),
        data=_json(_questions(evaluations)),
        version=__version__,
        style=Markup(files("rqa.report").joinpath("templates/report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


# Scores


def _scores(evaluations: Sequence[Evaluation]) -> list[Row]:
    """Return a row for each score: those of TITLES first, the others under their names."""
    names = [*TITLES, *(name for evaluation in evaluations for name in evaluation.scores)]
    found = differences(*evaluations) if len(evaluations) == 2 else {}
    return [
        {
            "name": name,
            "title": TITLES.get(name, name),
            "is_first": name in TITLES,
            "is_percentage": TITLES.get(name, "").endswith("%") or name == "bleu",
            "cells": [(evaluation.scores.get(name), evaluation.intervals.get(name)) for evaluation in evaluations],
            "difference": found.get(name),
        }
        for name in dict.fromkeys(names)
        if any(name in evaluation.scores for evaluation in evaluations)
    ]


def shown_score(value: float, name: str) -> str:
    """Show a score in the digits that it is good for."""
    return f"{value:.3g}" if name == "seconds" else f"{value:z.{3 if name == 'loss' else 1}f}"


def signed(value: float, name: str) -> str:
    """Show a difference of scores with its sign."""
    text = shown_score(abs(value), name)
    return f"{'+' if value > 0 else '−'}{text}" if float(text) else text


def milliseconds(seconds: float) -> str:
    """Show seconds as milliseconds, in three digits, of less than a hundredth in four decimals."""
    shown = 1000 * seconds
    return f"{shown:,.{max(0, 2 - math.floor(math.log10(max(shown, 0.01))))}f}"


# Tables


def _run_facts(run: Run) -> dict[str, str]:
    """Return what is worth knowing of a run beside its curves."""
    facts = {
        "updates": f"{len(run.updates):,}",
        "skipped, not finite": f"{sum(update['skipped'] for update in run.updates):,}",
        "examples": f"{sum(update['examples'] for update in run.updates):,}",
        "target tokens": f"{sum(update['target_tokens'] for update in run.updates):,}",
    }
    if run.timings:
        facts["minutes in updates"] = f"{sum(row['seconds'] for row in run.timings) / 60:,.1f}"
        facts["peak memory, GiB"] = f"{max(row['memory_gib'] for row in run.timings):,.1f}"
    return facts


def _stages(evaluation: Evaluation) -> Row:
    """Return the stages of an answer, and the seconds of all; of older evaluations the two that were timed."""
    runtime, retrieval, generation = (
        evaluation.about.get(name) or {} for name in ("runtime", "retrieval", "generation")
    )
    older = {"retrieval": retrieval.get("seconds_per_question"), "generation": generation.get("seconds_per_answer")}
    stages = runtime.get("stages") or {
        name: {"seconds_per_question": seconds} for name, seconds in older.items() if seconds is not None
    }
    return {"stages": stages, "total": sum(stage["seconds_per_question"] for stage in stages.values())}


def _verdicts(evaluation: Evaluation) -> dict[str, str]:
    """Count the verdicts, and why there is none; and tell between what the accuracy lies whatever those would be."""
    judged = [row["judge"] for row in evaluation.predictions.values() if row.get("judge")]
    correct = {True: "correct", False: "incorrect"}
    counts = Counter(correct.get(verdict.get("correct"), verdict["status"]) for verdict in judged)
    facts = {name: f"{count:,}" for name, count in counts.most_common()}
    ends = [evaluation.scores.get(f"judge_accuracy_{end}") for end in ("low", "high")]
    if {*counts} - {*correct.values()} and None not in ends:
        facts["correct, if all others are wrong, or right"] = " to ".join(f"{end:.1f} %" for end in ends)
    return facts


def _traces(evaluation: Evaluation) -> Row:
    """Return what a score was measured with; the stages have a table of their own."""
    runtime = {name: value for name, value in (evaluation.about.get("runtime") or {}).items() if name != "stages"}
    return evaluation.about | {"runtime": runtime}


def _side_by_side(sides: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Return the name of each value in one of the objects, and the values as text, empty where it has none."""
    flat = [_flat(side) for side in sides]
    return [
        (name, [side.get(name, "") for side in flat]) for name in dict.fromkeys(name for side in flat for name in side)
    ]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}" if name else key).items()}
    is_plain = isinstance(value, str) and value.strip() and value.isprintable()
    return {name: value if is_plain else json.dumps(value, ensure_ascii=False)} if name else {}


# Questions


def _questions(evaluations: Sequence[Evaluation]) -> Row:
    """Return the questions as the page's script reads them: each passage once, scores in the order of their names."""
    if len(evaluations) == 2:
        rows: list[tuple[Row, ...]] = [*paired_rows(*evaluations)]
    else:
        rows = [(row,) for evaluation in evaluations for row in evaluation.predictions.values()]
    evidence = [of for sides in rows for row in sides for of in row.get("attribution") or ()]
    attributions = list(dict.fromkeys(name for of in evidence for name in of if name not in ("id", "gold")))
    scored = [[question_scores(row) for row in sides] for sides in rows]
    metrics = list(dict.fromkeys(name for of in scored for scores in of for name in scores))
    passages: dict[tuple[Any, ...], int] = {}

    def numbered(passage: Row) -> int:
        """Return the number of a passage, the next where it is new; gold that was read may be known by its id alone."""
        content = (passage.get("title") or "", passage.get("text"), *(passage.get("sources") or ()))
        return passages.setdefault((passage["id"], *content), len(passages))

    def side(row: Row, scores: Mapping[str, float]) -> Row:
        owed = {of["id"]: [of.get(name) for name in attributions] for of in row.get("attribution") or ()}
        shown = row.get("passages") or row.get("attribution") or ()
        return {name: row[name] for name in ("answer", "finished", "read", "judge") if row.get(name) is not None} | {
            "scores": [scores.get(name) for name in metrics],
            "passages": [[numbered(of), of.get("score"), of["gold"], *owed.get(of["id"], ())] for of in shown],
        }

    questions = [
        {
            "id": first["id"],
            "question": first["question"],
            "chat_history": first.get("chat_history") or [],
            "references": first.get("references") or [],
            "sides": [side(row, scores) for row, scores in zip((first, *others), of, strict=True)],
        }
        for (first, *others), of in zip(rows, scored, strict=True)
    ]
    return {
        "metrics": [short_title(name) for name in metrics],
        "attributions": [ATTRIBUTIONS.get(name, name) for name in attributions],
        "passages": list(passages),
        "questions": questions,
    }


def _json(value: Any) -> Markup:
    """Return JSON for a script element, which no text in it can end."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))
