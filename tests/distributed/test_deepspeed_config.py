"""deepspeed_config: what DeepSpeed's file leaves open comes from the flags, and the two never disagree in silence."""

import copy
import json
import logging
from pathlib import Path

import pytest
from world import ROOT

from rqa.distributed.deepspeed_config import merged, precision_of, read_ds_config, reconciled
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
# The blocks that LocalRQA's file has, with their values left open.
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
    return reconciled(config, "ds.json", flags, processes=processes, precision=precision)


def with_(config, **changes):
    """`config` with values at paths, whose dots are written as two underscores."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = value
    return config


def test_what_is_open_comes_from_the_flags_and_the_loop_does_the_rest():
    given = copy.deepcopy(LOCALRQA)
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
    assert given == LOCALRQA  # left as it was


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_absent_value_is_as_open_as_auto(stage):
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


def test_without_flags_the_file_prevails():
    config = made({"zero_optimization": {"stage": 1}, "gradient_clipping": 3.0}, {})
    assert (config["gradient_clipping"], config["train_batch_size"]) == (3.0, 3)


@pytest.mark.parametrize("said", ["auto", 0, 0.0])
def test_no_clipping_is_deepspeeds_zero(said):
    never = FLAGS | {"max_grad_norm": float("inf")}
    assert made(LOCALRQA | {"gradient_clipping": said}, never)["gradient_clipping"] == 0


def test_a_file_that_never_clips_conflicts_with_a_norm():
    with pytest.raises(InputError, match=r"gradient_clipping is 0, --max_grad_norm is 0\.5"):
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
    "scheduler__type": "WarmupCosineLR",  # all "auto": the flag's schedule prevails
}


@pytest.mark.parametrize(("path", "value"), AGREEING.items(), ids=AGREEING)
def test_a_value_that_agrees_changes_nothing(path, value):
    assert made(with_(LOCALRQA, **{path: value})) == made(LOCALRQA)


CONFLICTS = {
    "train_micro_batch_size_per_gpu": (8, "is 8, --per_device_train_batch_size is 2"),
    "gradient_accumulation_steps": (1, "is 1, --gradient_accumulation_steps is 4"),
    "train_batch_size": (8, "is 8, the flags and the launch make 3 processes x 4 x 2 = 24"),
    "gradient_clipping": (1.0, "is 1.0, --max_grad_norm is 0.5"),
    "bf16": (True, "expected an object, found true"),
    "bf16__check_grad_overflow": (False, "is false, it must be true: a gradient that is not finite would destroy"),
    "bf16__enabled": (False, "is false, the run's mixed precision is 'bf16'"),
    "fp16__enabled": (True, "is true, the run's mixed precision is 'bf16'"),
    "optimizer__params__lr": (1e-4, "is 0.0001, --learning_rate is 5e-06"),
    "optimizer__params__weight_decay": (0.1, "is 0.1, --weight_decay is 0.01"),
    "optimizer__params__betas": ([0.9, 0.95], "is [0.9, 0.95], here it is [0.9, 0.999]"),
    "optimizer__params__eps": (1e-6, "is 1e-06, here it is 1e-08"),
    "optimizer__params__adam_w_mode": (False, "is false, here it is true"),  # its Adam, with decay in the gradient
    "optimizer__params__freeze_step": (9, "is 9: there is no such setting here"),
    "optimizer__params": ([], "expected an object, found []"),
    "optimizer": ("AdamW", 'expected an object, found "AdamW"'),
    "optimizer__type": ("Lion", "is 'Lion', --optim is 'adamw'"),
    "scheduler__params__warmup_max_lr": (1e-4, "is 0.0001, --learning_rate is 5e-06"),
    "scheduler__params__warmup_num_steps": (100, 'is 100, --warmup_ratio is 0.1; let it be "auto"'),
    "scheduler__params__total_num_steps": (900, "is 900, --max_steps is -1"),
    "scheduler__params__cos_min_ratio": (0.1, "is 0.1, here it is 0"),
    "scheduler__params__warmup_min_lr": (1e-6, "is 1e-06, here it is 0"),
    "scheduler__type": ("OneCycle", "is 'OneCycle', expected WarmupLR, WarmupDecayLR, WarmupCosineLR"),
    "zero_optimization": (2, "expected an object, found 2"),
    "zero_optimization__stage": (0, "expected 1, 2 or 3, found 0"),
    "zero_optimization__compute_grad_norm": (False, "is false, it must be true: the loop needs the gradient's norm"),
    "zero_optimization__overlap_comm": ("auto", 'is "auto", and no flag says what that is'),
    "activation_checkpointing__number_checkpoints": ("auto", 'is "auto", and no flag says what that is'),
}


@pytest.mark.parametrize(("path", "value", "message"), [(k, *v) for k, v in CONFLICTS.items()], ids=CONFLICTS)
def test_a_conflict_is_an_error_that_names_both_sides(path, value, message):
    with pytest.raises(InputError) as refused:
        made(with_(LOCALRQA, **{path: value}))
    assert str(refused.value).startswith(f"ds.json: {path.replace('__', '.')}")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "flag", "number", "changes"),
    [
        ("WarmupDecayLR", "linear", 0, {"warmup_ratio": 0.0}),
        ("WarmupDecayLR", "linear", 4, {"max_steps": 31}),  # 3.1 are 4
        ("WarmupCosineLR", "cosine", 4, {"max_steps": 31}),
        ("WarmupLR", "constant", 4, {"max_steps": 31}),
    ],
)
def test_a_schedule_in_numbers_must_be_that_of_the_flags(kind, flag, number, changes):
    flags = FLAGS | {"lr_scheduler_type": flag} | changes
    config = with_(LOCALRQA, scheduler__type=kind, scheduler__params__warmup_num_steps=number)
    assert made(config, flags) == made(LOCALRQA)
    other = with_(config, scheduler__params__warmup_num_steps=number + 1)
    with pytest.raises(InputError, match=rf"scheduler\.params\.warmup_num_steps is {number + 1}, --warmup_ratio is"):
        made(other, flags)
    for another in {"linear", "cosine", "constant"} - {flag}:
        message = rf"scheduler\.type is '{kind}', which is '{flag}', --lr_scheduler_type is '{another}'"
        with pytest.raises(InputError, match=message):
            made(config, flags | {"lr_scheduler_type": another})


def test_blocks_of_localrqas_file_yield_to_the_flags_and_that_is_said(caplog):
    caplog.set_level(logging.INFO, "rqa")
    assert made(LOCALRQA, FLAGS | {"lr_scheduler_type": "cosine"}) == made(LOCALRQA)
    assert caplog.messages[:2] == [
        "ds.json: the block optimizer is taken out; instead: --optim adamw --learning_rate 5e-06 --weight_decay 0.01",
        "ds.json: the block scheduler is taken out; instead: --lr_scheduler_type cosine --warmup_ratio 0.1 "
        "--learning_rate 5e-06",
    ]


def test_an_optimizer_that_looks_at_matrices_is_refused():
    """ZeRO hands its optimizer one flat tensor: Adafactor would compute something else, on each number of GPUs."""
    with pytest.raises(InputError, match=r"ds\.json: --optim adafactor looks at whole matrices, and ZeRO has none"):
        made({"zero_optimization": {"stage": 2}}, FLAGS | {"optim": "adafactor"})


@pytest.mark.parametrize("said", [{}, {"stage3_gather_16bit_weights_on_model_save": "auto"}])
def test_zero_3_gathers_for_the_export(said):
    zero = made({"zero_optimization": {"stage": 3, **said}})["zero_optimization"]
    assert zero == {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}


def test_zero_3_without_gathering_for_the_export_is_refused():
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}
    with pytest.raises(InputError, match="stage3_gather_16bit_weights_on_model_save is false, it must be true"):
        made({"zero_optimization": zero})


@pytest.mark.parametrize("config", [{}, {"zero_optimization": {}}])
def test_a_file_without_a_stage_is_refused(config):
    with pytest.raises(InputError, match=r"zero_optimization.stage: expected 1, 2 or 3, found null"):
        made(config)


def test_two_sources_are_one_where_they_agree_and_name_each_other_where_not():
    file, other = (
        with_(LOCALRQA, zero_optimization__stage=3),
        {"zero_optimization": {"stage": 3}, "gradient_clipping": 2},
    )
    both = merged(file, "ds.json", other, "accelerate")
    assert both == file | {"gradient_clipping": 2} == merged(other, "accelerate", file, "ds.json")
    assert merged({"a": "auto"}, "", {"a": 1}, "") == merged({"a": 1}, "", {"a": "auto"}, "") == {"a": 1}
    with pytest.raises(InputError, match=r"zero_optimization\.stage is 3 in ds\.json, and 2 in accelerate"):
        merged(file, "ds.json", {"zero_optimization": {"stage": 2}}, "accelerate")
    with pytest.raises(InputError, match=r"ds\.json: bf16: expected an object, found true"):
        merged({"bf16": True}, "ds.json", {"bf16": {"enabled": True}}, "accelerate")


def test_the_precision_of_a_file_is_read_where_it_says_one():
    assert precision_of({"bf16": {"enabled": True}}) == "bf16"
    assert precision_of({"fp16": {"enabled": True}, "bf16": {"enabled": False}}) == "fp16"
    assert precision_of({"bf16": {"enabled": False}}) == "no"  # or else it would be bfloat16 where that is fast
    assert precision_of(LOCALRQA) is precision_of({}) is precision_of({"fp16": {"enabled": False}}) is None


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), ("{", "expected DeepSpeed"), ("[]", "list")])
def test_what_is_no_configuration_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "ds.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_ds_config(str(tmp_path / "ds.json"))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").glob("ds_*.json")), ids=lambda path: path.name)
def test_our_own_files_leave_everything_to_the_flags(path: Path):
    config = made(read_ds_config(str(path)))
    assert config["zero_optimization"] == json.loads(path.read_text())["zero_optimization"]
    assert config["train_batch_size"] == 24
