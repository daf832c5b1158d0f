"""One DeepSpeed configuration from a JSON file and the flags of a run.

DeepSpeed reads batch size, accumulation, clipping, precision, optimizer and schedule from its own file, and silently
ignores the flags. Here missing and "auto" values are filled in from the flags. A value that contradicts a flag is an
error that names both. The blocks of optimizer and schedule are removed: the training loop has its own.
"""

import copy
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rqa.errors import InputError

log = logging.getLogger(__name__)

Config = Mapping[str, Any]

BLOCKS = ("optimizer", "scheduler", "bf16", "fp16", "zero_optimization")
# Parameters in DeepSpeed's blocks of optimizer and schedule: the flag that each must equal, or the fixed value. None
# allows any value. DeepSpeed's Adam decays weights as AdamW does, unless adam_w_mode is false.
OPTIMIZER_TYPES = ("AdamW", "Adam")
OPTIMIZER_FLAGS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
OPTIMIZER_FIXED = {"betas": [0.9, 0.999], "eps": 1e-8, "adam_w_mode": True, "torch_adam": None}
SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
SCHEDULER_FLAGS = {"warmup_max_lr": "learning_rate", "total_num_steps": "max_steps"}
SCHEDULER_FIXED = {
    "warmup_min_lr": 0,
    "warmup_min_ratio": 0,
    "cos_min_ratio": 0,
    "last_batch_iteration": -1,
    "warmup_type": None,  # LocalRQA's file has "cosine", which DeepSpeed does not support
}
# Settings that must be true, with the reason.
REQUIRED = {
    "zero_optimization.compute_grad_norm": "the loop needs the gradient norm",
    "bf16.check_grad_overflow": "a gradient of NaN would destroy the weights",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "the model is exported",
}
# "auto" values that Accelerate fills in from the model's hidden size.
FILLED_BY_ACCELERATE = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
SET_AUTO = 'Set it to "auto"'


