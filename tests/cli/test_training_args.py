"""Flags of the recipes: values that are refused, derived values, shipped configurations."""

import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import DistributedType

from rqa.atomic_files import write_json
from rqa.cli import parser
from rqa.cli.data_args import DataArgs, FidPromptArgs, GeneratorArgs, PassageArgs, PromptArgs
from rqa.cli.evaluation_args import EvaluationArgs
from rqa.cli.judge_args import JudgeArgs
from rqa.cli.parser import flat, parse_args
from rqa.cli.retrieval_args import RetrievalArgs
from rqa.cli.training_args import FLAGS_FREE_ON_RESUME, ModelArgs, OptimizationArgs, RunArgs, flags_locked_on_resume
from rqa.data.jsonl import parse_object
from rqa.errors import InputError
from rqa.models.lora import Lora
from rqa.training.checkpoint import FREE_ON_RESUME

CONFIGS = Path(__file__).parents[2] / "recipes/configs"
COMMON = (ModelArgs(), DataArgs(), RetrievalArgs(), PassageArgs(), OptimizationArgs(), RunArgs())
PREFIXES = ["--user_prefix", "Q", "--assistant_prefix", "A"]
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
        (PromptArgs(), ["--chat_template_kwargs", "[1]"], ("--chat_template_kwargs", "object")),
        (PromptArgs(), ["--chat_template_kwargs", "{thinking: false}"], ("--chat_template_kwargs", "object")),
        (PromptArgs(), ["--chat_template_date", "3 May"], ("--chat_template_date", "3 May", "2024-07-26")),
        (PromptArgs(), [*PREFIXES, "--chat_template_date", "2020-01-02"], ("--chat_template_date", "--user_prefix")),
        (PromptArgs(), [*PREFIXES, "--chat_template_kwargs", "{}"], ("--chat_template_kwargs", "--user_prefix")),
        (GeneratorArgs(), ["--qa_is_fid", "true", "--chat_template_kwargs", "{}"], ("--qa_is_fid", "_kwargs")),
        (GeneratorArgs(), ["--qa_is_fid", "true", "--chat_template_date", "2020-01-02"], ("--qa_is_fid", "_date")),
        (GeneratorArgs(), ["--qa_is_fid", "true", "--max_prompt_length", "9"], ("--qa_is_fid", "--max_prompt_length")),
        (OptimizationArgs(), ["--max_steps", "0"], ("--max_steps", "0")),
        (OptimizationArgs(), ["--num_train_epochs", "0"], ("--num_train_epochs", "0")),
        (OptimizationArgs(), ["--num_train_epochs", "inf"], ("--num_train_epochs", "inf")),
        (OptimizationArgs(), ["--max_grad_norm=-inf"], ("--max_grad_norm", "-inf")),
        (OptimizationArgs(), ["--per_device_train_batch_size", "0"], ("--per_device_train_batch_size", "0")),
        (OptimizationArgs(), ["--max_grad_norm", "0"], ("--max_grad_norm", "0")),
        (OptimizationArgs(), ["--deepspeed", "no.json"], ("--deepspeed", "no.json")),
        (RunArgs("o"), ["--stop_signals", "USR1,USR9"], ("--stop_signals", "USR9")),
        (RunArgs("o"), ["--stop_signals", "SIGKILL"], ("--stop_signals", "SIGKILL")),
        (RunArgs("o"), ["--resume_from_checkpoint", "no/such"], ("--resume_from_checkpoint", "no/such", "latest")),
        (RunArgs(), [], ("--output_dir",)),
        (RunArgs(), ["--output_dir", "o", "--early_stopping_patience", "2"], ("--metric_for_best_model",)),
        (RunArgs(), ["--output_dir", "o", "--metric_for_best_model", "x"], ("--metric_for_best_model", "f1")),
    ],
)
def test_invalid_values_name_the_flag(group, argv, words):
    with pytest.raises(InputError) as refused:
        parse_args(group, argv=argv)
    assert all(word in str(refused.value) for word in words)


