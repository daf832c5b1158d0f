"""From a launch to an Accelerator: processes, precision and DeepSpeed, as the flags and the launcher agree upon."""

import importlib.util
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DeepSpeedPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)

from rqa.ds_config import precision_of, read_ds_config, reconciled
from rqa.errors import InputError
from rqa.hardware import bf16_is_fast, default_device

# While one process builds an index the others wait: a large corpus takes longer than torch's ten minutes.
WAIT = timedelta(hours=12)


def make_accelerator(
    accumulation: int = 1,
    *,
    bf16: bool | None = None,
    fp16: bool = False,
    deepspeed: str = "",
    flags: Mapping[str, Any] | None = None,
) -> Accelerator:
    """Return an Accelerator in the precision, and with the DeepSpeed, that flags and `accelerate launch` agree upon.

    Where nobody speaks of precision it is bfloat16 if the device computes that fast, else float32. `deepspeed` is a
    JSON file of DeepSpeed, in which `flags` fill in what is open; see `rqa.ds_config.reconciled`. Raises InputError
    where two of them disagree, or where processes were launched that would not see each other.
    """
    if bf16 and fp16:
        raise InputError("--bf16 true and --fp16 true exclude each other")
    asked = "fp16" if fp16 else {True: "bf16", False: "no", None: None}[bf16]
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher writes "no" where nobody spoke
    if launched != "no" and asked not in (None, launched):
        raise InputError(f"the flags ask for mixed precision {asked!r}, accelerate's configuration for {launched!r}")
    config, where = _deepspeed(deepspeed)
    precision = asked or (launched if launched != "no" else None) or precision_of(config) or _default_precision()
    backend = None
    plugin = None
    if where:
        world = _join_world()
        known = {"gradient_accumulation_steps": accumulation, **(flags or {})}
        config = reconciled(config, where, known, processes=world, precision=precision)
        plugin = DeepSpeedPlugin(hf_ds_config=config)
        backend = "gloo" if default_device().type == "cpu" else None
    accelerator = Accelerator(
        mixed_precision=precision,
        # sync_with_dataloader: the loop knows where an update ends. adjust_scheduler: there is no scheduler.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=accumulation, sync_with_dataloader=False, adjust_scheduler=False
        ),
        deepspeed_plugin=plugin,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=WAIT)],
    )
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


def _default_precision() -> str:
    device = torch.device("cpu") if parse_flag_from_env("ACCELERATE_USE_CPU") else default_device()
    return "bf16" if bf16_is_fast(device) else "no"


def _deepspeed(path: str) -> tuple[dict[str, Any], str]:
    """Return the configuration that is asked for, by a flag or the launcher, and its source; ("" for none)."""
    config, where = launched_deepspeed()
    if path:
        given = read_ds_config(path)
        if where and given != config:
            raise InputError(f"--deepspeed {path} and {where} ask for different things; leave one of them out")
        config, where = given, f"--deepspeed {path}"
    if where:
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError(f"{where}: the package deepspeed is not installed: `pip install deepspeed`")
        # Accelerate refuses a configuration beside the launcher's own; the launcher's is in it.
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    return config, where


def launched_deepspeed() -> tuple[dict[str, Any], str]:
    """Return what `accelerate launch` says of DeepSpeed, in its own file or in accelerate's."""
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return {}, ""
    if path := os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        return read_ds_config(path), f"accelerate's deepspeed_config_file {path}"
    zero: dict[str, Any] = {"stage": int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}
    for what in ("OPTIMIZER", "PARAM"):
        device = os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none")
        if device != "none":
            zero[f"offload_{what.lower()}"] = {"device": device}
        if device == "nvme":
            path = os.environ[f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_NVME_PATH"]
            zero[f"offload_{what.lower()}"]["nvme_path"] = path
    config: dict[str, Any] = {"zero_optimization": zero}
    if steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        config["gradient_accumulation_steps"] = "auto" if steps == "auto" else int(steps)
    if norm := os.environ.get("ACCELERATE_GRADIENT_CLIPPING"):
        config["gradient_clipping"] = "auto" if norm == "auto" else float(norm)
    return config, "accelerate's deepspeed_config"


def _join_world() -> int:
    """Return the number of processes; a single one that no launcher started gets what DeepSpeed wants to know."""
    if "WORLD_SIZE" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        os.environ.update(alone)
    return int(os.environ["WORLD_SIZE"])
