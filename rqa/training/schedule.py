"""The learning rate of each step, and the change of the weights that it allows."""

import logging
import math
from collections.abc import Callable
from typing import Literal

log = logging.getLogger(__name__)

Schedule = Literal["cosine", "linear", "constant"]

# About the distance of two neighbours in bfloat16 near 0.02, a usual weight: a smaller change hardly changes answers.
MIN_WEIGHT_CHANGE = 1e-4


def learning_rate_at(
    step: int, *, peak: float, num_steps: int, num_warmup_steps: int = 0, schedule: Schedule = "cosine"
) -> float:
    """Return the learning rate of a step, from 0: a linear warm-up to `peak`, then half a cosine, a line, or `peak`."""
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    shares = {"cosine": 0.5 * (1.0 + math.cos(math.pi * progress)), "linear": 1.0 - progress, "constant": 1.0}
    return peak * shares[schedule]


def max_weight_change(learning_rate: Callable[[int], float], num_steps: int) -> float:
    """Return the sum of the learning rates: AdamW changes a weight by about the learning rate in a step, at most."""
    return math.fsum(map(learning_rate, range(num_steps)))


def warn_without_change(learning_rate: Callable[[int], float], num_steps: int) -> None:
    """Log a warning if a run of `num_steps` steps hardly changes answers."""
    if (change := max_weight_change(learning_rate, num_steps)) < MIN_WEIGHT_CHANGE:
        log.warning(
            "--learning_rate: %d steps change a weight by %.1e at most, less than %.0e: expect the same answers. "
            "Raise --learning_rate or the number of steps.",
            num_steps,
            change,
            MIN_WEIGHT_CHANGE,
        )