def test_the_flags_of_the_chat_template_are_options_of_the_collator():
    argv = ["--chat_template_kwargs", '{"enable_thinking": true}', "--chat_template_date", "2020-01-02"]
    [given], [default] = parse_args(PromptArgs(), argv=argv), parse_args(PromptArgs(), argv=[])
    names = ("chat_template_kwargs", "chat_template_date")
    assert [given.collator_options[name] for name in names] == [{"enable_thinking": True}, "2020-01-02"]
    assert [default.collator_options[name] for name in names] == [{}, "2024-07-26"]
    assert parse_args(PromptArgs(), argv=argv) == (PromptArgs(**{name: flat((given,))[name] for name in vars(given)}),)


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(2, -1, 20), (1.5, -1, 15), (2, 7, 7), (1, 70, 70)])
def test_number_of_steps(epochs, max_steps, expected):
    assert OptimizationArgs(num_train_epochs=epochs, max_steps=max_steps).num_steps(10) == expected


@pytest.mark.parametrize(
    ("value", "checkpoint"), [("", ""), ("false", ""), ("true", "latest"), ("True", "latest"), ("latest", "latest")]
)
def test_a_truth_value_resumes_from_the_latest_checkpoint(value, checkpoint):
    [args] = parse_args(RunArgs("o"), argv=["--resume_from_checkpoint", value])
    assert args.run_options["resume_from_checkpoint"] == checkpoint
    assert args.folder_options["resume"] == bool(checkpoint)


