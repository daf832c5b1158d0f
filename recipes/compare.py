"""Print the scores of evaluations side by side; of two, by how much they differ, how surely, and where most.

python recipes/compare.py path/to/evaluation path/to/another --output path/to/comparison.json

In brackets are 95 % intervals, by bootstrap over the questions; what stands without them cannot be resampled from the
rows of predictions.jsonl. Two evaluations must be of the same questions: the difference is the second's score minus the
first's, and p the two-sided p-value of the sign-flip test, of each line by itself.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rqa.errors import InputError
from rqa.flags import at_least, cli
from rqa.jsonl import parse_object
from rqa.statistics import LEVEL, RESAMPLES, compare, measures, question_scores, score_intervals

ROWS = {
    "recall@1": "Recall@1, %",
    "recall@3": "Recall@3, %",
    "recall@10": "Recall@10, %",
    "bleu": "BLEU",
    "rougeL": "ROUGE-L, %",
    "em": "EM, %",
    "f1": "F1, %",
    "answer_words": "words in an answer",
    "loss": "loss, nats per token",
    "seconds": "seconds per answer",
}
LONGEST = 300  # characters of a text that is printed; --output has all of it


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation's folder holds: its scores, with the seconds per answer, and its predictions by id."""

    folder: Path
    scores: dict[str, float]
    predictions: dict[str, dict[str, Any]]


def read_evaluation(folder: Path) -> Evaluation:
    """Read score.json and predictions.jsonl. Raises InputError unless both are there, and of one evaluation."""
    for name in ("score.json", "predictions.jsonl"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: expected the folder of an evaluation, found no {name} in it")
    score = json.loads((folder / "score.json").read_text(encoding="utf-8"))
    scores: dict[str, float] = score["metrics"]
    predictions = read_predictions(folder / "predictions.jsonl")
    for name, measure in measures(list(predictions.values())).items():
        if name in scores and not math.isclose(scores[name], measure.value, rel_tol=1e-6, abs_tol=1e-6):
            raise InputError(
                f"{folder}: expected score.json and predictions.jsonl of one evaluation, found {name} "
                f"{scores[name]:.4f} in the one and {measure.value:.4f} by the other; evaluate again"
            )
    if "generation" in score:
        scores["seconds"] = score["generation"]["seconds_per_answer"]
    return Evaluation(folder, scores, predictions)


def read_predictions(path: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a predictions.jsonl by id, in its order."""
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        try:
            row = parse_object(line)
        except ValueError as problem:
            raise InputError(f"{path}:{number}: {problem}; evaluate again") from problem
        if not isinstance(row.get("id"), str) or row["id"] in rows:
            raise InputError(f"{path}:{number}: expected an id that no line before has, found {row.get('id')!r}")
        rows[row["id"]] = row
    return rows


def check_same_questions(first: Evaluation, second: Evaluation) -> None:
    """Raise InputError unless both have the same ids, and under each the same question and references."""
    found = f"expected two evaluations of the same questions, found in {first.folder} and {second.folder}"
    a, b = first.predictions, second.predictions
    if lone := [name for name in {**a, **b} if (name in a) != (name in b)]:
        raise InputError(f'{found} {len(lone)} ids that only one of them has, the first "{lone[0]}"')
    for key in ("question", "references"):  # which a retriever's evaluation has none of
        if unlike := [name for name in a if key in a[name] and a[name][key] != b[name].get(key, a[name][key])]:
            raise InputError(f'{found} {len(unlike)} ids with unlike "{key}", the first "{unlike[0]}"')


def report_on(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the scores that each of the evaluations has, in their order, with intervals; null where it has none."""
    found = [score_intervals(list(evaluation.predictions.values())) for evaluation in evaluations]
    names = dict.fromkeys(name for evaluation in evaluations for name in evaluation.scores)
    return {
        "folders": [str(evaluation.folder) for evaluation in evaluations],
        "questions": [len(evaluation.predictions) for evaluation in evaluations],
        "level": LEVEL,
        "resamples": RESAMPLES,
        "scores": {name: [evaluation.scores.get(name) for evaluation in evaluations] for name in names},
        "intervals": {name: [intervals.get(name) for intervals in found] for name in names},
    }


def report_differences(first: Evaluation, second: Evaluation, metric: str | None, show: int) -> dict[str, Any]:
    """Return by how much the second's scores are higher, and the `show` questions whose `metric` differs most."""
    check_same_questions(first, second)
    pairs = [(row, second.predictions[name]) for name, row in first.predictions.items()]
    try:
        differences = compare([row for row, _ in pairs], [row for _, row in pairs])
    except ValueError as problem:
        raise InputError(f"{first.folder} and {second.folder}: {problem}") from problem
    scored = [(question_scores(a), question_scores(b)) for a, b in pairs]
    known = dict.fromkeys(name for a, b in scored for name in a if name in b)
    if metric and metric not in known:
        raise InputError(f"--metric {metric}: expected a score of single questions, one of {', '.join(known)}")
    by = metric or ("f1" if "f1" in known else next(iter(known), ""))  # a retriever's evaluation has no f1
    differing = [
        {"id": row["id"], "question": row["question"], "references": row.get("references", [])}
        | {"scores": [a[by], b[by]], "answers": [row.get("answer"), other.get("answer")]}
        for (row, other), (a, b) in zip(pairs, scored, strict=True)
        if a.get(by) != b.get(by)
    ]
    differing.sort(key=lambda one: -abs(one["scores"][1] - one["scores"][0]))
    return {
        "differences": {name: asdict(difference) for name, difference in differences.items()},
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
    differences: dict[str, dict[str, float]] | None = report.get("differences")
    rows = [[f"[{report['level']:.0%} interval]", *report["folders"], *(["difference", "p"] if differences else [])]]
    for name, title in ROWS.items():
        if name in report["scores"]:
            rows.append([title, *map(cell, report["scores"][name], report["intervals"][name])])
            if differences and (of := differences.get(name)):
                rows[-1] += [cell(of["difference"], (of["low"], of["high"]), "+"), f"{of['p_value']:.4f}"]
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
                line = " ".join(text.split())
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
