"""Plots of a report as inline SVG, in the page's colours and font, each with a description for screen readers."""

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rqa.evaluation.comparison import Evaluation
from rqa.evaluation.metrics import LABELS
from rqa.evaluation.results import ContextsRecord, RunRecords

SIDES = "AB"
CURVES = ("f1", "em", "rougeL", "bleu")  # metrics plotted over steps; the first alone if two runs are compared
RANKINGS = {"recall": "recall", "hit": "any gold passage", "all": "all gold passages"}  # likewise
MAX_MARKED_POINTS = 12  # points of a line: more markers would overlap, and the description lists each point
MAX_TICKS = 6  # on the x axis: more labels would overlap
LOSS_SEGMENTS = 100  # of a run, each drawn as its mean loss: the curve is smooth, and its trend still visible

# Placeholders, replaced by the CSS variables --ink, --line, --series-0 ..., which differ in dark mode.
INK, GRID, SERIES = "#0a0a01", "#0a0a02", ("#0a0a10", "#0a0a11", "#0a0a12", "#0a0a13")
MARKERS = "os^D"  # a second distinction, for readers who cannot distinguish the colours
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text elements instead of outlines
    "font.size": 8.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), GRID),
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """One line of a plot, with a gap where y is NaN, and error bars if it has intervals; `series` sets its colour."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[Sequence[float]] = ()
    series: int = 0
    is_dashed: bool = False
    is_faint: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot as SVG with its description."""

    title: str
    svg: Markup


def training_plots(runs: Sequence[RunRecords | None]) -> list[Plot]:
    """Plot the steps and validation scores of each side's run, in the same axes; None is a side without a run."""
    losses, rates, norms, scores = [], [], [], []
    for i, run in ((i, run) for i, run in enumerate(runs) if run):
        x = [step.step for step in run.steps]
        validations = [row for row in run.evaluations if re.fullmatch(r"eval-\d+", row.evaluation)]
        at = [int(row.evaluation.removeprefix("eval-")) for row in validations]
        evaluated = {name: [row.metrics.get(name, math.nan) for row in validations] for name in ("loss", *CURVES)}
        y, is_long = [step.loss for step in run.steps], len(x) > LOSS_SEGMENTS
        losses.append(Line(_name(runs, i, "training"), x, y, series=i, is_faint=is_long))
        if is_long:
            losses.append(Line(_name(runs, i, "training, mean"), *_mean_losses(run), series=i))
        losses.append(Line(_name(runs, i, "validation"), at, evaluated["loss"], series=i, is_dashed=True))
        norms.append(Line(_name(runs, i, "norm"), x, [step.gradient_norm for step in run.steps], series=i))
        rates.append(Line(_name(runs, i, "rate"), x, [step.learning_rate for step in run.steps], series=i))
        is_alone = None in runs or len(runs) == 1
        for j, name in enumerate(CURVES if is_alone else CURVES[:1]):
            label, series = _name(runs, i, LABELS[name].removesuffix(", %")), j if is_alone else i
            scores.append(Line(label, at, evaluated[name], series=series))
    return [
        *plot("Loss", "step", "nats per token", losses),
        *plot("Validation scores", "step", "%, BLEU of 100", scores, is_percentage=True),
        *plot("Gradient norm", "step", "L2 norm before clipping", norms, is_log=True),
        *plot("Learning rate", "step", "learning rate", rates),
    ]


def ranking_plots(evaluations: Sequence[Evaluation]) -> list[Plot]:
    """Plot recall, hit and all at each k, with intervals."""
    lines = []
    for i, evaluation in enumerate(evaluations):
        ks = sorted(int(name[7:]) for name in evaluation.scores if re.fullmatch(r"recall@[0-9]+", name))
        for j, (metric, label) in enumerate([*RANKINGS.items()][: 1 if len(evaluations) > 1 else None]):
            y = [evaluation.scores.get(f"{metric}@{k}", math.nan) for k in ks]
            intervals = [evaluation.intervals.get(f"{metric}@{k}", (math.nan, math.nan)) for k in ks]
            lines.append(Line(_name(evaluations, i, label), ks, y, intervals, series=i + j))
    return plot("Gold among the first k passages", "k", "% of gold, or of questions", lines, is_percentage=True)


