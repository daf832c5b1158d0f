"""Measurements of several ways to do the same: in turns, each in a process of its own, with intervals.

A way is a command whose last line of output is a JSON object of numbers. In each round every way runs once, and the
next round starts with another, so that a slow minute of the machine slows all of them. A ratio is that of one round.
Tables have the median over rounds, and an interval of order statistics: with n rounds the smallest and the largest
value enclose the true median with a probability of 1 - 2^(1-n), for any distribution. Many rounds leave out the
outermost values, down to 95 %. The rate of a large matrix product in the same dtype is measured in every round too.

On one thread (OMP_NUM_THREADS=1) seconds are those of the CPU that the process used: other work on the machine changes
them little. With more threads, which spin while they wait, they are those of a clock.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import torch

from rqa.distributed.device import bf16_is_fast

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "benchmarks/results", ROOT / "docs/images"
LIMIT = "matrix product"
LIMIT_SIZE, LIMIT_SECONDS = 2048, 3.0  # rows of the matrices; seconds of repetition
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # those that matter for matrix products

COLUMNS = {  # number: head of its column, format, whether there is a column of its ratio to ours
    "seconds": ("s", ".3g", True),
    "memory": ("GiB", ".2f", True),
    "positions": ("positions", ".2f", False),
    "share": ("share of the matrix product", ".2f", False),
}
RATIO = ".2f"

Run = dict[str, float]
Round = dict[str, Run]  # by way


@dataclass(frozen=True)
class Estimate:
    """The median of repeated measurements, and an interval that encloses the true median with probability `level`."""

    median: float
    low: float
    high: float
    level: float

    def __format__(self, spec: str) -> str:
        interval = f" [{self.low:{spec}}, {self.high:{spec}}]" if self.level > 0 else ""
        return f"{self.median:{spec}}{interval}"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median, and the narrowest interval of at least 95 %; with fewer than 6 values that of all values."""
    ordered, n = sorted(values), len(values)

    def level(left_out: int) -> float:
        return 1 - 2 * sum(math.comb(n, i) for i in range(left_out + 1)) / 2.0**n

    left_out = max((k for k in range((n + 1) // 2) if level(k) >= 0.95), default=0)
    return Estimate(median(ordered), ordered[left_out], ordered[-1 - left_out], level(left_out))


@dataclass(frozen=True)
class Question:
    """One question: the rounds that answer it, and their conditions. A file of results has these fields."""

    name: str  # of the files
    title: str
    ours: str  # the way that ratios refer to
    settings: dict[str, Any]
    machine: dict[str, Any]
    rounds: list[Round]

    @property
    def ways(self) -> list[str]:
        """The ways, without the matrix product."""
        return [way for way in dict.fromkeys(way for each in self.rounds for way in each) if way != LIMIT]

    def values(self, way: str, key: str) -> Estimate:
        """Return the estimate of one number of a way."""
        return estimate([each[way][key] for each in self.rounds if way in each])

    def ratio(self, way: str, key: str) -> Estimate:
        """Return the estimate of the number of a way, divided by ours of the same round."""
        return estimate([each[way][key] / each[self.ours][key] for each in self.rounds if way in each])

    def table(self) -> str:
        """Return a table in Markdown: a column for each number, and for time and memory the ratio to ours."""
        columns = [(key, *column) for key, column in COLUMNS.items() if key in self.rounds[0][self.ours]]
        heads = [f"{head} | × ours" if has_ratio else head for _, head, _, has_ratio in columns]
        rows = [f"| | {' | '.join([*heads, 'rounds'])} |"]
        rows.append("|---" * (rows[0].count(" |")) + "|")
        for way in self.ways:
            cells = []
            for key, _, spec, has_ratio in columns:
                cells.append(f"{self.values(way, key):{spec}}")
                if has_ratio:
                    cells.append("1" if way == self.ours else f"{self.ratio(way, key):{RATIO}}")
            cells.append(str(sum(way in each for each in self.rounds)))
            rows.append(f"| {way} | {' | '.join(cells)} |")
        level = 100 * self.values(self.ours, "seconds").level
        intervals = f"Intervals of {level:.0f} %." if level > 0 else "One round: no intervals."
        return "\n".join([*rows, "", f"{self.conditions} {intervals}"])

    @property
    def conditions(self) -> str:
        """One line: the settings, the threads and the measured limit."""
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        is_single = self.machine["threads"] == 1
        clock_text = "CPU seconds of 1 thread" if is_single else f"{self.machine['threads']} threads"
        limit = ""
        if any(LIMIT in each for each in self.rounds):
            limit = f", matrix product {self.values(LIMIT, 'gflops'):.0f} GFLOP/s"
        return f"{settings}, {clock_text}{limit}."

    def write(self) -> None:
        """Write the results."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(vars(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, name: str) -> "Question":
        """Read the results."""
        return cls(**json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def plot(name: str, questions: Mapping[str, Question], key: str = "seconds", unit: str = "time") -> None:
    """Write a plot of the ratios to ours, one group of bars for each question, as SVG."""
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "rqa"  # the same file for the same numbers
    ways = [*dict.fromkeys(way for each in questions.values() for way in each.ways if way != each.ours)]
    figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.28 * (len(ways) + 1) * len(questions)), layout="constrained")
    height = 0.8 / len(ways)
    for number, way in enumerate(ways):
        for place, question in enumerate(questions.values()):
            if way not in question.ways:
                continue
            ratio, y = question.ratio(way, key), place + (number + 0.5) * height - 0.4
            error = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
            label = way if place == 0 else None
            axes.barh(y, ratio.median, height * 0.9, xerr=error, color=f"C{number}", label=label)
            axes.annotate(f" {ratio.median:.2f}", (ratio.high, y), va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(questions)), [*questions])
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit} / {unit} of rqa, median and interval")
    axes.margins(x=0.1)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"benchmark-{name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def run_round(ways: Mapping[str, Sequence[str]], number: int) -> Round:
    """Run every way once, one after the other, and return their numbers. Each round begins with another way."""
    names = [*ways]
    start = number % len(names)
    results: Round = {}
    for name in names[start:] + names[:start]:
        begin = time.perf_counter()
        done = subprocess.run([*ways[name], "--round", str(number)], capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            sys.exit(f"{name}: exit status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        results[name] = json.loads(done.stdout.splitlines()[-1])
        seconds = time.perf_counter() - begin
        print(
            f"round {number}, {name}: {json.dumps(results[name])}, {seconds:.0f} s in all", file=sys.stderr, flush=True
        )
    return {name: results[name] for name in names}


def machine() -> dict[str, Any]:
    """Return the facts of this machine, and the versions, that times depend on."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if sys.platform == "linux" else ""
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = facts.get("flags", "").split()
    return {
        "cpu": facts.get("model name", platform.processor()),
        "family, model, stepping": ", ".join(facts.get(name, "") for name in ("cpu family", "model", "stepping")),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith("MALLOC_")},
    }


def matrix_product_rate(dtype: torch.dtype, seconds: float = LIMIT_SECONDS) -> float:
    """Return the fastest rate of a square matrix product, in GFLOP/s."""
    left, right = (torch.randn(LIMIT_SIZE, LIMIT_SIZE).to(dtype) for _ in range(2))
    fastest, end = math.inf, clock() + seconds
    while (start := clock()) < end:
        left @ right
        fastest = min(fastest, clock() - start)
    return 2 * LIMIT_SIZE**3 / fastest / 1e9


def dtypes() -> list[str]:
    """Return the dtypes to measure on this CPU."""
    return ["fp32", "bf16"] if bf16_is_fast(torch.device("cpu")) else ["fp32"]


def clock() -> float:
    """Return seconds: of the CPU for one thread, else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a name."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the flags that all questions share."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help="measurements of each way")
    made.add_argument("--quick", action="store_true", help="one short round, to see that it runs; writes no files")
    made.add_argument("--keep", action="store_true", help="add the rounds to those of the results file")
    made.add_argument("--dtypes", nargs="+", default=dtypes(), choices=("fp32", "bf16"))
    made.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)  # of a child
    made.add_argument("--child", nargs="+", help=argparse.SUPPRESS)  # measure one way in this process
    return made


def child(file: str, *words: object) -> list[str]:
    """Return the command that measures one way in a process of its own."""
    return [sys.executable, file, "--child", *map(str, words)]


def new_question(args: argparse.Namespace, name: str, title: str, ours: str, settings: dict[str, Any]) -> Question:
    """Return a question with the rounds that `--keep` keeps: those of its file, of the same machine and threads."""
    question = Question(name, title, ours, settings, machine(), [])
    if not args.keep or not (RESULTS / f"{name}.json").exists():
        return question
    old = Question.read(name)
    if old.machine != question.machine:
        sys.exit(f"--keep: expected the machine of {RESULTS / name}.json, {old.machine}, got {question.machine}")
    return replace(question, rounds=old.rounds)


def answer(args: argparse.Namespace, question: Question, ways: Mapping[str, Sequence[str]]) -> Question:
    """Measure the ways, add the rounds to those of the question, and print it. Each round is written at its end."""
    all_ways = {**ways, LIMIT: [sys.executable, __file__, str(question.settings["dtype"])]}
    first = len(question.rounds)
    for number in range(first, first + (1 if args.quick else args.rounds)):
        question = replace(question, rounds=[*question.rounds, run_round(all_ways, number)])
        if not args.quick:
            question.write()
    return finish(args, question)


def finish(args: argparse.Namespace, question: Question) -> Question:
    """Print the table, and write the results."""
    print(f"## {question.title}\n\n{question.table()}\n", flush=True)
    if not args.quick:
        question.write()
    return question


def print_numbers(measured: Callable[[], Run]) -> None:
    """Print the numbers of one way; the last line of a child."""
    print(json.dumps(measured()), flush=True)


if __name__ == "__main__":
    print(json.dumps({"gflops": matrix_product_rate(torch_dtype(sys.argv[1]))}))
