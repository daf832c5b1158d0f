"""deepspeed_config: the flags fill in missing values of DeepSpeed's file, and contradictions are errors."""

import copy
import json
import logging
from pathlib import Path

import pytest
from world import ROOT

from rqa.distributed.deepspeed_config import config_precision, merge_configs, read_ds_config, resolve_config
from rqa.errors import InputError

FLAGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "max_grad_norm": 0.5,
    "learning_rate": 5e-6,
    "weight_decay": 0.01,
    "optim": "adamw",
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.1,
    "max_steps": -1,
}
# The blocks of LocalRQA's file, with "auto" values.
LOCALRQA = {
    "fp16": {"enabled": "auto"},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            **dict.fromkeys(("total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto"),
            "warmup_type": "cosine",
            "last_batch_iteration": -1,
        },
    },
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "reduce_bucket_size": "auto",
        "sub_group_size": 1e9,
    },
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "steps_per_print": 10,
}


def made(config, flags=FLAGS, *, processes=3, precision="bf16"):
    return resolve_config(config, "ds.json", flags, processes=processes, precision=precision)


def with_(config, **changes):
    """Return `config` with changed values; dots of their paths are written as two underscores."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return config


def test_auto_values_come_from_the_flags():
    original = copy.deepcopy(LOCALRQA)
    assert made(LOCALRQA) == {
        "fp16": {"enabled": False},
        "bf16": {"enabled": True},
        "zero_optimization": LOCALRQA["zero_optimization"],
        "gradient_accumulation_steps": 4,
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.5,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10,
    }
    assert original == LOCALRQA


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_missing_values_come_from_the_flags(stage):
    config = made({"zero_optimization": {"stage": stage}}, precision="no")
    zero = {"stage": stage} | ({"stage3_gather_16bit_weights_on_model_save": True} if stage == 3 else {})
    assert config == {
        "zero_optimization": zero,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "gradient_accumulation_steps": 4,
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.5,
        "zero_force_ds_cpu_optimizer": False,
    }


def test_values_of_the_file_are_used_without_flags():
    config = made({"zero_optimization": {"stage": 1}, "gradient_clipping": 3.0}, {})
    assert (config["gradient_clipping"], config["train_batch_size"]) == (3.0, 3)


@pytest.mark.parametrize("value", ["auto", 0, 0.0])
def test_no_clipping_is_zero_in_deepspeed(value):
    without = FLAGS | {"max_grad_norm": float("inf")}
    assert made(LOCALRQA | {"gradient_clipping": value}, without)["gradient_clipping"] == 0


def test_a_file_without_clipping_contradicts_a_norm():
    with pytest.raises(InputError, match=r"gradient_clipping: .*0\.5 \(--max_grad_norm\), got 0"):
        made(LOCALRQA | {"gradient_clipping": 0})


AGREEING = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 4,
    "train_batch_size": 24,
    "gradient_clipping": 0.5,
    "bf16__enabled": True,
    "fp16__enabled": False,
    "optimizer__params__lr": 5e-6,
    "optimizer__params__weight_decay": 0.01,
    "optimizer__params__betas": [0.9, 0.999],
    "optimizer__params__eps": 1e-8,
    "optimizer__params__adam_w_mode": True,
    "optimizer__type": "Adam",
    "scheduler__params__warmup_max_lr": 5e-6,
    "scheduler__params__warmup_min_lr": 0,
    "scheduler__type": "WarmupCosineLR",  # all "auto": the schedule of the flag is used
}


@pytest.mark.parametrize(("path", "value"), AGREEING.items(), ids=AGREEING)
def test_a_value_that_agrees_changes_nothing(path, value):
    assert made(with_(LOCALRQA, **{path: value})) == made(LOCALRQA)


CONFLICTS = {  # a value, the flag or value in the message
    "train_micro_batch_size_per_gpu": (8, "2 (--per_device_train_batch_size), got 8"),
    "gradient_accumulation_steps": (1, "4 (--gradient_accumulation_steps), got 1"),
    "train_batch_size": (8, "3 processes x 4 x 2 = 24, got 8"),
    "gradient_clipping": (1.0, "0.5 (--max_grad_norm), got 1.0"),
    "bf16": (True, "an object, got true"),
    "bf16__check_grad_overflow": (False, "got false"),
    "bf16__enabled": (False, "'bf16', got false"),
    "fp16__enabled": (True, "'bf16', got true"),
    "optimizer__params__lr": (1e-4, "5e-06 (--learning_rate), got 0.0001"),
    "optimizer__params__weight_decay": (0.1, "0.01 (--weight_decay), got 0.1"),
    "optimizer__params__betas": ([0.9, 0.95], "[0.9, 0.999], got [0.9, 0.95]"),
    "optimizer__params__eps": (1e-6, "1e-08, got 1e-06"),
    "optimizer__params__adam_w_mode": (False, "true, got false"),  # Adam with L2 regularization
    "optimizer__params__freeze_step": (9, "a supported parameter, got 9"),
    "optimizer__params": ([], "an object, got []"),
    "optimizer": ("AdamW", 'an object, got "AdamW"'),
    "optimizer__type": ("Lion", '(--optim adamw), got "Lion"'),
    "scheduler__params__warmup_max_lr": (1e-4, "5e-06 (--learning_rate), got 0.0001"),
    "scheduler__params__warmup_num_steps": (100, "--warmup_ratio 0.1, got 100"),
    "scheduler__params__total_num_steps": (900, "-1 (--max_steps), got 900"),
    "scheduler__params__cos_min_ratio": (0.1, "0, got 0.1"),
    "scheduler__params__warmup_min_lr": (1e-6, "0, got 1e-06"),
    "scheduler__type": ("OneCycle", 'WarmupLR, WarmupDecayLR, WarmupCosineLR, got "OneCycle"'),
    "zero_optimization": (2, "an object, got 2"),
    "zero_optimization__stage": (0, "1, 2 or 3, got 0"),
    "zero_optimization__compute_grad_norm": (False, "got false"),
    "zero_optimization__overlap_comm": ("auto", 'got "auto"'),
    "activation_checkpointing__number_checkpoints": ("auto", 'got "auto"'),
}


@pytest.mark.parametrize(("path", "value", "message"), [(k, *v) for k, v in CONFLICTS.items()], ids=CONFLICTS)
def test_a_contradiction_is_an_error_that_names_both_sides(path, value, message):
    with pytest.raises(InputError) as error:
        made(with_(LOCALRQA, **{path: value}))
    assert str(error.value).startswith(f"ds.json: {path.replace('__', '.')}")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "flag", "number", "changes"),
    [
        ("WarmupDecayLR", "linear", 0, {"warmup_ratio": 0.0}),
        ("WarmupDecayLR", "linear", 4, {"max_steps": 31}),  # 3.1 are 4
        ("WarmupCosineLR", "cosine", 4, {"max_steps": 31}),
        ("WarmupLR", "constant", 4, {"max_steps": 31}),
    ],
)
def test_the_schedule_of_the_file_must_equal_that_of_the_flags(kind, flag, number, changes):
    flags = FLAGS | {"lr_scheduler_type": flag} | changes
    config = with_(LOCALRQA, scheduler__type=kind, scheduler__params__warmup_num_steps=number)
    assert made(config, flags) == made(LOCALRQA)
    other = with_(config, scheduler__params__warmup_num_steps=number + 1)
    with pytest.raises(
        InputError, match=rf"scheduler\.params\.warmup_num_steps: .*--warmup_ratio .*, got {number + 1}\."
    ):
        made(other, flags)
    for another in {"linear", "cosine", "constant"} - {flag}:
        message = rf'scheduler\.type: .*--lr_scheduler_type {another}\), got "{kind}"'
        with pytest.raises(InputError, match=message):
            made(config, flags | {"lr_scheduler_type": another})


def test_replaced_blocks_are_logged(caplog):
    caplog.set_level(logging.INFO, "rqa")
    assert made(LOCALRQA, FLAGS | {"lr_scheduler_type": "cosine"}) == made(LOCALRQA)
    optimizer, scheduler = caplog.messages[:2]
    assert optimizer.endswith("--optim adamw --learning_rate 5e-06 --weight_decay 0.01")
    assert scheduler.endswith("--lr_scheduler_type cosine --warmup_ratio 0.1 --learning_rate 5e-06")


def test_an_optimizer_of_whole_matrices_is_an_error():
    """ZeRO passes flat tensors: the steps of Adafactor would depend on the number of GPUs."""
    with pytest.raises(InputError, match=r"ds\.json: --optim: .*adafactor"):
        made({"zero_optimization": {"stage": 2}}, FLAGS | {"optim": "adafactor", "optim_works_under_zero": False})


@pytest.mark.parametrize("changes", [{}, {"stage3_gather_16bit_weights_on_model_save": "auto"}])
def test_zero_3_gathers_for_the_export(changes):
    zero = made({"zero_optimization": {"stage": 3, **changes}})["zero_optimization"]
    assert zero == {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}


def test_zero_3_without_gathering_for_the_export_is_an_error():
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}
    with pytest.raises(InputError, match=r"stage3_gather_16bit_weights_on_model_save: expected true .*got false"):
        made({"zero_optimization": zero})


@pytest.mark.parametrize("config", [{}, {"zero_optimization": {}}])
def test_a_file_without_a_stage_is_an_error(config):
    with pytest.raises(InputError, match=r"zero_optimization.stage: expected 1, 2 or 3, got null"):
        made(config)


def test_two_sources_are_merged_unless_they_contradict():
    file, other = (
        with_(LOCALRQA, zero_optimization__stage=3),
        {"zero_optimization": {"stage": 3}, "gradient_clipping": 2},
    )
    both = merge_configs(file, "ds.json", other, "accelerate")
    assert both == file | {"gradient_clipping": 2} == merge_configs(other, "accelerate", file, "ds.json")
    assert merge_configs({"a": "auto"}, "", {"a": 1}, "") == merge_configs({"a": 1}, "", {"a": "auto"}, "") == {"a": 1}
    with pytest.raises(InputError, match=r"zero_optimization\.stage: .*3 in ds\.json, 2 in accelerate"):
        merge_configs(file, "ds.json", {"zero_optimization": {"stage": 2}}, "accelerate")
    with pytest.raises(InputError, match=r"ds\.json: bf16: expected an object, got true"):
        merge_configs({"bf16": True}, "ds.json", {"bf16": {"enabled": True}}, "accelerate")


def test_the_precision_of_a_file():
    assert config_precision({"bf16": {"enabled": True}}) == "bf16"
    assert config_precision({"fp16": {"enabled": True}, "bf16": {"enabled": False}}) == "fp16"
    assert config_precision({"bf16": {"enabled": False}}) == "no"  # without "no" the default could be bfloat16
    assert config_precision(LOCALRQA) is config_precision({}) is config_precision({"fp16": {"enabled": False}}) is None


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), ("{", "expected a JSON file"), ("[]", "list")]
)
def test_other_files_are_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "ds.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_ds_config(str(tmp_path / "ds.json"))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").glob("ds_*.json")), ids=lambda path: path.name)
def test_the_shipped_files_leave_everything_to_the_flags(path: Path):
    config = made(read_ds_config(str(path)))
    assert config["zero_optimization"] == json.loads(path.read_text())["zero_optimization"]
    assert config["train_batch_size"] == 24
