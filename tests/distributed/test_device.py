"""device: choices for each device, and errors for kernels that it does not have."""

import importlib.util
from pathlib import Path

import pytest
import torch

from rqa.distributed.device import attention_kernel, bf16_is_fast, default_device, peak_memory_gib
from rqa.errors import InputError


def machine(monkeypatch, *, package=True, cuda=True):
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if package and name == "flash_attn" else None
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)


@pytest.mark.parametrize("there", [True, False])
def test_the_model_chooses_its_kernel_by_default(monkeypatch, there):
    machine(monkeypatch, package=there, cuda=there)
    assert attention_kernel(False, "no") is None


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({"package": False}, "flash-attn is not installed.*pip install flash-attn --no-build-isolation"),
        ({"package": False, "cuda": False}, "expected a CUDA device, got none"),
        ({"cuda": False}, "expected a CUDA device, got none"),
    ],
)
def test_flash_attention_requires_its_package_and_a_cuda_device(monkeypatch, there, message):
    machine(monkeypatch)
    assert attention_kernel(True, "bf16") == attention_kernel(True, "fp16") == "flash_attention_2"
    machine(monkeypatch, **there)
    with pytest.raises(InputError, match=f"--use_flash_attention true: .*{message}"):
        attention_kernel(True, "bf16")


def test_flash_attention_requires_16_bits(monkeypatch):
    machine(monkeypatch)
    with pytest.raises(InputError, match=r"--use_flash_attention true: .* 16 bits, .* --bf16 true"):
        attention_kernel(True, "no")


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_a_cpu_is_fast_in_bfloat16_if_it_has_instructions_for_it(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bf16_is_fast(torch.device("cpu")) == (avx512 or amx)
    assert not bf16_is_fast(torch.device("mps"))


@pytest.mark.parametrize("supported", [True, False])
def test_a_cuda_device_that_emulates_bfloat16_is_not_fast(monkeypatch, supported):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert bf16_is_fast(torch.device("cuda")) == supported


def test_the_default_device_is_that_of_torch(monkeypatch):
    for seen in (torch.device("cuda", 0), None):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available, seen=seen: seen)
        assert default_device() == (seen or torch.device("cpu"))


def test_peak_memory_on_a_cpu_is_that_of_the_process():
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [kib] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    assert 0.99 * kib / 2**20 < peak_memory_gib(torch.device("cpu")) < 64
