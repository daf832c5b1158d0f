"""The flags of written questions: those of the writer are those of the judge, and wrong ones are refused."""

import pytest

from rqa.cli import JudgeArgs, QuestionArgs, WriterArgs, parse_args
from rqa.errors import InputError
from rqa.questions import Plan


def test_the_writer_has_the_flags_of_the_judge():
    writer = {name.removeprefix("writer_"): value for name, value in vars(WriterArgs()).items()}
    judge = {name.removeprefix("judge_"): value for name, value in vars(JudgeArgs()).items()}
    assert writer.pop("instruction") == judge.pop("labels") == ""
    assert writer == judge


def test_the_defaults_of_the_flags_are_those_of_the_library():
    assert Plan(**QuestionArgs().plan_options) == Plan()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--num_questions 2", "--num_questions: expected at least 3, got 2"),
        ("--test_share 0.5 --validation_share 0.5", "less than 1 together, got 1"),
        ("--multi_turn_share 0.7 --unanswerable_share 0.4", "at most 1, got 1.1"),
        ("--test_share -0.1", "--test_share: expected a share from 0 to 1, got -0.1"),
        ("--max_attempts 0.5", "--max_attempts: expected at least 1, got 0.5"),
        ("--writer_timeout 0", "--writer_timeout: expected seconds above 0"),
        ("--writer_key_name sk-1", "--writer_key_name: expected the name of an environment variable"),
        ("--writer_base_url host", "--writer_base_url: expected http"),
        ("--writer_parameters [1]", "--writer_parameters [1]: expected object"),
        ("--writer_concurrency 0", "--writer_concurrency: expected at least 1"),
        ("--judge_questions false --judge_model m", "--judge_model: no effect with --judge_questions false"),
        ("--judge_dry_run true", "--judge_dry_run: no effect on questions"),
    ],
)
def test_wrong_flags_are_refused(argv, expected):
    words = ["--full_dataset_file_path", "c.jsonl", "--output_dir", "o", *argv.split()]
    with pytest.raises(InputError) as caught:
        parse(words)
    assert expected in str(caught.value)


def parse(words):
    args, writer, judging = parse_args(QuestionArgs(), WriterArgs(), JudgeArgs(), argv=words)
    args.check_beside(judging)
    return args, writer, judging


def test_flags_of_the_endpoint_do_not_change_the_questions():
    words = ["--full_dataset_file_path", "c.jsonl", "--output_dir", "o"]
    free = "--writer_concurrency 2 --judge_timeout 9 --writer_max_calls 7 --judge_base_url http://h/v1".split()
    settings = [
        args.settings(writer, judging)
        for args, writer, judging in (
            parse([*words, *more])
            for more in ([], free, ["--seed", "1"], ["--writer_instruction", "Be brief."], ["--judge_model", "m"])
        )
    ]
    assert settings[0] == settings[1]
    assert len({str(each) for each in settings}) == 4