def read_ds_config(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON file. Raises InputError if it cannot be read or is not a JSON object."""
    try:
        config = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON file of DeepSpeed, got an error: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def merge_configs(first: Config, source: str, second: Config, second_source: str) -> dict[str, Any]:
    """Return the union of two configurations; other values replace "auto". Raises InputError if they contradict."""
    both = copy.deepcopy(dict(first))
    for path, value in _leaves(second):
        *parents, key = path.split(".")
        node = both
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise _error(f"{source}: {parent}", "an object", node)
        if node.setdefault(key, value) == "auto":
            node[key] = value
        elif value not in ("auto", node[key]):
            both_values = f"{json.dumps(node[key])} in {source}, {json.dumps(value)} in {second_source}"
            raise InputError(f"{path}: expected one value, got {both_values}")
    return both


def resolve_config(original: Config, source: str, flags: Config, *, processes: int, precision: str) -> dict[str, Any]:
    """Return the DeepSpeed configuration of a run: `original`, with missing and "auto" values filled in.

    `source` is the name of `original` in messages. `flags` may contain per_device_train_batch_size,
    gradient_accumulation_steps, max_grad_norm, optim, optim_works_under_zero, learning_rate, weight_decay,
    lr_scheduler_type, warmup_ratio and max_steps. `precision` is "no", "bf16" or "fp16". Raises InputError if a value
    contradicts a flag.
    """
    config: dict[str, Any] = copy.deepcopy(dict(original))
    for name in BLOCKS:
        if not isinstance(config.get(name, {}), dict):
            raise _error(f"{source}: {name}", "an object", config[name])
    stage = config.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        raise _error(f"{source}: zero_optimization.stage", "1, 2 or 3", stage, "For stage 0 remove --deepspeed")
    if not flags.get("optim_works_under_zero", flags.get("optim", "adamw") == "adamw"):
        expected = "an optimizer that works on flat parts of matrices"
        raise _error(f"{source}: --optim", expected, flags["optim"], "Set --optim adamw")
    _remove_optimizer(config, source, flags)
    _remove_scheduler(config, source, flags)
    micro_batch = _fill_in(config, source, "train_micro_batch_size_per_gpu", flags, "per_device_train_batch_size", 1)
    accumulation = _fill_in(config, source, "gradient_accumulation_steps", flags, "gradient_accumulation_steps", 1)
    total = processes * micro_batch * accumulation
    if (value := config.get("train_batch_size", "auto")) not in ("auto", total):
        product = f"{processes} processes x {accumulation} x {micro_batch} = {total}"
        raise _error(f"{source}: train_batch_size", product, value, SET_AUTO)
    config["train_batch_size"] = total
    if config.get("gradient_clipping") == 0 and flags.get("max_grad_norm", math.inf) == math.inf:
        config["gradient_clipping"] = math.inf  # DeepSpeed's 0 is our inf: no clipping
    norm = _fill_in(config, source, "gradient_clipping", flags, "max_grad_norm", 1.0)
    config["gradient_clipping"] = 0.0 if norm == math.inf else norm
    for name in ("bf16", "fp16"):
        enabled = config.setdefault(name, {}).get("enabled", "auto")
        if enabled not in ("auto", precision == name):
            expected = f"{json.dumps(precision == name)} for mixed precision {precision!r}"
            raise _error(f"{source}: {name}.enabled", expected, enabled, SET_AUTO)
        config[name]["enabled"] = precision == name
    _require(config, source)
    config.setdefault("zero_force_ds_cpu_optimizer", False)  # torch's AdamW also runs on offloaded states
    for path, value in _leaves(config):
        if value == "auto" and path.removeprefix("zero_optimization.") not in FILLED_BY_ACCELERATE:
            raise _error(f"{source}: {path}", "a value, as there is no flag for it", value, "Remove it")
    return config


def config_precision(config: Config) -> str | None:
    """Return the precision in a DeepSpeed configuration, None if it contains none."""
    enabled = {name: config[name].get("enabled") for name in ("bf16", "fp16") if isinstance(config.get(name), Mapping)}
    default = "no" if enabled.get("bf16") is False else None  # without "no" the default could be bfloat16
    return next((name for name, value in enabled.items() if value is True), default)


def _require(config: dict[str, Any], source: str) -> None:
    """Set missing REQUIRED settings to true. Raises InputError if one is false."""
    for path, reason in REQUIRED.items():
        block, key = path.split(".")
        if key.startswith("stage3_") and config[block]["stage"] != 3:
            continue
        if config[block].get(key, "auto") not in ("auto", True):
            raise _error(f"{source}: {path}", f"true ({reason})", config[block][key])
        if key.startswith("stage3_") or config[block].get(key) == "auto":
            config[block][key] = True  # true is DeepSpeed's default of the others


def _fill_in(config: dict[str, Any], source: str, key: str, flags: Config, flag: str, default: Any) -> Any:
    """Set `key` to the value of `flag` and return it. Raises InputError if the file contradicts the flag."""
    value = config.get(key, "auto")
    expected = flags.get(flag, default if value == "auto" else value)
    if value not in ("auto", expected):
        raise _error(f"{source}: {key}", f"{expected} (--{flag})", value, SET_AUTO)
    config[key] = expected
    return expected


def _remove_optimizer(config: dict[str, Any], source: str, flags: Config) -> None:
    if (block := config.pop("optimizer", None)) is None:
        return
    if (kind := block.get("type")) not in OPTIMIZER_TYPES:
        raise _error(f"{source}: optimizer.type", "AdamW (--optim adamw)", kind, "Remove the block")
    params = _explicit_params(block, f"{source}: optimizer")
    _check(params, f"{source}: optimizer", flags, OPTIMIZER_FLAGS, OPTIMIZER_FIXED)
    log.info("%s: the block optimizer is replaced by --optim adamw%s", source, _listed(flags, OPTIMIZER_FLAGS.values()))


def _remove_scheduler(config: dict[str, Any], source: str, flags: Config) -> None:
    if (block := config.pop("scheduler", None)) is None:
        return
    if (kind := block.get("type")) not in SCHEDULES:
        fix = "Remove the block and set --lr_scheduler_type and --warmup_ratio"
        raise _error(f"{source}: scheduler.type", ", ".join(SCHEDULES), kind, fix)
    params = _explicit_params(block, f"{source}: scheduler")
    schedule = flags.get("lr_scheduler_type", SCHEDULES[kind])
    if schedule != SCHEDULES[kind] and params.keys() - {"warmup_type", "last_batch_iteration"}:
        [name] = [name for name, other in SCHEDULES.items() if other == schedule]
        expected = f"{name} (--lr_scheduler_type {schedule})"
        raise _error(f"{source}: scheduler.type", expected, kind, "Remove the block")
    _check_warmup(params, source, flags)
    _check(params, f"{source}: scheduler", flags, SCHEDULER_FLAGS, SCHEDULER_FIXED)
    names = ("lr_scheduler_type", "warmup_ratio", "learning_rate")
    log.info("%s: the block scheduler is replaced by%s", source, _listed(flags, names))


def _check_warmup(params: dict[str, Any], source: str, flags: Config) -> None:
    """Remove warmup_num_steps. Raises InputError unless it follows from --warmup_ratio and --max_steps."""
    ratio, num_steps = flags.get("warmup_ratio"), flags.get("max_steps", -1)
    number = params.pop("warmup_num_steps", "auto")
    if number == "auto" or ratio is None:
        return
    if number != (0 if ratio == 0 else math.ceil(ratio * num_steps) if num_steps > 0 else None):
        expected = f"--warmup_ratio {ratio}" + (f" of --max_steps {num_steps}" if num_steps > 0 else "")
        raise _error(f"{source}: scheduler.params.warmup_num_steps", expected, number, SET_AUTO)


def _explicit_params(block: Config, source: str) -> dict[str, Any]:
    """Return the parameters of a block that are not "auto"."""
    params = block.get("params", {})
    if not isinstance(params, dict):
        raise _error(f"{source}.params", "an object", params)
    return {name: value for name, value in params.items() if value != "auto"}


def _check(params: Config, source: str, flags: Config, by_flag: Mapping[str, str], fixed: Config) -> None:
    """Raise InputError if a parameter differs from its flag or fixed value."""
    for name, value in params.items():
        subject = f"{source}.params.{name}"
        if name in by_flag:
            if value != (expected := flags.get(by_flag[name], value)):
                raise _error(subject, f"{expected} (--{by_flag[name]})", value, SET_AUTO)
        elif name not in fixed:
            raise _error(subject, "a supported parameter", value, "Remove it")
        elif fixed[name] is not None and value != fixed[name]:
            raise _error(subject, json.dumps(fixed[name]), value, "Remove it")


def _leaves(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _listed(flags: Config, names: Iterable[str]) -> str:
    return "".join(f" --{name} {flags[name]}" for name in names if name in flags)


def _error(subject: str, expected: str, value: Any, fix: str = "Change it") -> InputError:
    return InputError(f"{subject}: expected {expected}, got {json.dumps(value)}. {fix}")
