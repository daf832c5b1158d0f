"""The learning rate of each step."""

import math
from typing import Literal

Schedule = Literal["cosine", "linear", "constant"]


def learning_rate_at(
    step: int, *, peak: float, num_steps: int, num_warmup_steps: int = 0, schedule: Schedule = "cosine"
) -> float:
    """Return the learning rate of a step, from 0: a linear warm-up to `peak`, then half a cosine, a line, or `peak`."""
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    shares = {"cosine": 0.5 * (1.0 + math.cos(math.pi * progress)), "linear": 1.0 - progress, "constant": 1.0}
    return peak * shares[schedule]
