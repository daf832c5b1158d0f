"""What moves the weights, and how far: the names of optimizers, and the learning rate as a pure function."""

import math
from typing import Literal

OptimizerName = Literal["adamw", "adafactor"]
Schedule = Literal["cosine", "linear", "constant"]


def learning_rate_at(
    step: int, *, peak: float, num_steps: int, num_warmup_steps: int = 0, schedule: Schedule = "cosine"
) -> float:
    """Return the rate of update `step`, from 0: a linear warm-up to `peak`, then a half cosine or a line to 0."""
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    match schedule:
        case "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            return peak * (1.0 - progress)
        case "constant":
            return peak
