"""Optimizers: one table of all that --optim accepts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

OptimizerName = Literal["adamw", "adafactor", "adamw_8bit", "adamw_bf16"]


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: its factory, and facts that the memory estimate and the check of DeepSpeed need."""

    make: Callable[[list[dict[str, Any]]], "Optimizer"]  # of parameter groups
    works_under_zero: bool  # ZeRO flattens and splits the parameters: False if the optimizer reads whole matrices
    bytes_of_state: Callable[[Sequence[int]], int]  # for a parameter of this shape
    works_under_fsdp: bool = True  # FSDP splits the parameters too
    package: str = ""  # that it needs, of the extra "quantized"
    weights: Literal["float32", "bfloat16"] = "float32"  # dtype of the weights that it trains

    def state_bytes(self, shapes: Sequence[Sequence[int]]) -> int:
        """Return the bytes of state for parameters of these shapes."""
        return sum(map(self.bytes_of_state, shapes))


OPTIMIZERS: Mapping[OptimizerName, OptimizerKind] = {  # torch is imported on use; `train_steps` sets the rate
    "adamw": OptimizerKind(
        lambda groups: import_module("torch.optim").AdamW(groups, lr=0.0, fused=True),
        works_under_zero=True,
        bytes_of_state=lambda shape: 8 * prod(shape),  # mean and variance
    ),
    "adafactor": OptimizerKind(
        lambda groups: import_module("torch.optim").Adafactor(groups, lr=0.0),
        works_under_zero=False,
        # Of a matrix one mean for each row and each column. Torch keeps no momentum.
        bytes_of_state=lambda s: 4 * (prod(s) if len(s) < 2 else prod(s[:-1]) + prod(s[:-2]) * s[-1]),
    ),
    "adamw_8bit": OptimizerKind(  # Dettmers et al., 2022, "8-bit Optimizers via Block-wise Quantization"
        lambda groups: import_module("bitsandbytes.optim").AdamW8bit(groups, lr=0.0),
        works_under_zero=False,
        works_under_fsdp=False,
        package="bitsandbytes",
        # A byte for mean and for variance, and a scale of each 256; small parameters have a state in float32.
        bytes_of_state=lambda shape: (
            8 * prod(shape) if prod(shape) < 4096 else 2 * prod(shape) + 8 * -(-prod(shape) // 256)
        ),
    ),
    "adamw_bf16": OptimizerKind(
        lambda groups: import_module("rqa.training.adamw_bf16").AdamWBf16(groups),
        works_under_zero=False,
        works_under_fsdp=False,
        weights="bfloat16",
        bytes_of_state=lambda shape: 4 * prod(shape),
    ),
}


def make_optimizer(model: "nn.Module", name: OptimizerName = "adamw", *, weight_decay: float = 0.0) -> "Optimizer":
    """Return an optimizer over the trainable parameters; weight decay applies to matrices, not to biases and norms."""
    matrices: dict[str, Any] = {"params": [], "weight_decay": weight_decay}
    others: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for parameter in model.parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 the parameter is flat and partial
            (matrices if len(shape) >= 2 else others)["params"].append(parameter)
    return OPTIMIZERS[name].make([matrices, others])