def position_plots(reports: Sequence[ContextsRecord | None]) -> list[Plot]:
    """Plot F1 by the position of the gold passage, if there are several; None is a side without a context report."""
    lines = []
    for i, report in ((i, report) for i, report in enumerate(reports) if report and report.k > 1):
        positions = range(1, report.k + 1)
        conditions = [report.conditions[f"gold_at_{position}"] for position in positions]
        y = [condition["scores"]["f1"] for condition in conditions]
        intervals = [condition["intervals"]["f1"] for condition in conditions]
        lines.append(Line(_name(reports, i, "F1"), positions, y, intervals, series=i))
    return plot("Position of the gold passage", "position", "F1, %", lines, is_percentage=True)


def _name(sides: Sequence[object], i: int, label: str) -> str:
    return f"{SIDES[i]}: {label}" if len(sides) > 1 else label


def _mean_losses(run: RunRecords) -> tuple[list[float], list[float]]:
    """Return the mean step and the mean loss of each of LOSS_SEGMENTS parts of a run, weighted by target tokens."""
    finite = [(step.step, step.loss, step.target_tokens) for step in run.steps if math.isfinite(step.loss)]
    parts = [part for part in np.array_split(np.array(finite).reshape(-1, 3), LOSS_SEGMENTS) if len(part)]
    return [part[:, 0].mean() for part in parts], [np.average(part[:, 1], weights=part[:, 2]) for part in parts]


def plot(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, is_log: bool = False, is_percentage: bool = False
) -> list[Plot]:
    """Return the plot of lines, equal ones as one with all their labels, or [] if no line has a finite point."""
    lines = _merged(line for line in lines if np.isfinite(line.y).any())
    if not lines:
        return []
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):  # same ids in every run
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, yscale="log" if is_log else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(MAX_TICKS, integer=True))
        if is_log:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if len(ticks := {x for line in lines for x in line.x}) <= MAX_TICKS:
            axes.set_xticks(sorted(ticks))
        if is_percentage:
            axes.set_ylim(0, 103)
        for line in lines:
            axes.errorbar(
                line.x,
                line.y,
                np.abs(np.transpose(line.intervals) - np.array(line.y)) if line.intervals else None,
                label=line.label,
                color=SERIES[line.series],
                linestyle="--" if line.is_dashed else "-",
                linewidth=0.6 if line.is_faint else None,
                alpha=0.45 if line.is_faint else None,
                marker=MARKERS[line.series] if len(line.x) <= MAX_MARKED_POINTS else None,
                elinewidth=1,
            )
        if len(lines) > 1 or is_percentage:
            figure.legend(loc="outside upper left", ncols=3)
        file = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    description = f"{title}: {y_label} by {x_label}. {' '.join(map(_describe, lines))}"
    return [Plot(title, _inlined(file.getvalue(), description))]


def _merged(lines: Iterable[Line]) -> list[Line]:
    merged: dict[tuple[float, ...], Line] = {}
    for line in lines:
        points = (*line.x, *line.y)
        same = merged.get(points)
        merged[points] = replace(same, label=f"{same.label}, {line.label}") if same else line
    return list(merged.values())


def _inlined(svg: str, description: str) -> Markup:
    """Return the SVG element of a file, in the page's colours and font, without ids that another plot could have."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>| font-family: [^;]*;|(?<=<g) id=\"[^\"]*\"", "", svg)
    for color, name in [(INK, "ink"), (GRID, "line"), *((color, f"series-{i}") for i, color in enumerate(SERIES))]:
        svg = svg.replace(color, f"var(--{name})")
    return Markup('<svg role="img" aria-label="{}"').format(description) + Markup(svg[svg.index("<svg") + 4 :])


def _describe(line: Line) -> str:
    points = [(y, x) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if len(points) <= MAX_MARKED_POINTS:
        return f"{line.label}: {', '.join(f'{y:.3g} at {x:g}' for y, x in points)}."
    summary = {"first": points[0], "last": points[-1], "lowest": min(points), "highest": max(points)}
    return f"{line.label}: {', '.join(f'{name} {y:.3g} at {x:g}' for name, (y, x) in summary.items())}."
