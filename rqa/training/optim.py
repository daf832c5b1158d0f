"""Optimizers: one table of all that --optim accepts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

OptimizerName = Literal["adamw", "adafactor"]


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer: its factory, and facts that the memory estimate and the check of DeepSpeed need."""

    make: Callable[[list[dict[str, Any]]], "Optimizer"]  # of parameter groups
    works_under_zero: bool  # ZeRO flattens and splits the parameters: False if the optimizer reads whole matrices
    num_state_values: Callable[[Sequence[int]], int]  # float32 values of state for a parameter of this shape

    def state_bytes(self, shapes: Sequence[Sequence[int]]) -> int:
        """Return the bytes of state for parameters of these shapes."""
        return 4 * sum(map(self.num_state_values, shapes))


OPTIMIZERS: Mapping[OptimizerName, OptimizerKind] = {  # torch is imported on use; `train_steps` sets the rate
    "adamw": OptimizerKind(
        lambda groups: import_module("torch.optim").AdamW(groups, lr=0.0, fused=True),
        works_under_zero=True,
        num_state_values=lambda shape: 2 * prod(shape),  # mean and variance
    ),
    "adafactor": OptimizerKind(
        lambda groups: import_module("torch.optim").Adafactor(groups, lr=0.0),
        works_under_zero=False,
        # Of a matrix one mean for each row and each column. Torch keeps no momentum.
        num_state_values=lambda s: prod(s) if len(s) < 2 else prod(s[:-1]) + prod(s[:-2]) * s[-1],
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
