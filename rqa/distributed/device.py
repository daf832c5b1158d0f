"""All choices that depend on the hardware."""

import importlib.util
import resource
import sys
from typing import Literal

import torch

from rqa.errors import InputError

AttentionKernel = Literal["flash_attention_2", "eager"]  # in place of sdpa, the default


def bf16_is_fast(device: torch.device) -> bool:
    """Return True if matrix products are faster in bfloat16 than in float32: a CPU needs instructions for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # torch has no public function
    )


def default_device() -> torch.device:
    """Return the accelerator of torch if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def attention_kernel(use_flash_attention: bool, mixed_precision: str) -> AttentionKernel | None:
    """Return the `attn_implementation` to load a model with; None is sdpa, or eager if the model has no sdpa.

    Raises InputError if flash attention is set and a CUDA device, the package or a precision of 16 bits is missing.
    """
    if not use_flash_attention:
        return None
    if not torch.cuda.is_available():  # first: without one the package cannot be built
        raise InputError("--use_flash_attention true: expected a CUDA device, got none. Remove the flag")
    if importlib.util.find_spec("flash_attn") is None:
        raise InputError(
            "--use_flash_attention true: the package flash-attn is not installed. "
            "Install it after torch with `pip install flash-attn --no-build-isolation`, or remove the flag"
        )
    if mixed_precision not in ("bf16", "fp16"):
        raise InputError("--use_flash_attention true: expected a precision of 16 bits, got float32. Set --bf16 true")
    return "flash_attention_2"


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory in GiB: of the device, or on a CPU the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes on macOS, KiB on Linux
