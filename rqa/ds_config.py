"""DeepSpeed's JSON and a run's flags made one.

DeepSpeed reads batch, accumulation, clipping, precision, optimizer and schedule from its own file, and where that says
something else than the flags it prevails without a word. Here what it leaves open is filled in from the flags, what it
repeats must agree with them, and what it would do itself, optimizer and schedule, is taken out: the loop does that.
"""

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rqa.errors import InputError

log = logging.getLogger(__name__)

# What DeepSpeed's own blocks for the optimizer and the schedule may say, and which flag says it here.
OPTIMIZER_FLAGS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
OPTIMIZER_FIXED = {"betas": [0.9, 0.999], "eps": 1e-8, "adam_w_mode": True, "torch_adam": None}
SCHEDULERS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
SCHEDULER_FLAGS = {"warmup_max_lr": "learning_rate"}
SCHEDULER_FIXED = {"warmup_min_lr": 0, "last_batch_iteration": -1, "warmup_type": None}
# What is for Accelerate to fill in, from the model's hidden size.
BY_MODEL = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")


def read_ds_config(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON file. Raises InputError where there is none, or something else."""
    try:
        config = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected DeepSpeed's JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def reconciled(
    given: Mapping[str, Any], where: str, flags: Mapping[str, Any], *, processes: int, precision: str
) -> dict[str, Any]:
    """Return the DeepSpeed configuration that does what the flags say.

    `where` names the source of what is `given` in messages. `flags` are per_device_train_batch_size,
    gradient_accumulation_steps, max_grad_norm, learning_rate, weight_decay and optim, as far as there are any.
    `precision` is "no", "bf16" or "fp16". Raises InputError where both say something, and not the same.
    """
    config = copy.deepcopy(dict(given))
    _check_stage(config, where)
    _take_out_optimizer(config, where, flags)
    _take_out_scheduler(config, where, flags)

    micro_batch = _agreed(config, where, "train_micro_batch_size_per_gpu", flags, "per_device_train_batch_size", 1)
    accumulation = _agreed(config, where, "gradient_accumulation_steps", flags, "gradient_accumulation_steps", 1)
    total = processes * micro_batch * accumulation
    if config.get("train_batch_size", "auto") not in ("auto", total):
        raise InputError(
            f"{where}: train_batch_size is {config['train_batch_size']}, the flags and the launch make "
            f'{processes} processes x {accumulation} x {micro_batch} = {total}; let it be "auto"'
        )
    config["train_batch_size"] = total
    norm = _agreed(config, where, "gradient_clipping", flags, "max_grad_norm", 1.0)
    config["gradient_clipping"] = 0.0 if norm == float("inf") else norm  # DeepSpeed's word for never
    for name in ("bf16", "fp16"):
        said = config.setdefault(name, {}).get("enabled", "auto")
        if said not in ("auto", precision == name):
            raise InputError(
                f"{where}: {name}.enabled is {json.dumps(said)}, the run's mixed precision is {precision!r}"
            )
        config[name]["enabled"] = precision == name

    zero = config["zero_optimization"]
    if zero["stage"] == 3 and zero.setdefault("stage3_gather_16bit_weights_on_model_save", True) is not True:
        raise InputError(
            f"{where}: zero_optimization.stage3_gather_16bit_weights_on_model_save must be true: the model is exported"
        )
    config.setdefault("zero_force_ds_cpu_optimizer", False)  # torch's AdamW runs wherever the states lie
    for path, value in _leaves(config):
        if value == "auto" and path.removeprefix("zero_optimization.") not in BY_MODEL:
            raise InputError(f'{where}: {path} is "auto", and no flag says what that is; give a value, or leave it out')
    return config


def precision_of(config: Mapping[str, Any]) -> str | None:
    """Return the precision that a DeepSpeed configuration asks for, None where it leaves that open."""
    for name in ("bf16", "fp16"):
        if isinstance(config.get(name), Mapping) and config[name].get("enabled") is True:
            return name
    return None


def _check_stage(config: Mapping[str, Any], where: str) -> None:
    zero = config.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    if stage not in (1, 2, 3):
        raise InputError(
            f"{where}: zero_optimization.stage: expected 1, 2 or 3, found {stage}; stage 0 is a run without DeepSpeed"
        )


def _agreed(config: dict[str, Any], where: str, key: str, flags: Mapping[str, Any], flag: str, default: Any) -> Any:
    """Put the value of `flag` at `key`, which must be open or equal. Without a flag the file's prevails."""
    said = config.get(key, "auto")
    wanted = flags.get(flag, default if said == "auto" else said)
    if said not in ("auto", wanted):
        raise InputError(f'{where}: {key} is {said}, --{flag} is {wanted}; let it be "auto", or make them agree')
    config[key] = wanted
    return wanted


def _take_out_optimizer(config: dict[str, Any], where: str, flags: Mapping[str, Any]) -> None:
    if (block := config.pop("optimizer", None)) is None:
        return
    optim = flags.get("optim", "adamw")
    if block.get("type") not in ("AdamW", "Adam") or optim != "adamw":  # DeepSpeed's Adam decays as AdamW does
        raise InputError(f"{where}: optimizer.type is {block.get('type')!r}, --optim is {optim!r}; leave the block out")
    _check_block(block, f"{where}: optimizer", flags, OPTIMIZER_FLAGS, OPTIMIZER_FIXED)
    log.info("%s: the optimizer block is taken out: the flags say it", where)


def _take_out_scheduler(config: dict[str, Any], where: str, flags: Mapping[str, Any]) -> None:
    if (block := config.pop("scheduler", None)) is None:
        return
    if block.get("type") not in SCHEDULERS:
        raise InputError(
            f"{where}: scheduler.type is {block.get('type')!r}, expected {', '.join(SCHEDULERS)}; leave the block out: "
            "--lr_scheduler_type and --warmup_ratio say it"
        )
    _check_block(block, f"{where}: scheduler", flags, SCHEDULER_FLAGS, SCHEDULER_FIXED)
    log.info("%s: the scheduler block is taken out: --lr_scheduler_type and --warmup_ratio say it", where)


def _check_block(
    block: Mapping[str, Any], where: str, flags: Mapping[str, Any], by_flag: Mapping[str, str], fixed: Mapping[str, Any]
) -> None:
    """Raise InputError unless the values of a block are those that the run has without it."""
    for name, said in block.get("params", {}).items():
        if said == "auto":
            continue
        if name in by_flag:
            wanted = flags.get(by_flag[name], said)
            if said != wanted:
                raise InputError(f'{where}.params.{name} is {said}, --{by_flag[name]} is {wanted}; let it be "auto"')
        elif name not in fixed:
            raise InputError(f'{where}.params.{name} is {said}: the flags say it here; let it be "auto"')
        elif fixed[name] is not None and said != fixed[name]:
            raise InputError(f"{where}.params.{name} is {said}, here it is {fixed[name]}")


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
