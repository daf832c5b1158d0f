"""AdamW on weights and states in bfloat16, with stochastic rounding: 8 bytes for a parameter, its gradient included.

A step that is small beside its weight would round to zero in bfloat16. Rounded up or down at random, with the value as
expectation, steps add up: Zamirai et al., 2020, "Revisiting BFloat16 Training".
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

PART = 1 << 24  # values that change together: copies in float32 of a whole embedding could be the peak of memory


class AdamWBf16(Optimizer):
    """AdamW, computed in float32. Its random numbers depend on the number of steps alone.

    They are therefore the same on all ranks and after a resume, and leave torch's random numbers unchanged.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  # never called with one
        """Change the weights by their gradients."""
        for group in self.param_groups:
            group["step"] += 1
        count = sum(len(group["params"]) for group in self.param_groups)
        parameters = ((parameter, group) for group in self.param_groups for parameter in group["params"])
        for number, (parameter, group) in enumerate(parameters):
            if parameter.grad is not None:
                state, seed = self.state[parameter], group["step"] * count + number
                if not state:
                    state["mean"], state["variance"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                generator = torch.Generator(parameter.device).manual_seed(seed)
                tensors = (parameter, parameter.grad.contiguous(), state["mean"], state["variance"])
                for part in zip(*(tensor.view(-1).split(PART) for tensor in tensors), strict=True):
                    _change(group, generator, *part)


def _change(
    group: dict[str, Any], generator: torch.Generator, weight: Tensor, gradient: Tensor, mean: Tensor, variance: Tensor
) -> None:
    """Change weight, mean and variance by a gradient: Loshchilov and Hutter, 2019, algorithm 2."""
    step, (beta1, beta2) = group["step"], group["betas"]
    new_mean = mean.float().lerp_(gradient.float(), 1 - beta1)
    new_variance = variance.float().lerp_(gradient.float().square(), 1 - beta2)
    scale = (new_variance / (1 - beta2**step)).sqrt_().add_(group["eps"])
    new_weight = weight.float().mul_(1 - group["lr"] * group["weight_decay"])
    new_weight.addcdiv_(new_mean, scale, value=-group["lr"] / (1 - beta1**step))
    for stored, value in ((weight, new_weight), (mean, new_mean), (variance, new_variance)):
        stored.copy_(stochastic_round(value, generator))


def stochastic_round(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return float32 values in bfloat16, each rounded to a neighbour at random, with the value as expectation."""
    noise = torch.randint(1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = values.view(torch.int32) + noise  # bfloat16 is the upper half of the bits
    return (bits & -(1 << 16)).view(torch.float32).bfloat16()
