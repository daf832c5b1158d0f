"""The Accelerator: processes, precision and DeepSpeed, from the flags and the launcher."""

import gc
import logging
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import (
    DeepSpeedPlugin,
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
    compare_versions,
)
from accelerate.utils.environment import parse_flag_from_env
from accelerate.utils.imports import is_deepspeed_available
from accelerate.utils.other import get_free_port
from torch import nn

from rqa.distributed.deepspeed_config import config_precision, merge_configs, read_ds_config, resolve_config
from rqa.distributed.device import bf16_is_fast, default_device
from rqa.errors import InputError

log = logging.getLogger(__name__)
T = TypeVar("T")

# All ranks wait while one builds an index: for a large corpus torch's default of ten minutes is too short.
INIT_TIMEOUT = timedelta(hours=12)
MIN_DEEPSPEED_VERSION = "0.19.8"  # older ones compute a norm of 1.414 for a gradient of NaN
BF16_EMULATION_FACTOR = 9  # on two cores with AVX2: 145 GFLOP/s in float32, 16 in bfloat16
# Model types in which every weight gets a gradient from every batch. In others a weight may get none: a vision tower
# without images, an expert without tokens, a dropped layer. A type that is not listed is safe, and a little slower.
FULL_GRADIENT_MODELS = frozenset(
    "bloom cohere cohere2 falcon gemma gemma2 gemma3_text glm glm4 gpt_neox gpt_oss granite llama ministral ministral3 "
    "mistral mixtral mt5 olmo olmo2 olmo3 phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe smollm3 stablelm starcoder2 t5 "
    "t5gemma umt5".split()
)


class _Accelerator(Accelerator):  # type: ignore[misc]
    def prepare_model(self, model: nn.Module, *args: Any, **options: Any) -> nn.Module:
        """Return the prepared model. DDP does not wait for the gradients of weights that a step does not use.

        The search for them costs 0.7 ms per step for 32 layers, so that it is off for FULL_GRADIENT_MODELS.
        """
        is_full = getattr(getattr(model, "config", None), "model_type", "") in FULL_GRADIENT_MODELS
        self.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=not is_full)
        prepared: nn.Module = super().prepare_model(model, *args, **options)
        return prepared


