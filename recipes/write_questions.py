"""Write questions, answers and gold passages for a corpus with a language model, in files for training and evaluation.

    OPENAI_API_KEY=... python recipes/write_questions.py \\
        --full_dataset_file_path path/to/corpus.jsonl --output_dir path/to/questions \\
        --num_questions 1000 --writer_model gpt-4o --judge_model gpt-4o

The endpoints are any with OpenAI's chat completions. Rules and a judge check each question; rejected.jsonl has the
others, with the reason. Responses are cached in the output folder, none is paid for twice: the same command resumes.
--writer_dry_run true estimates calls, tokens and cost. If passages, attempts or a budget are used up first, the files
have fewer questions, with a warning, and the status is 0.
"""

from dataclasses import replace
from pathlib import Path

from rqa import cli
from rqa.terminal import plural, write_json_result, write_result


def main() -> None:
    """Write the questions, or estimate their cost."""
    args, writing, judging = cli.parse_args(cli.QuestionArgs(), cli.WriterArgs(), cli.JudgeArgs())
    args.check_beside(judging)
    if writing.writer_dry_run:
        judging = replace(judging, judge_dry_run=True)  # needs no key either

    from rqa import data, judge, questions

    folder, plan = Path(args.output_dir), questions.Plan(**args.plan_options)
    writer = questions.Writer(**writing.client_options, cache_path=folder / questions.RESPONSES_FILE)
    checker = None
    if args.judge_questions:
        checker = judge.Judge(**judging.client_options, cache_path=folder / judge.RESPONSES_FILE)
    prices = {
        "writer": (writing.writer_prompt_price, writing.writer_completion_price),
        "judge": (judging.judge_prompt_price, judging.judge_completion_price),
    }
    passages = data.open_passages(args.full_dataset_file_path)
    if writing.writer_dry_run:
        for name, cost in questions.estimate_questions(passages, writer, checker, plan, prices).items():
            write_result(f"{name}, if no question is rejected: {cost}")
        return
    settings = args.settings(writing, judging)
    report = questions.write_questions(passages, writer, checker, plan, folder, settings=settings, prices=prices)
    for name in ("kept", "rejected", "passages", "documents", "usage"):
        write_result(f"{name}: ", end="")
        write_json_result(report[name])
    write_result(f"{folder}: written, {plural(report['missing'], 'question')} missing")


if __name__ == "__main__":
    cli.run_main(main)
