"""The plots of a report, as parts of its page: in its colours and font, and in words for whoever cannot see them."""

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

from rqa.evaluation.results import TITLES, Evaluation, Row, Run

SIDES = "AB"
CURVES = ("f1", "em", "rougeL", "bleu")  # of the scores that are drawn over updates; of two runs the first
RANKINGS = {"recall": "recall", "hit": "any gold passage", "all": "all gold passages"}  # of two evaluations the first
MAX_MARKED_POINTS = 12  # points of a line: so many are marked, and told one by one
TICKS = 6
LOSS_SEGMENTS = 100  # of a run, over each of which its loss is averaged

# Colours that stand for the page's own, --ink, --line, --series-0 and on, which are others in the dark.
INK, GRID, SERIES = "#0a0a01", "#0a0a02", ("#0a0a10", "#0a0a11", "#0a0a12", "#0a0a13")
MARKERS = "os^D"  # for who cannot tell the colours apart
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """One line of a plot: a gap where y is NaN, bars where it has intervals; `series` is its colour and its marker."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[Sequence[float]] = ()
    series: int = 0
    is_dashed: bool = False
    is_faint: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot as SVG, with what it shows in words inside it."""

    title: str
    svg: Markup


def training_plots(runs: Sequence[Run | None]) -> list[Plot]:
    """Plot the updates of each side's run, or None, in the same axes, and the evaluations on the way."""
    losses, rates, norms, scores = [], [], [], []
    for i, run in enumerate(runs):
        if run is None:
            continue
        x = [update["number"] for update in run.updates]
        evaluated = [row for row in run.evaluations if re.fullmatch(r"eval-\d+", row["evaluation"])]
        at = [int(row["evaluation"].removeprefix("eval-")) for row in evaluated]
        losses += [
            Line(_of(runs, i, "training"), x, _floats(run.updates, "loss"), series=i, is_faint=len(x) > LOSS_SEGMENTS),
            *([Line(_of(runs, i, "averaged"), *_means(run), series=i)] if len(x) > LOSS_SEGMENTS else []),
            Line(_of(runs, i, "evaluation"), at, _floats(evaluated, "loss"), series=i, is_dashed=True),
        ]
        norms.append(Line(_of(runs, i, "norm"), x, _floats(run.updates, "gradient_norm"), series=i))
        rates.append(Line(_of(runs, i, "rate"), x, _floats(run.updates, "learning_rate"), series=i))
        for j, name in enumerate(CURVES[: None if None in runs or len(runs) == 1 else 1]):
            scores.append(Line(_of(runs, i, short_title(name)), at, _floats(evaluated, name), series=i + j))
    return _drawn(
        plot("Loss", "update", "nats per token", losses),
        plot("Scores on the way", "update", "%, BLEU of 100", scores, is_percentage=True),
        plot("Gradient norm", "update", "L2 norm before clipping", norms, is_log=True),
        plot("Learning rate", "update", "learning rate", rates),
    )


def ranking_plots(evaluations: Sequence[Evaluation]) -> list[Plot]:
    """Plot what is found among the first k passages, by k, with intervals."""
    lines = []
    for i, evaluation in enumerate(evaluations):
        ks = sorted(int(name.removeprefix("recall@")) for name in evaluation.scores if name.startswith("recall@"))
        for j, (family, label) in enumerate([*RANKINGS.items()][: 1 if len(evaluations) > 1 else None]):
            y = [evaluation.scores.get(f"{family}@{k}", math.nan) for k in ks]
            ends = [evaluation.intervals.get(f"{family}@{k}", (math.nan, math.nan)) for k in ks]
            lines.append(Line(_of(evaluations, i, label), ks, y, ends, series=i + j))
    return _drawn(
        plot("Found among the first k passages", "k", "% of gold, or of questions", lines, is_percentage=True)
    )


def position_plots(reports: Sequence[Row | None]) -> list[Plot]:
    """Plot the F1 of the answers by the place of the gold passage, of each side's report on contexts, or None."""
    lines = []
    for i, report in enumerate(reports):
        if report is None:
            continue
        at = [report["conditions"][f"gold_at_{place}"] for place in range(1, report["k"] + 1)]
        y, intervals = [of["scores"]["f1"] for of in at], [of["intervals"]["f1"] for of in at]
        lines.append(Line(_of(reports, i, "F1"), range(1, report["k"] + 1), y, intervals, series=i))
    return _drawn(plot("Place of the gold passage", "place", "F1, %", lines, is_percentage=True))


def short_title(name: str) -> str:
    """Return the name of a score without its unit."""
    return TITLES.get(name, name).removesuffix(", %")


def _of(sides: Sequence[object], i: int, label: str) -> str:
    return f"{SIDES[i]}: {label}" if len(sides) > 1 else label


def _drawn(*plots: Plot | None) -> list[Plot]:
    return [plot for plot in plots if plot]


def _floats(rows: Iterable[Row], name: str) -> list[float]:
    return [math.nan if row.get(name) is None else row[name] for row in rows]


def _means(run: Run) -> tuple[list[float], list[float]]:
    """Return the middle of each of LOSS_SEGMENTS parts of the updates, and its loss: every target token weighs the same."""
    finite = [update for update in run.updates if update["loss"] is not None]
    table = np.array([(update["number"], update["loss"], update["target_tokens"]) for update in finite]).reshape(-1, 3)
    parts = [part for part in np.array_split(table, LOSS_SEGMENTS) if len(part)]
    return [part[:, 0].mean() for part in parts], [np.average(part[:, 1], weights=part[:, 2]) for part in parts]


def plot(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, is_log: bool = False, is_percentage: bool = False
) -> Plot | None:
    """Draw lines, of those that are the same one under all their names; None where there is nothing to draw."""
    lines = _merged(line for line in lines if np.isfinite(line.y).any())
    if not lines:
        return None
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):  # of which the names of its parts are made
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, yscale="log" if is_log else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=True))
        if is_log:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if len(ticks := {x for line in lines for x in line.x}) <= TICKS:
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
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    words = f"{title}: {y_label} by {x_label}. {' '.join(map(_words, lines))}"
    return Plot(title, _inlined(file.getvalue(), words))


def _merged(lines: Iterable[Line]) -> list[Line]:
    found: dict[tuple[float, ...], Line] = {}
    for line in lines:
        same = found.setdefault((*line.x, *line.y), line)
        if same is not line:
            found[(*line.x, *line.y)] = replace(same, label=f"{same.label}, {line.label}")
    return list(found.values())


def _inlined(svg: str, words: str) -> Markup:
    """Make a file of SVG a part of the page: in its colours and font, with no name that another plot has as well."""
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>| font-family: [^;]*;|(?<=<g) id=\"[^\"]*\"", "", svg)
    for color, name in [(INK, "ink"), (GRID, "line"), *((color, f"series-{i}") for i, color in enumerate(SERIES))]:
        svg = svg.replace(color, f"var(--{name})")
    return Markup('<svg role="img" aria-label="{}"').format(words) + Markup(svg[svg.index("<svg") + 4 :])


def _words(line: Line) -> str:
    points = [(y, x) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if len(points) <= MAX_MARKED_POINTS:
        return f"{line.label}: {', '.join(f'{y:.3g} at {x:g}' for y, x in points)}."
    told = {"first": points[0], "last": points[-1], "lowest": min(points), "highest": max(points)}
    return f"{line.label}: {', '.join(f'{name} {y:.3g} at {x:g}' for name, (y, x) in told.items())}."
