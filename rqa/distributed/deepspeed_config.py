"""DeepSpeed's JSON and a run's flags made one.

DeepSpeed reads batch, accumulation, clipping, precision, optimizer and schedule from its own file, and where that says
something else than the flags it prevails without a word. Here what it leaves open is filled in from the flags, what it
repeats must agree with them, and what it would do itself, optimizer and schedule, is taken out: the loop does that.
"""

import copy
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rqa.errors import InputError

log = logging.getLogger(__name__)

BLOCKS = ("optimizer", "scheduler", "bf16", "fp16", "zero_optimization")
# What DeepSpeed's own blocks for the optimizer and the schedule may say: what a flag says here, and what is fixed here.
# None: whatever it says. Its Adam decays weights as AdamW does, unless adam_w_mode is false.
OPTIMIZERS = ("AdamW", "Adam")
OPTIMIZER_FLAGS = {"lr": "learning_rate", "weight_decay": "weight_decay"}
OPTIMIZER_FIXED = {"betas": [0.9, 0.999], "eps": 1e-8, "adam_w_mode": True, "torch_adam": None}
SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
SCHEDULER_FLAGS = {"warmup_max_lr": "learning_rate", "total_num_steps": "max_steps"}
SCHEDULER_FIXED = {
    "warmup_min_lr": 0,
    "warmup_min_ratio": 0,
    "cos_min_ratio": 0,
    "last_batch_iteration": -1,
    "warmup_type": None,  # LocalRQA's file says "cosine", which DeepSpeed does not know
}
# What the loop needs DeepSpeed to do: without a norm no update can be judged, and one of NaN destroys the weights.
REQUIRED = {
    "zero_optimization.compute_grad_norm": "the loop needs the gradient's norm",
    "bf16.check_grad_overflow": "a gradient that is not finite would destroy the weights",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "the model is exported",
}
# What is for Accelerate to fill in, from the model's hidden size.
BY_MODEL = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")


