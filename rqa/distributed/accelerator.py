"""From a launch to an Accelerator: processes, precision and DeepSpeed, as the flags and the launcher agree upon."""

import gc
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from importlib import metadata
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import (
    DeepSpeedPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    compare_versions,
    is_deepspeed_available,
    parse_flag_from_env,
)

from rqa.distributed.deepspeed_config import merged, precision_of, read_ds_config, reconciled
from rqa.distributed.device import bf16_is_fast, default_device
from rqa.errors import InputError

# While one process builds an index the others wait: a large corpus takes longer than torch's ten minutes.
INIT_TIMEOUT = timedelta(hours=12)
DEEPSPEED = "0.19.8"  # the first whose norm of a gradient of NaN is not 1.414


def make_accelerator(
    accumulation: int = 1,
    *,
    bf16: bool | None = None,
    fp16: bool = False,
    deepspeed: str | None = "",
    flags: Mapping[str, Any] | None = None,
) -> Accelerator:
    """Return an Accelerator in the precision, and with the DeepSpeed, that flags and `accelerate launch` agree upon.

    Where nobody speaks of precision it is bfloat16 if the device computes that fast, else float32. `deepspeed` is a
    JSON file of DeepSpeed, in which `flags` fill in what is open; see `deepspeed_config.reconciled`. None is for what
    trains nothing: there DeepSpeed and FSDP have nothing to do, even if the launcher asks for them. Raises InputError
    where two of them disagree, or where processes were launched that would not see each other.
    """
    if bf16 and fp16:
        raise InputError("--bf16 true and --fp16 true exclude each other")
    asked = "fp16" if fp16 else {True: "bf16", False: "no", None: None}[bf16]
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher writes "no" where nobody spoke
    if launched != "no" and asked not in (None, launched):
        raise InputError(f"the flags ask for mixed precision {asked!r}, accelerate's configuration for {launched!r}")
    if deepspeed is None:
        for sharding in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
            os.environ.pop(sharding, None)
    config, where = asked_deepspeed(deepspeed or "")
    precision = asked or (launched if launched != "no" else None) or precision_of(config) or _default_precision()
    backend = None
    plugin = None
    if where:
        world = _join_world(where)
        known = {"gradient_accumulation_steps": accumulation, **(flags or {})}
        config = reconciled(config, where, known, processes=world, precision=precision)
        if default_device().type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            backend = "gloo"
        plugin = DeepSpeedPlugin(hf_ds_config=config)
    accelerator = Accelerator(
        mixed_precision=precision,
        # sync_with_dataloader: the loop knows where an update ends. adjust_scheduler: there is no scheduler.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=accumulation, sync_with_dataloader=False, adjust_scheduler=False
        ),
        deepspeed_plugin=plugin,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=INIT_TIMEOUT)],
    )
    assert accelerator.gradient_accumulation_steps == accumulation
    launched_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if launched_processes != accelerator.num_processes:
        raise InputError(
            f"{launched_processes} processes were launched that do not see each other. On a machine without GPUs "
            f"launch with `ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched_processes} RECIPE …`"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("mixed precision fp16 needs a GPU: on a CPU give --bf16 true, or neither")
    by_launcher = "ACCELERATE_MIXED_PRECISION" in os.environ
    if accelerator.device.type == "cpu" and by_launcher and os.environ.get("OMP_NUM_THREADS") == "1":
        # `accelerate launch` gives a process on a CPU one thread, however many cores there are.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // accelerator.num_processes))
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Tell whether weights are spread over processes that gather them together: all must make the same calls."""
    zero = accelerator.state.deepspeed_plugin
    by_stage = bool(zero and zero.zero_stage == 3)
    return accelerator.num_processes > 1 and (by_stage or accelerator.distributed_type == DistributedType.FSDP)


def leave_group() -> None:
    """End the group of processes, once nothing uses it. An interpreter that ends before the group's threads aborts."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # a model may be part of a cycle, and its wrapper holds the group


def _default_precision() -> str:
    device = torch.device("cpu") if parse_flag_from_env("ACCELERATE_USE_CPU") else default_device()
    return "bf16" if bf16_is_fast(device) else "no"


def asked_deepspeed(path: str) -> tuple[dict[str, Any], str]:
    """Return the configuration that a flag and the launcher ask for together, and its source; ("" for none).

    Raises InputError where they ask for different things, or for what cannot be.
    """
    config, where = (read_ds_config(path), f"--deepspeed {path}") if path else ({}, "")
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if file != "none":
            name = f"accelerate's deepspeed_config_file {file}"
            config, where = merged(config, where, read_ds_config(file), name), where or name
        name, launched = "accelerate's deepspeed_config", _launched()
        if not where:
            launched["zero_optimization"].setdefault("stage", 2)  # accelerate's own default
        config, where = merged(config, where, launched, name), where or name
    if where:
        _check_version(where)
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise InputError(f"{where}: accelerate's configuration asks for FSDP; leave one of them out")
        # Accelerate refuses its own fields beside a configuration; they are in it.
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    return config, where


def _check_version(where: str) -> None:
    if not is_deepspeed_available():
        raise InputError(f'{where}: DeepSpeed is not installed: `pip install ".[deepspeed]"`')
    if compare_versions("deepspeed", "<", DEEPSPEED):
        raise InputError(
            f"{where}: DeepSpeed {metadata.version('deepspeed')} is installed, expected at least {DEEPSPEED}: older "
            "ones take a gradient that is not finite for a finite one, and the weights are lost"
        )


def _launched() -> dict[str, Any]:
    """Return what `accelerate launch` says of DeepSpeed beside a file, but what `accelerate config` adds unasked."""

    def said(name: str, *defaults: str) -> str | None:
        value = os.environ.get(f"ACCELERATE_{name}", "auto")
        return None if value in ("auto", *defaults) else value

    zero: dict[str, Any] = {}
    config: dict[str, Any] = {"zero_optimization": zero}
    if stage := said("DEEPSPEED_ZERO_STAGE"):
        zero["stage"] = int(stage)
    for what in ("OPTIMIZER", "PARAM"):
        if device := said(f"DEEPSPEED_OFFLOAD_{what}_DEVICE", "none"):
            zero[f"offload_{what.lower()}"] = {"device": device}
        if place := said(f"DEEPSPEED_OFFLOAD_{what}_NVME_PATH", "none"):
            zero[f"offload_{what.lower()}"]["nvme_path"] = place
    if said("DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false"):
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if steps := said("GRADIENT_ACCUMULATION_STEPS", "1"):
        config["gradient_accumulation_steps"] = int(steps)
    if norm := said("GRADIENT_CLIPPING"):
        config["gradient_clipping"] = float(norm)
    return config


def _join_world(where: str) -> int:
    """Return the number of processes; a single one that no launcher started gets what DeepSpeed wants to know."""
    world = int(os.environ.setdefault("WORLD_SIZE", "1"))
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise InputError(
            f"{where}: ACCELERATE_USE_CPU=true turns DeepSpeed off. Without GPUs it runs with "
            f"`torchrun --nproc_per_node {world} RECIPE …`"
        )
    if world == 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            os.environ.setdefault(name, str(value))
    return world
