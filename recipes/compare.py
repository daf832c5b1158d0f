"""Print the scores of evaluations side by side; of two, by how much they differ, how surely, and where most.

python recipes/compare.py path/to/evaluation path/to/another --output path/to/comparison.json

In brackets are 95 % intervals, by bootstrap over the questions; what stands without them cannot be resampled from the
rows of predictions.jsonl. Two evaluations must be of the same questions: the difference is the second's score minus the
first's, and p the two-sided p-value of the sign-flip test, of each line by itself.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rqa.cli.parser import at_least, cli
from rqa.errors import InputError
from rqa.evaluation.results import TITLES, Evaluation, differences, paired_rows, read_evaluation
from rqa.evaluation.significance import LEVEL, RESAMPLES, question_scores
from rqa.terminal import printable

LONGEST = 300  # characters of a text that is printed; --output has all of it


def report_on(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the scores that each of the evaluations has, in their order, with intervals; null where it has none."""
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation.scores)
    return {
        "folders": [str(evaluation.folder) for evaluation in evaluations],
        "questions": [len(evaluation.predictions) for evaluation in evaluations],
        "level": LEVEL,
        "resamples": RESAMPLES,
        "scores": {name: [evaluation.scores.get(name) for evaluation in evaluations] for name in names},
        "intervals": {name: [evaluation.intervals.get(name) for evaluation in evaluations] for name in names},
    }


def report_differences(first: Evaluation, second: Evaluation, metric: str | None, show: int) -> dict[str, Any]:
    """Return by how much the second's scores are higher, and the `show` questions whose `metric` differs most."""
    found, pairs = differences(first, second), paired_rows(first, second)
    scored = [(question_scores(a), question_scores(b)) for a, b in pairs]
    known = dict.fromkeys(name for a, b in scored for name in a if name in b)
    if metric and metric not in known:
        raise InputError(f"--metric {metric}: expected a score of single questions, one of {', '.join(known)}")
    by = metric or ("f1" if "f1" in known else next(iter(known), ""))  # a retriever's evaluation has no f1
    differing = [
        {"id": row["id"], "question": row["question"], "references": row.get("references", [])}
        | {"scores": [a[by], b[by]], "answers": [row.get("answer"), other.get("answer")]}
        for (row, other), (a, b) in zip(pairs, scored, strict=True)
        if by in a and by in b and a[by] != b[by]
    ]
    differing.sort(key=lambda one: -abs(one["scores"][1] - one["scores"][0]))
    return {
        "differences": {name: asdict(difference) for name, difference in found.items()},
        "metric": by,
        "differing": len(differing),
        "differing_most": differing[:show],
    }


def cell(score: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    """Show a score and its interval; without one as wide, so that the scores of a column stand below each other."""
    if score is None:
        return ""
    low, high = (f"{end:{sign}z{6 + len(sign)}.2f}" for end in interval or (0.0, 0.0))  # z: no negative zero
    brackets = f" [{low}, {high}]"
    return f"{score:{sign}z.2f}" + (brackets if interval else " " * len(brackets))


def print_table(report: dict[str, Any]) -> None:
    """Print a row for each metric that one of the evaluations has, a column for each evaluation."""
    found: dict[str, dict[str, float]] | None = report.get("differences")
    rows = [[f"[{report['level']:.0%} interval]", *report["folders"], *(["difference", "p"] if found else [])]]
    for name, title in TITLES.items():
        if name in report["scores"]:
            rows.append([title, *map(cell, report["scores"][name], report["intervals"][name])])
            if found and (of := found.get(name)):
                rows[-1] += [cell(of["difference"], (of["low"], of["high"]), "+"), f"{of['p_value']:.4f}"]
                if name == "judge_accuracy" and of["questions"] < report["questions"][0]:
                    rows[-1][-1] += f" (of {of['questions']} questions)"
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(1, len(rows[0]))]
    for title, *cells in rows:
        line = "".join(f"  {text:>{width}}" for text, width in zip(cells, widths, strict=False))
        print(f"{title:22}{line}".rstrip())


def print_questions(report: dict[str, Any]) -> None:
    """Print the questions that differ most, with the answers of both and the references."""
    print(f"\n{report['metric']} differs at {report['differing']} of {report['questions'][0]} questions", end="")
    print("; most at:" if report["differing_most"] else ".")
    for one in report["differing_most"]:
        print("\n{}: {:.2f} -> {:.2f}".format(one["id"], *one["scores"]))
        answers = zip(report["folders"], one["answers"], strict=True)
        references = " | ".join(one["references"]) or None
        for label, text in [("question", one["question"]), *answers, ("references", references)]:
            if text is not None:  # a retriever's evaluation has no answers
                line = printable(" ".join(text.split()))
                print(f"    {label}: {line[:LONGEST]}{' ...' if len(line) > LONGEST else ''}")


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders with a score.json and a predictions.jsonl")
    parser.add_argument("--metric", help="of two: the score by which questions differ most; default: f1")
    parser.add_argument("--show", type=int, default=5, help="of two: how many of these questions; default: 5")
    parser.add_argument("--output", type=Path, help="a JSON file to write this to, and all other scores")
    args = parser.parse_args()
    at_least(args, 0, "show")
    evaluations = [read_evaluation(folder) for folder in args.folders]
    is_pair = len(evaluations) == 2
    if args.metric and not is_pair:
        raise InputError(f"--metric {args.metric}: expected two folders, found {len(evaluations)}")
    report = report_on(evaluations)
    if is_pair:
        report |= report_differences(evaluations[0], evaluations[1], args.metric, args.show)
    print_table(report)
    if is_pair:
        print_questions(report)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli(main)
