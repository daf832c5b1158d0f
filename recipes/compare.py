"""Print the scores of evaluations side by side.

python recipes/compare.py path/to/evaluation path/to/another
"""

import argparse
import json
from pathlib import Path

from rqa.errors import InputError
from rqa.flags import cli

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
}


def read_score(folder: Path) -> dict[str, float]:
    """Return the metrics of an evaluation's folder, and its seconds per answer."""
    path = folder / "score.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected the folder of an evaluation, found no score.json in it")
    score = json.loads(path.read_text(encoding="utf-8"))
    metrics: dict[str, float] = score["metrics"]
    if "generation" in score:
        metrics["seconds"] = score["generation"]["seconds_per_answer"]
    return metrics


def main() -> None:
    """Print a row for each metric that one of the evaluations has, a column for each evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with a score.json")
    folders = parser.parse_args().folders
    scores = [read_score(folder) for folder in folders]
    width = max(12, *(len(str(folder)) for folder in folders))
    print(f"{'':22}" + "".join(f"  {folder!s:>{width}}" for folder in folders))
    for name, title in (ROWS | {"seconds": "seconds per answer"}).items():
        if any(name in score for score in scores):
            cells = (f"{score[name]:.2f}" if name in score else "" for score in scores)
            print(f"{title:22}" + "".join(f"  {cell:>{width}}" for cell in cells))


if __name__ == "__main__":
    cli(main)
