"""Judge the answers of an evaluation by a language model: right or wrong, and why.

    OPENAI_API_KEY=... python recipes/judge.py --evaluation path/to/evaluation --judge_model gpt-4o

The endpoint is any that speaks OpenAI's chat completions. Verdicts go into predictions.jsonl, scores into score.json,
both into report.html. What the model said is kept in judge.jsonl, in the same folder, and is never paid for twice:
started again, it asks for what is missing. --judge_dry_run true tells beforehand what judging takes. The flags of the
judge with which the evaluation was made are the defaults here.
"""

from dataclasses import dataclass
from pathlib import Path

from rqa.cli import data_args as inputs
from rqa.cli.parser import cli, flag, parse_configs, require


@dataclass(frozen=True)
class Judged:
    """What is judged."""

    evaluation: str = flag("", "folder of an evaluation: --output_dir of evaluate.py, or test/ in that of a training")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "evaluation")


def main() -> None:
    """Judge, or tell what it would take."""
    judged, judge = parse_configs(Judged(), inputs.Judge(), base="evaluation")

    from rqa.judge.client import Judge
    from rqa.judge.judge_evaluation import STORE, judge_folder
    from rqa.report.html import write_report

    folder = Path(judged.evaluation)
    judge_folder(folder, Judge(**judge.endpoint, store=folder / STORE), **judge.task)
    if not judge.judge_dry_run:
        if (folder.parent / "metrics.jsonl").is_file():  # of a training run, whose page shows its evaluation
            print(write_report(folder.parent))
        print(write_report(folder))


if __name__ == "__main__":
    cli(main)
