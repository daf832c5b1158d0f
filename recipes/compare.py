"""Print the scores of evaluations side by side; of two, also their differences with p-values and example questions.

python recipes/compare.py path/to/evaluation path/to/another --output path/to/comparison.json

In brackets: 95 % intervals, by bootstrap over the questions, if predictions.jsonl allows it. Two evaluations must have
the same questions: the difference is the second score minus the first, p is that of the two-sided sign-flip test.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rqa import evaluation
from rqa.atomic_files import write_json
from rqa.cli import Parser, at_least, check_output, run_main
from rqa.errors import InputError
from rqa.terminal import write_result

PARTIAL = ("judge_", "citation_")  # beginnings of metrics that are compared on the questions that both sides have
MAX_CHARACTERS = 300  # of a printed text; --output has the whole text


def report_scores(evaluations: Sequence[evaluation.Evaluation]) -> dict[str, Any]:
    """Return every score and its interval as a list with one value per evaluation, None if it has none."""
    names = dict.fromkeys(name for each in evaluations for name in each.scores)
    return {
        "folders": [str(each.folder) for each in evaluations],
        "questions": [len(each.predictions) for each in evaluations],
        "level": evaluation.LEVEL,
        "resamples": evaluation.RESAMPLES,
        "scores": {name: [each.scores.get(name) for each in evaluations] for name in names},
        "intervals": {name: [each.intervals.get(name) for each in evaluations] for name in names},
    }


def report_differences(pair: Sequence[evaluation.Evaluation], metric: str, show: int) -> dict[str, Any]:
    """Return the second's scores minus the first's, and the `show` questions with the largest differences."""
    results = evaluation.differences(*pair)
    metric, pairs = evaluation.differing_questions(*pair, metric=metric)
    return {
        "differences": {name: asdict(result) for name, result in results.items()},
        "metric": metric,
        "differing": len(pairs),
        "differing_most": [
            {"id": a.id, "question": a.question, "references": a.references}
            | {"scores": [evaluation.question_scores(one)[metric] for one in (a, b)], "answers": [a.answer, b.answer]}
            for a, b in pairs[:show]
        ],
    }


def cell(score: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    """Return a score with its interval; all cells have the same width after the score, so that a column aligns."""
    if score is None:
        return ""
    low, high = (f"{end:{sign}z{6 + len(sign)}.2f}" for end in interval or (0.0, 0.0))  # z: no negative zero
    brackets = f" [{low}, {high}]"
    return f"{score:{sign}z.2f}" + (brackets if interval else " " * len(brackets))


def print_table(report: dict[str, Any], labels: dict[str, str]) -> None:
    """Print a row for each metric in `labels` that an evaluation has, and a column for each evaluation."""
    results: dict[str, dict[str, float]] = report.get("differences", {})
    rows = [[f"[{report['level']:.0%} interval]", *report["folders"], *(["difference", "p"] if results else [])]]
    for name in [name for name in labels if name in report["scores"]]:
        rows.append([labels[name], *map(cell, report["scores"][name], report["intervals"][name])])
        if result := results.get(name):
            p_value = f"{result['p_value']:.4f}"
            if name.startswith(PARTIAL) and result["questions"] < report["questions"][0]:
                p_value += f" (of {result['questions']} questions)"
            rows[-1] += [cell(result["difference"], (result["low"], result["high"]), "+"), p_value]
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(1, len(rows[0]))]
    for label, *cells in rows:
        line = "".join(f"  {text:>{width}}" for text, width in zip(cells, widths, strict=False))
        write_result(f"{label:22}{line}".rstrip())


def print_questions(report: dict[str, Any]) -> None:
    """Print the questions with the largest differences, with both answers and the references."""
    end = "; most at:" if report["differing_most"] else "."
    write_result(f"\n{report['metric']} differs at {report['differing']} of {report['questions'][0]} questions{end}")
    for row in report["differing_most"]:
        write_result("\n{}: {:.2f} -> {:.2f}".format(row["id"], *row["scores"]))
        answers = zip(report["folders"], row["answers"], strict=True)
        references = " | ".join(row["references"]) or None
        for label, text in [("question", row["question"]), *answers, ("references", references)]:
            if text is not None:  # a retriever's evaluation has no answers
                line = " ".join(text.split())
                write_result(f"    {label}: {line[:MAX_CHARACTERS]}{' ...' if len(line) > MAX_CHARACTERS else ''}")


def main() -> None:
    """Compare, print, write."""
    parser = Parser()
    parser.add_argument("folders", nargs="+", type=Path, help="folders with score.json and predictions.jsonl")
    parser.add_argument("--metric", default="", help="score that selects example questions of two; default: f1")
    parser.add_argument("--show", type=int, default=5, help="number of example questions of two; default: 5")
    parser.add_argument("--output", type=Path, help="JSON file for this comparison and all other scores")
    args = parser.parse_args()
    at_least(args, 0, "show")
    output = check_output(args.output)
    evaluations = [evaluation.read_evaluation(folder) for folder in args.folders]
    is_pair = len(evaluations) == 2
    if args.metric and not is_pair:
        raise InputError(f"--metric {args.metric}: expected two folders, got {len(evaluations)}")
    report = report_scores(evaluations)
    if is_pair:
        report |= report_differences(evaluations, args.metric, args.show)
    if output:
        write_json(output, report)
    print_table(report, {name: label for each in evaluations for name, label in each.labels.items()})
    for each in evaluations:
        if each.score.notes:
            write_result(f"{each.folder}: {'; '.join(each.score.notes)}")
    if is_pair:
        print_questions(report)


if __name__ == "__main__":
    run_main(main)
