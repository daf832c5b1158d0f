"""Grade the answers of an evaluation with a language model: correct or not, and why.

    OPENAI_API_KEY=... python recipes/judge.py --evaluation path/to/evaluation --judge_model gpt-4o

The endpoint is any with OpenAI's chat completions. Verdicts are written to predictions.jsonl, scores to score.json,
both to report.html. Responses are cached in judge.jsonl in the same folder, and none is paid for twice: if the command
is repeated, only missing verdicts are requested. --judge_dry_run true estimates calls, tokens and cost. The defaults of
the judge's flags are those of the evaluation.
"""

from dataclasses import dataclass
from pathlib import Path

from rqa.cli import JudgeArgs, flag, parse_args, require, run_main
from rqa.terminal import write_result


@dataclass(frozen=True)
class FolderArgs:
    """The evaluation to judge."""

    evaluation: str = flag(
        "", "folder of an evaluation: --output_dir of evaluate.py, or test/ in that of a training", is_path=True
    )

    def check(self) -> None:
        """Raise InputError if the folder is missing."""
        require(self, "evaluation")


def main() -> None:
    """Judge, or estimate the cost."""
    args, judge_args = parse_args(FolderArgs(), JudgeArgs(), base="evaluation")

    from rqa.judge import RESPONSES_FILE, Judge, judge_answers
    from rqa.report import write_report

    folder = Path(args.evaluation)
    judge = Judge(**judge_args.client_options, cache_path=folder / RESPONSES_FILE)
    judge_answers(folder, judge, **judge_args.evaluation_options)
    if not judge_args.judge_dry_run:
        if (folder.parent / "metrics.jsonl").is_file():  # the report of a training run shows its evaluation
            write_result(write_report(folder.parent))
        write_result(write_report(folder))


if __name__ == "__main__":
    run_main(main)