def read_ds_config(path: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON file. Raises InputError where there is none, or something else."""
    try:
        config = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected DeepSpeed's JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def merged(first: Mapping[str, Any], where: str, second: Mapping[str, Any], second_where: str) -> dict[str, Any]:
    """Return one configuration of two; "auto" gives way. Raises InputError where they say different things."""
    both = copy.deepcopy(dict(first))
    for path, value in _leaves(second):
        *parents, key = path.split(".")
        node = both
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"{where}: {parent}: expected an object, found {_json(node)}")
        said = node.get(key, "auto")
        if "auto" not in (said, value) and said != value:
            raise InputError(f"{path} is {_json(said)} in {where}, and {_json(value)} in {second_where}")
        node[key] = value if said == "auto" else said
    return both


def reconciled(
    given: Mapping[str, Any], where: str, flags: Mapping[str, Any], *, processes: int, precision: str
) -> dict[str, Any]:
    """Return the DeepSpeed configuration that does what the flags say.

    `where` names the source of `given` in messages. `flags` are per_device_train_batch_size,
    gradient_accumulation_steps, max_grad_norm, optim, learning_rate, weight_decay, lr_scheduler_type, warmup_ratio and
    max_steps, as far as there are any. `precision` is "no", "bf16" or "fp16". Raises InputError where both say
    something, and not the same.
    """
    config: dict[str, Any] = copy.deepcopy(dict(given))
    for name in BLOCKS:
        if not isinstance(config.get(name, {}), dict):
            raise InputError(f"{where}: {name}: expected an object, found {_json(config[name])}")
    zero = config.get("zero_optimization", {})
    if zero.get("stage") not in (1, 2, 3):
        raise InputError(
            f"{where}: zero_optimization.stage: expected 1, 2 or 3, found {_json(zero.get('stage'))}; stage 0 is a run "
            "without DeepSpeed"
        )
    if (optim := flags.get("optim", "adamw")) != "adamw":
        raise InputError(f"{where}: --optim {optim} looks at whole matrices, and ZeRO has none: give --optim adamw")
    _take_out_optimizer(config, where, flags)
    _take_out_scheduler(config, where, flags)

    micro_batch = _agreed(config, where, "train_micro_batch_size_per_gpu", flags, "per_device_train_batch_size", 1)
    accumulation = _agreed(config, where, "gradient_accumulation_steps", flags, "gradient_accumulation_steps", 1)
    total = processes * micro_batch * accumulation
    if config.get("train_batch_size", "auto") not in ("auto", total):
        raise InputError(
            f"{where}: train_batch_size is {_json(config['train_batch_size'])}, the flags and the launch make "
            f'{processes} processes x {accumulation} x {micro_batch} = {total}; let it be "auto"'
        )
    config["train_batch_size"] = total
    if config.get("gradient_clipping") == 0 and flags.get("max_grad_norm", math.inf) == math.inf:
        config["gradient_clipping"] = math.inf  # DeepSpeed's 0 is never, our inf
    norm = _agreed(config, where, "gradient_clipping", flags, "max_grad_norm", 1.0)
    config["gradient_clipping"] = 0.0 if norm == math.inf else norm
    for name in ("bf16", "fp16"):
        said = config.setdefault(name, {}).get("enabled", "auto")
        if said not in ("auto", precision == name):
            raise InputError(f"{where}: {name}.enabled is {_json(said)}, the run's mixed precision is {precision!r}")
        config[name]["enabled"] = precision == name
    _require(config, where)
    config.setdefault("zero_force_ds_cpu_optimizer", False)  # torch's AdamW runs wherever the states lie
    for path, value in _leaves(config):
        if value == "auto" and path.removeprefix("zero_optimization.") not in BY_MODEL:
            raise InputError(f'{where}: {path} is "auto", and no flag says what that is; give a value, or leave it out')
    return config


def precision_of(config: Mapping[str, Any]) -> str | None:
    """Return the precision that a DeepSpeed configuration asks for, None where it leaves that open."""
    said = {name: config[name].get("enabled") for name in ("bf16", "fp16") if isinstance(config.get(name), Mapping)}
    for name, enabled in said.items():
        if enabled is True:
            return name
    return "no" if said.get("bf16") is False else None  # where nobody speaks it would be bfloat16, or nothing


def _require(config: dict[str, Any], where: str) -> None:
    """Switch on what is REQUIRED where it is open. InputError where it is off."""
    for path, why in REQUIRED.items():
        block, key = path.split(".")
        if key.startswith("stage3_") and config[block]["stage"] != 3:
            continue
        if config[block].get(key, "auto") not in ("auto", True):
            raise InputError(f"{where}: {path} is {_json(config[block][key])}, it must be true: {why}")
        if key.startswith("stage3_") or config[block].get(key) == "auto":
            config[block][key] = True  # the others are DeepSpeed's default


def _agreed(config: dict[str, Any], where: str, key: str, flags: Mapping[str, Any], flag: str, default: Any) -> Any:
    """Put the value of `flag` at `key`, which must be open or equal. Without a flag the file's prevails."""
    said = config.get(key, "auto")
    wanted = flags.get(flag, default if said == "auto" else said)
    if said not in ("auto", wanted):
        raise InputError(f'{where}: {key} is {_json(said)}, --{flag} is {wanted}; let it be "auto", or make them agree')
    config[key] = wanted
    return wanted


def _take_out_optimizer(config: dict[str, Any], where: str, flags: Mapping[str, Any]) -> None:
    if (block := config.pop("optimizer", None)) is None:
        return
    if block.get("type") not in OPTIMIZERS:
        raise InputError(f"{where}: optimizer.type is {block.get('type')!r}, --optim is 'adamw'; leave the block out")
    _check(_said(block, f"{where}: optimizer"), f"{where}: optimizer", flags, OPTIMIZER_FLAGS, OPTIMIZER_FIXED)
    names = ("learning_rate", "weight_decay")
    log.info("%s: the block optimizer is taken out; instead: --optim adamw%s", where, _listed(flags, names))


def _take_out_scheduler(config: dict[str, Any], where: str, flags: Mapping[str, Any]) -> None:
    if (block := config.pop("scheduler", None)) is None:
        return
    if (kind := block.get("type")) not in SCHEDULES:
        raise InputError(
            f"{where}: scheduler.type is {kind!r}, expected {', '.join(SCHEDULES)}; leave the block out: "
            "--lr_scheduler_type and --warmup_ratio say it"
        )
    said = _said(block, f"{where}: scheduler")
    schedule = flags.get("lr_scheduler_type", SCHEDULES[kind])
    is_open = said.keys() <= {"warmup_type", "last_batch_iteration"}
    if schedule != SCHEDULES[kind] and not is_open:
        raise InputError(
            f"{where}: scheduler.type is {kind!r}, which is {SCHEDULES[kind]!r}, --lr_scheduler_type is {schedule!r}"
        )
    _check_warmup(said, where, flags)
    _check(said, f"{where}: scheduler", flags, SCHEDULER_FLAGS, SCHEDULER_FIXED)
    names = ("lr_scheduler_type", "warmup_ratio", "learning_rate")
    log.info("%s: the block scheduler is taken out; instead:%s", where, _listed(flags, names))


def _check_warmup(said: dict[str, Any], where: str, flags: Mapping[str, Any]) -> None:
    """Take out a number of updates of warm-up that is the flags': it is known before the examples are where it is 0, or
    --max_steps says the number of all.
    """
    ratio, num_steps = flags.get("warmup_ratio"), flags.get("max_steps", -1)
    if "warmup_num_steps" not in said or ratio is None:
        said.pop("warmup_num_steps", None)
        return
    known = 0 if ratio == 0 else math.ceil(ratio * num_steps) if num_steps > 0 else None
    if (number := said.pop("warmup_num_steps")) != known:
        raise InputError(
            f"{where}: scheduler.params.warmup_num_steps is {_json(number)}, --warmup_ratio is {ratio}"
            + (f" of --max_steps {num_steps}" if num_steps > 0 else "")
            + '; let it be "auto"'
        )


def _said(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return those parameters of a block that are not left open."""
    params = block.get("params", {})
    if not isinstance(params, dict):
        raise InputError(f"{where}.params: expected an object, found {_json(params)}")
    return {name: value for name, value in params.items() if value != "auto"}


def _check(
    said: Mapping[str, Any], where: str, flags: Mapping[str, Any], by_flag: Mapping[str, str], fixed: Mapping[str, Any]
) -> None:
    """Raise InputError unless what a block says is what the run has without it."""
    for name, value in said.items():
        if name in by_flag:
            wanted = flags.get(by_flag[name], value)
            if value != wanted:
                raise InputError(
                    f'{where}.params.{name} is {_json(value)}, --{by_flag[name]} is {wanted}; let it be "auto"'
                )
        elif name not in fixed:
            raise InputError(f"{where}.params.{name} is {_json(value)}: there is no such setting here; leave it out")
        elif fixed[name] is not None and value != fixed[name]:
            raise InputError(f"{where}.params.{name} is {_json(value)}, here it is {_json(fixed[name])}")


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _listed(flags: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return "".join(f" --{name} {flags[name]}" for name in names if name in flags)


def _json(value: Any) -> str:
    return json.dumps(value)
