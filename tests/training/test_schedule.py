"""schedule: the learning rates are those of transformers."""

from functools import partial

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import get_scheduler

from rqa.cli.training_args import OptimizationArgs
from rqa.training.loop import train_steps
from rqa.training.optim import make_optimizer
from rqa.training.schedule import learning_rate_at, max_weight_change


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 10, 36])
def test_learning_rates_are_those_of_transformers_except_that_warm_up_starts_above_0(schedule, warmup):
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, torch.optim.SGD([torch.zeros(1)]), warmup, 37).lr_lambdas[0]
    ours = partial(learning_rate_at, peak=3e-4, num_steps=37, num_warmup_steps=warmup, schedule=schedule)
    for step in range(38):
        assert ours(step) == pytest.approx(3e-4 * theirs(step + (step < warmup)), rel=1e-9, abs=1e-12)


def test_adamw_changes_no_weight_by_much_more_than_the_sum_of_the_learning_rates():
    """Also with gradients of any size; more is possible for gradients that are zero in most steps."""
    generator, weights = torch.Generator().manual_seed(0), nn.Linear(50, 50, bias=False)
    before, optimizer = weights.weight.detach().clone(), make_optimizer(weights)
    learning_rate = partial(learning_rate_at, peak=1e-3, num_steps=40, num_warmup_steps=4)
    for step in range(40):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        weights.weight.grad = 10.0 ** (step % 7) * torch.randn(50, 50, generator=generator).sign()
        weights.weight.grad[:, 0] = 1.0
        optimizer.step()
    bound = max_weight_change(learning_rate, 40)
    change = (weights.weight - before).abs()
    assert change.max() <= 1.3 * bound
    assert change[:, 0].max() >= 0.95 * bound


@pytest.mark.parametrize(
    ("flags", "warns"),
    [
        ({"max_steps": 10, "learning_rate": 5e-6}, True),
        ({"max_steps": 10, "learning_rate": 5e-6, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}, True),
        ({"max_steps": 1000, "learning_rate": 0.0}, True),
        ({"max_steps": 144, "learning_rate": 5e-6}, False),  # that of the documented command on 575 questions
        ({"max_steps": 12, "learning_rate": 2e-3}, False),  # the quickstart's
    ],
)
def test_a_run_that_hardly_changes_the_weights_is_a_warning(caplog, flags, warns):
    args = OptimizationArgs(**flags)
    all_done = {"first_step": args.max_steps, **args.loop_options(args.max_steps)}
    assert list(train_steps(Accelerator(cpu=True), nn.Linear(1, 1), None, iter(()), **all_done)) == []
    assert ("--learning_rate" in caplog.text and f"{args.max_steps} steps" in caplog.text) == warns