def make_accelerator(
    accumulation: int = 1,
    *,
    bf16: bool | None = None,
    fp16: bool = False,
    deepspeed: str | None = "",
    flags: Mapping[str, Any] | None = None,
) -> Accelerator:
    """Return an Accelerator for the flags and the settings of `accelerate launch`.

    Without a setting the precision is bfloat16 if the device is fast in it, else float32. `deepspeed` is a JSON file of
    DeepSpeed; `flags` fill in its missing values, see `deepspeed_config.resolve_config`. With None, for recipes that do
    not train, DeepSpeed and FSDP are off, also if the launcher sets them. Raises InputError if two settings contradict
    each other, or if the launched processes would not communicate.
    """
    if bf16 and fp16:
        raise InputError("--bf16, --fp16: expected at most one of them to be true, got both")
    flag_precision = "fp16" if fp16 else {True: "bf16", False: "no", None: None}[bf16]
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launcher sets "no" by default
    if launched != "no" and flag_precision not in (None, launched):
        raise InputError(
            f"mixed precision: expected the same from the flags and from accelerate's configuration, got "
            f"{flag_precision!r} and {launched!r}. Change one of them"
        )
    if deepspeed is None:
        for sharding in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
            os.environ.pop(sharding, None)
    config, source = load_deepspeed_config(deepspeed or "")
    device = torch.device("cpu") if parse_flag_from_env("ACCELERATE_USE_CPU") else default_device()
    precision = flag_precision or (launched if launched != "no" else config_precision(config))
    precision = precision or ("bf16" if bf16_is_fast(device) else "no")
    backend = plugin = None
    if source:
        processes = _join_processes(source)
        values = {"gradient_accumulation_steps": accumulation, **(flags or {})}
        config = resolve_config(config, source, values, processes=processes, precision=precision)
        if device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            backend = "gloo"
        plugin = DeepSpeedPlugin(hf_ds_config=config)
    # sync_with_dataloader: the loop itself counts micro-batches. adjust_scheduler: there is no scheduler.
    micro_batches = GradientAccumulationPlugin(accumulation, sync_with_dataloader=False, adjust_scheduler=False)
    accelerator = _Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=micro_batches,
        deepspeed_plugin=plugin,
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=INIT_TIMEOUT)],
    )
    assert accelerator.gradient_accumulation_steps == accumulation
    launched_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if launched_processes != accelerator.num_processes:
        raise InputError(
            f"{launched_processes} processes were launched that do not communicate. On a machine without GPUs "
            f"launch with `ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched_processes} RECIPE …`"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("mixed precision fp16: expected a GPU, got a CPU. Set --bf16 true, or neither")
    if accelerator.device.type == "cpu":
        if accelerator.mixed_precision == "bf16" and not bf16_is_fast(accelerator.device):
            log.warning(
                "bfloat16: this CPU emulates it; matrix products take about %d times as long. Set --bf16 false.",
                BF16_EMULATION_FACTOR,
            )
        if _one_thread_by_launcher():
            cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
            torch.set_num_threads(max(1, cpus // accelerator.num_processes))
    return accelerator


def _one_thread_by_launcher() -> bool:
    """Return True if the single thread is a default of `accelerate launch`, not a setting of the user.

    The launcher sets OMP_NUM_THREADS=1 for its processes. A setting of the user is in its own environment or command.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or os.environ.get("OMP_NUM_THREADS") != "1":
        return False
    launcher = Path(f"/proc/{os.getppid()}")
    try:
        words = (launcher / "environ").read_bytes() + b"\0" + (launcher / "cmdline").read_bytes()
    except OSError:  # not Linux, or the launcher has ended
        return True
    settings = (b"OMP_NUM_THREADS=", b"--num_cpu_threads_per_process", b"--num-cpu-threads-per-process")
    return not any(word.startswith(settings) for word in words.split(b"\0"))


def call_on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Call a function on the main process, and return its result on all ranks; all of them raise its InputError."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [function(), None]
        except InputError as problem:
            outcome = [None, problem]
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    value: T = result
    return value


def exchange_lists(lists: Sequence[list[T]]) -> list[list[T]]:
    """Send `lists[r]` to rank r, and return the lists that the ranks sent to this one; every rank must call this."""
    if len(lists) == 1:
        return [*lists]
    device = PartialState().device
    sent = [pickle.dumps(each) for each in lists]
    sizes = torch.tensor([len(data) for data in sent], device=device)
    torch.distributed.all_to_all_single(received_sizes := torch.empty_like(sizes), sizes)
    sent_bytes = torch.frombuffer(bytearray().join(sent), dtype=torch.uint8).to(device)
    received_bytes = sent_bytes.new_empty(sum(counts := received_sizes.tolist()))
    torch.distributed.all_to_all_single(received_bytes, sent_bytes, counts, sizes.tolist())
    parts = torch.split(received_bytes.cpu(), counts)
    return [pickle.loads(part.numpy().tobytes()) for part in parts]


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if weights are sharded (ZeRO-3, FSDP): every rank must then call the model equally often."""
    zero = accelerator.state.deepspeed_plugin
    is_zero3 = bool(zero and zero.zero_stage == 3)
    return accelerator.num_processes > 1 and (is_zero3 or accelerator.distributed_type == DistributedType.FSDP)


def leave_group() -> None:
    """Destroy the process group at the end: its threads would abort the interpreter at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # a model in a reference cycle still refers to the group


def load_deepspeed_config(path: str) -> tuple[dict[str, Any], str]:
    """Return the DeepSpeed configuration of a flag and of the launcher, and its source; "" without DeepSpeed.

    Raises InputError if they contradict each other or cannot be used.
    """
    config, source = (read_ds_config(path), f"--deepspeed {path}") if path else ({}, "")
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        if file != "none":
            name = f"accelerate's deepspeed_config_file {file}"
            config, source = merge_configs(config, source, read_ds_config(file), name), source or name
        name, launched = "accelerate's deepspeed_config", _launched_config()
        if not source:
            launched["zero_optimization"].setdefault("stage", 2)  # accelerate's default
        config, source = merge_configs(config, source, launched, name), source or name
    if source:
        if not is_deepspeed_available():
            raise InputError(f'{source}: DeepSpeed is not installed. Run `pip install ".[deepspeed]"`')
        if compare_versions("deepspeed", "<", MIN_DEEPSPEED_VERSION):
            raise InputError(
                f"{source}: expected DeepSpeed {MIN_DEEPSPEED_VERSION} or newer, got {metadata.version('deepspeed')}: "
                "it treats a gradient of NaN as finite and destroys the weights"
            )
        if parse_flag_from_env("ACCELERATE_USE_FSDP"):
            raise InputError(f"{source}: expected DeepSpeed or FSDP, got FSDP in accelerate's configuration too")
        # Accelerate rejects its own fields together with a configuration, which contains them.
        os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)
    return config, source


def _launched_config() -> dict[str, Any]:
    """Return the DeepSpeed settings of `accelerate launch` that no file has, without the defaults of its questions."""

    def setting(name: str, *defaults: str) -> str | None:
        value = os.environ.get(f"ACCELERATE_{name}", "auto")
        return None if value in ("auto", *defaults) else value

    zero: dict[str, Any] = {}
    config: dict[str, Any] = {"zero_optimization": zero}
    if stage := setting("DEEPSPEED_ZERO_STAGE"):
        zero["stage"] = int(stage)
    for part in ("OPTIMIZER", "PARAM"):
        if device := setting(f"DEEPSPEED_OFFLOAD_{part}_DEVICE", "none"):
            zero[f"offload_{part.lower()}"] = {"device": device}
        if path := setting(f"DEEPSPEED_OFFLOAD_{part}_NVME_PATH", "none"):
            zero[f"offload_{part.lower()}"]["nvme_path"] = path
    if setting("DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false"):
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if steps := setting("GRADIENT_ACCUMULATION_STEPS", "1"):
        config["gradient_accumulation_steps"] = int(steps)
    if norm := setting("GRADIENT_CLIPPING"):
        config["gradient_clipping"] = float(norm)
    return config


def _join_processes(source: str) -> int:
    """Return the number of processes; without a launcher, set the environment that DeepSpeed requires."""
    processes = int(os.environ.setdefault("WORLD_SIZE", "1"))
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise InputError(
            f"{source}: ACCELERATE_USE_CPU=true disables DeepSpeed. Without GPUs launch with "
            f"`torchrun --nproc_per_node {processes} RECIPE …`"
        )
    if processes == 1:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
        for name, value in alone.items():
            os.environ.setdefault(name, value)
    return processes
