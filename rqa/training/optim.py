"""Optimizers: one table of those that a flag can name."""

import torch
from torch import nn
from torch.optim import Optimizer

from rqa.training.schedule import OptimizerName


def make_optimizer(model: nn.Module, name: OptimizerName = "adamw", *, weight_decay: float = 0.0) -> Optimizer:
    """Return an optimizer over the trainable parameters; matrices decay, biases and norms do not.

    Its rate is written before every update by `train_steps`.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves of a parameter a flat part
            (matrices if len(shape) >= 2 else others).append(parameter)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.0)
    return torch.optim.AdamW(groups, lr=0.0, fused=True)
