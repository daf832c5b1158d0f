"""optim: OPTIMIZERS agrees with torch's optimizers and with the flag."""

from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from tiny_models import decoder

from rqa.cli.training_args import OptimizationArgs
from rqa.distributed.deepspeed_config import resolve_config
from rqa.errors import InputError
from rqa.training.adamw_bf16 import AdamWBf16
from rqa.training.optim import OPTIMIZERS, OptimizerName, make_optimizer

KINDS = {
    "adamw": torch.optim.AdamW,
    "adafactor": torch.optim.Adafactor,
    "adamw_8bit": AdamW8bit,
    "adamw_bf16": AdamWBf16,
}


def test_the_flag_accepts_every_optimizer():
    assert OPTIMIZERS.keys() == KINDS.keys() == {*get_args(OptimizerName)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_applies_to_trainable_matrices_only(name):
    model = decoder("gpt2")
    model.transformer.wte.requires_grad_(False)
    model.transformer.ln_f.requires_grad_(False)
    optimizer = make_optimizer(model, name, weight_decay=0.1)
    assert type(optimizer) is KINDS[name]
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        expected = None if "wte" in key or "ln_f" in key else 0.0 if key.endswith("bias") or ".ln_" in key else 0.1
        assert decays.pop(id(parameter), None) == expected, key
    assert not decays


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 5, 3), (65, 64)], ids=str)
def test_state_bytes_are_those_of_the_optimizer(name, shape):
    """Without the tables of 8 bits: all parameters share them."""
    parameter = torch.nn.Parameter(torch.ones(shape, dtype=getattr(torch, OPTIMIZERS[name].weights)))
    optimizer = OPTIMIZERS[name].make([{"params": [parameter]}])
    parameter.sum().backward()
    optimizer.step()
    tensors = [value for key, value in optimizer.state[parameter].items() if key not in ("step", "qmap1", "qmap2")]
    assert OPTIMIZERS[name].state_bytes([shape]) == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_deepspeed_accepts_the_optimizers_that_work_under_zero(name):
    flags = OptimizationArgs(optim=name).accelerator_options["flags"]
    zero = {"zero_optimization": {"stage": 2}}
    refused = pytest.raises(InputError, match=f"--optim.*{name}")
    with nullcontext() if OPTIMIZERS[name].works_under_zero else refused:
        resolve_config(zero, "zero.json", flags, processes=1, precision="no")
