"""Flags of the recipes: values that are refused, derived values, shipped configurations."""

from pathlib import Path

import pytest
import yaml

from rqa.atomic_files import write_json
from rqa.cli.data_args import DataArgs, FidPromptArgs, GeneratorArgs, PassageArgs, PromptArgs, RetrievalArgs
from rqa.cli.evaluation_args import EvaluationArgs
from rqa.cli.judge_args import JudgeArgs
from rqa.cli.parser import flat, parse_args
from rqa.cli.training_args import FLAGS_FREE_ON_RESUME, ModelArgs, OptimizationArgs, RunArgs, flags_locked_on_resume
from rqa.data.jsonl import parse_object
from rqa.errors import InputError

CONFIGS = Path(__file__).parents[2] / "recipes/configs"
COMMON = (ModelArgs(), DataArgs(), RetrievalArgs(), PassageArgs(), OptimizationArgs(), RunArgs())
EVALUATION = (EvaluationArgs(), GeneratorArgs(), RetrievalArgs(), JudgeArgs())


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("quickstart.yaml", (*COMMON, PromptArgs())),
        ("quickstart_fid.yaml", (*COMMON, FidPromptArgs())),
        ("quickstart_before.yaml", EVALUATION),
        ("quickstart_fid_test.yaml", EVALUATION),
    ],
)
def test_shipped_configurations_are_valid(name, groups):
    values = yaml.safe_load((CONFIGS / name).read_text())
    resolved = flat(parse_args(*groups, argv=["--config", str(CONFIGS / name)]))
    assert {name: resolved[name] for name in values} == values


@pytest.mark.parametrize(
    ("group", "argv", "words"),
    [
        (ModelArgs(), [], ("--model_name_or_path",)),
        (DataArgs(), [], ("--train_file",)),
        (RetrievalArgs(), ["--embedding_model", "e5"], ("--full_dataset_file_path",)),
        (PassageArgs(), ["--gold_dropout", "1.5"], ("--gold_dropout", "1.5")),
        (PromptArgs(), ["--user_prefix", "Q"], ("--user_prefix", "--assistant_prefix")),
        (PromptArgs(), ["--sep_user", "|"], ("--sep_user", "--user_prefix")),
        (PromptArgs(), ["--sep_sys", "|"], ("--sep_sys", "--user_prefix")),
        (GeneratorArgs(), ["--qa_is_fid", "true", "--max_prompt_length", "9"], ("--qa_is_fid", "--max_prompt_length")),
        (OptimizationArgs(), ["--max_steps", "0"], ("--max_steps", "0")),
        (OptimizationArgs(), ["--per_device_train_batch_size", "0"], ("--per_device_train_batch_size", "0")),
        (OptimizationArgs(), ["--max_grad_norm", "0"], ("--max_grad_norm", "0")),
        (OptimizationArgs(), ["--deepspeed", "no.json"], ("--deepspeed", "no.json")),
        (RunArgs(), [], ("--output_dir",)),
        (RunArgs(), ["--output_dir", "o", "--early_stopping_patience", "2"], ("--metric_for_best_model",)),
        (RunArgs(), ["--output_dir", "o", "--metric_for_best_model", "x"], ("--metric_for_best_model", "f1")),
    ],
)
def test_invalid_values_name_the_flag(group, argv, words):
    with pytest.raises(InputError) as refused:
        parse_args(group, argv=argv)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(2, -1, 20), (1.5, -1, 15), (2, 7, 7), (1, 70, 70)])
def test_number_of_steps(epochs, max_steps, expected):
    assert OptimizationArgs(num_train_epochs=epochs, max_steps=max_steps).num_steps(10) == expected


def test_flags_are_free_or_locked_on_resume():
    config = flat((*COMMON, PromptArgs()))
    locked = flags_locked_on_resume(config)
    assert locked.keys() == {f"--{name}" for name in config.keys() - FLAGS_FREE_ON_RESUME}
    assert not FLAGS_FREE_ON_RESUME - config.keys()
    assert locked["--seed"] == 0


def test_infinity_in_a_config_file_is_strict_json_and_infinity_again(tmp_path):
    args = (ModelArgs("m"), OptimizationArgs(max_grad_norm=float("inf")), RunArgs("out"))
    path = tmp_path / "config.json"
    write_json(path, flat(args))
    defaults = (ModelArgs("m"), OptimizationArgs(), RunArgs("out"))
    assert parse_args(*defaults, argv=["--config", str(path)]) == args
    assert parse_object(path.read_bytes())["max_grad_norm"] == "inf"
