"""schedule: the learning rates are those of transformers."""

from functools import partial

import pytest
import torch
from transformers import get_scheduler

from rqa.training.schedule import learning_rate_at


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 10, 36])
def test_learning_rates_are_those_of_transformers_except_that_warm_up_starts_above_0(schedule, warmup):
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, torch.optim.SGD([torch.zeros(1)]), warmup, 37).lr_lambdas[0]
    ours = partial(learning_rate_at, peak=3e-4, num_steps=37, num_warmup_steps=warmup, schedule=schedule)
    for step in range(38):
        assert ours(step) == pytest.approx(3e-4 * theirs(step + (step < warmup)), rel=1e-9, abs=1e-12)
