"""What this machine can compute, and how fast: every choice that depends on the hardware is made here."""

import importlib.util
import resource
import sys
from typing import Literal

import torch

from rqa.errors import InputError

AttentionKernel = Literal["flash_attention_2", "eager"]


def bf16_is_fast(device: torch.device) -> bool:
    """Tell whether matrix products in bfloat16 are quicker than in float32 on `device`.

    On a CPU without bfloat16 instructions they are emulated and slower.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # no public name for the question
    )


def default_device() -> torch.device:
    """Return the accelerator that torch sees, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def attention_kernel(use_flash_attention: bool, mixed_precision: str) -> AttentionKernel | None:
    """Return the `attn_implementation` to load a model with; None is sdpa, or eager where a model has no sdpa.

    Raises InputError where flash attention is asked for and the package, a CUDA device or a precision of 16 bits, which
    its kernels need, is missing.
    """
    if not use_flash_attention:
        return None
    if importlib.util.find_spec("flash_attn") is None:
        raise InputError(
            "--use_flash_attention true: the package flash-attn is not installed. "
            "Install it after torch with `pip install flash-attn --no-build-isolation`, or leave the flag out."
        )
    if not torch.cuda.is_available():
        raise InputError("--use_flash_attention true: flash attention needs a CUDA device, and torch sees none.")
    if mixed_precision not in ("bf16", "fp16"):
        raise InputError("--use_flash_attention true: flash attention computes in 16 bits: give --bf16 true")
    return "flash_attention_2"


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory in use so far, in GiB: of the device, or on a CPU the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes on macOS, KiB on Linux