def test_the_adapter_of_the_flags():
    assert ModelArgs("m").lora is None
    assert ModelArgs("m", lora_rank=8).lora == Lora(8, 16, 0.0, "all-linear")
    names = ModelArgs("m", lora_rank=8, lora_alpha=4.0, lora_dropout=0.1, lora_target_modules="q_proj, v_proj").lora
    assert names == Lora(8, 4.0, 0.1, ("q_proj", "v_proj"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lora_rank": -1}, "--lora_rank"),
        ({"lora_rank": 1, "lora_dropout": 1.0}, "--lora_dropout: expected less than 1"),
        ({"lora_rank": 1, "lora_alpha": 0.0}, "--lora_alpha: expected more than 0"),
        ({"lora_rank": 1, "lora_target_modules": " "}, "--lora_target_modules"),
        ({"lora_alpha": 8.0}, "--lora_alpha: no effect without --lora_rank"),
        ({"lora_target_modules": "q_proj"}, "--lora_target_modules: no effect without --lora_rank"),
        ({"merge_adapter": True}, "--merge_adapter: no effect without an adapter"),
    ],
)
def test_flags_of_adapters_are_checked(flags, message):
    with pytest.raises(InputError, match=message):
        ModelArgs("m", **flags).check()


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (ModelArgs("m", lora_rank=1, load_in_4bit=True), "--load_in_4bit"),
        (GeneratorArgs(load_in_4bit=True), "--load_in_4bit"),
        (OptimizationArgs(optim="adamw_8bit"), "--optim adamw_8bit"),
    ],
)
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(monkeypatch, args, flag):
    args.check()
    monkeypatch.setattr(parser, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    with pytest.raises(InputError, match=re.escape(flag) + r".*bitsandbytes.*pip install \"\.\[quantized\]\""):
        args.check()


def test_weights_in_bfloat16_need_their_precision():
    OptimizationArgs(optim="adamw_bf16", bf16=True).check()
    with pytest.raises(InputError, match=r"--optim adamw_bf16: .*--bf16 true"):
        OptimizationArgs(optim="adamw_bf16").check()


@pytest.mark.parametrize(
    ("distribution", "args", "optim", "message"),
    [
        ("FSDP", ModelArgs("m", lora_rank=1, load_in_4bit=True), "adamw", "--load_in_4bit: .*FSDP"),
        ("DEEPSPEED", ModelArgs("m", lora_rank=1, load_in_4bit=True), "adamw", "--load_in_4bit: .*DEEPSPEED"),
        ("FSDP", ModelArgs("m"), "adamw_8bit", "--optim adamw_8bit: .*FSDP"),
        ("FSDP", ModelArgs("m"), "adamw_bf16", "--optim adamw_bf16: .*FSDP"),
        ("NO", ModelArgs("m", load_in_4bit=True), "adamw", "--load_in_4bit: no effect without an adapter"),
        ("NO", ModelArgs("m", lora_rank=1), "adamw_bf16", "--optim adamw_bf16: adapters"),
    ],
)
def test_what_does_not_work_together_is_refused(distribution, args, optim, message):
    accelerator = SimpleNamespace(distributed_type=DistributedType(distribution), mixed_precision="no")
    with pytest.raises(InputError, match=message):
        args.load_options(accelerator, optim)
    accelerator.distributed_type = DistributedType.MULTI_CPU
    expected = {"adamw_bf16": torch.bfloat16}.get(optim, torch.float32)
    assert ModelArgs("m").load_options(accelerator, optim)["trained_dtype"] == expected


def test_further_signals_are_named_with_and_without_their_prefix():
    assert RunArgs("o", stop_signals="SIGUSR1, usr2").further_signals == (signal.SIGUSR1, signal.SIGUSR2)
    assert RunArgs("o").further_signals == ()


# A new flag stands in one of three lists: it is locked, free, or free with a warning.
LOCKED = set(
    "use_flash_attention retriever query_prefix passage_prefix index_factory nprobe ef_search bm25_stemmer rerank_top "
    "embedding_max_num_to_retrieve query_history passage_order gold_dropout hard_negatives refusal_answer "
    "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "group_by_length lr_scheduler_type warmup_ratio weight_decay max_grad_norm optim seed metric_for_best_model "
    "lora_rank lora_alpha lora_dropout lora_target_modules load_in_4bit".split()
)


def test_every_flag_of_training_is_locked_free_or_free_with_a_warning():
    config = flat(COMMON).keys()
    warned = {name.removeprefix("--") for name in FREE_ON_RESUME} - {"eval_file", "test_file"}  # by content
    prompts = {"max_new_tokens", "max_answer_length"}
    assert config - LOCKED - FLAGS_FREE_ON_RESUME - warned == set()
    assert (LOCKED | warned) - config == prompts
    assert not LOCKED & FLAGS_FREE_ON_RESUME


def test_flags_are_free_or_locked_on_resume():
    config = flat((*COMMON, PromptArgs()))
    locked = flags_locked_on_resume(config)
    assert locked.keys() == {f"--{name}" for name in config.keys() - FLAGS_FREE_ON_RESUME}
    assert FLAGS_FREE_ON_RESUME - config.keys() == {"teacher"}  # of retriever_contrastive.py
    assert locked["--seed"] == 0


@pytest.mark.parametrize("group", [PromptArgs(), FidPromptArgs(), GeneratorArgs(), GeneratorArgs(qa_is_fid=True)])
def test_the_flag_of_citations_reaches_the_collator_and_is_locked(group):
    assert group.collator_options["citations"] is False
    [given] = parse_args(group, argv=["--citations", "true"])
    assert given.collator_options["citations"] is True
    assert flags_locked_on_resume(flat((given,)))["--citations"] is True


def test_infinity_in_a_config_file_is_strict_json_and_infinity_again(tmp_path):
    args = (ModelArgs("m"), OptimizationArgs(max_grad_norm=float("inf")), RunArgs("out"))
    path = tmp_path / "config.json"
    write_json(path, flat(args))
    defaults = (ModelArgs("m"), OptimizationArgs(), RunArgs("out"))
    assert parse_args(*defaults, argv=["--config", str(path)]) == args
    assert parse_object(path.read_bytes())["max_grad_norm"] == "inf"
