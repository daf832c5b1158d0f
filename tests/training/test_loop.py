"""loop: in every layout of a global batch a step does the same as a plain loop."""

import copy
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from architectures import tiny_model
from plain_loop import (
    CALM,
    GLOBAL_BATCHES,
    NAN,
    POISON,
    RATE,
    SIZES,
    Poisonable,
    assert_is_plain_loop,
    assert_same,
    cut,
    deterministic,
    plain_loop,
    poison,
    steps_of,
)
from tiny_models import decoder
from torch import nn
from world import hand_over, results_of

from rqa.distributed.accelerator import make_accelerator
from rqa.models.decoder import AnswerLM
from rqa.training.loop import train_steps
from rqa.training.optim import make_optimizer

LAYOUTS = {"1 x (8 x 1)": 8, "1 x (4 x 2)": 4, "1 x (2 x 4)": 2, "1 x 8": 1}  # and their accumulation
LAYOUTS_OF_MORE = {  # and their processes and accumulation; three have odd micro-batches
    "2 x (1 x 4)": (2, 1),
    "2 x (2 x 2)": (2, 2),
    "2 x (4 x 1)": (2, 4),
    "3 x (1 x 3)": (3, 1),
    "3 x (2 x 2)": (3, 2),
}


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


def start(accumulation=1, model=None, *, dropout=0.0):
    """Return an accelerator, and a prepared model and optimizer."""
    plugin = GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False, adjust_scheduler=False)
    accelerator = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_plugin=plugin)
    model = AnswerLM(decoder(dropout=dropout)) if model is None else model
    return accelerator, *accelerator.prepare(model, make_optimizer(model, weight_decay=0.1))


def weights(model):
    return {name.removeprefix("module."): tensor.clone() for name, tensor in model.state_dict().items()}


def run(*args, **options):
    """Return the steps of a run without seconds, torch's seed in each step, and the weights."""
    accelerator, model, optimizer = start(*args)
    steps = [(deterministic(step), torch.initial_seed()) for step in steps_of(accelerator, model, optimizer, **options)]
    return *zip(*steps, strict=True), weights(model)


# One step


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_rank_equals_a_plain_loop(layout):
    assert_is_plain_loop(run(LAYOUTS[layout]), plain_loop(), LAYOUTS[layout])


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Return the results of each rank, by the number of ranks."""
    return {number: results_of(__file__, tmp_path_factory.mktemp("ranks"), processes=number) for number in (2, 3)}


@pytest.mark.parametrize("layout", LAYOUTS_OF_MORE)
def test_more_ranks_equal_a_plain_loop(launched, layout):
    processes, accumulation = LAYOUTS_OF_MORE[layout]
    for rank in launched[processes]:
        assert_is_plain_loop(rank[layout], plain_loop(), processes * accumulation)
        assert_same(rank[layout][2], launched[processes][0][layout][2], rtol=0, atol=0)


@pytest.fixture
def two(launched):
    return launched[2]


class WithExperts(AnswerLM):
    """Each row trains the expert that its last position chooses; the last expert is never chosen."""

    def __init__(self):
        super().__init__(decoder())
        self.config = SimpleNamespace(model_type="with experts")
        self.experts = nn.ParameterList(torch.full((2, 2), 0.1 * (1 + number)) for number in range(4))

    def forward(self, input_ids, labels):
        nll, choice = super().forward(input_ids, labels), input_ids[:, -1] % 3
        for number in choice.unique().tolist():
            nll = torch.where(choice == number, nll * self.experts[number].sum(), nll)
        return nll


# Weights without gradient: a vision tower, and experts that differ between ranks and micro-batches.
PARTLY_TRAINED = {"vision tower": lambda: AnswerLM(tiny_model("gemma3", False)), "experts": WithExperts}


def run_partly_trained(kind, accumulation):
    """Return the loss and norm of each step, and the weights: at first, at last, and at last after a resume."""

    def begin():
        accelerator, model = make_accelerator(accumulation, bf16=False), PARTLY_TRAINED[kind]()
        return accelerator, *accelerator.prepare(model, make_optimizer(model, weight_decay=0.1))

    whole, first, second = begin(), begin(), begin()
    untrained = weights(whole[1])
    batches = GLOBAL_BATCHES[:4]  # no slot is without rows: its padding would use an expert
    steps = [(step.loss, step.gradient_norm) for step in steps_of(*whole, batches)]
    list(steps_of(*first, batches, num_steps=2))
    for part, trained in zip(second[1:], first[1:], strict=True):
        part.load_state_dict(copy.deepcopy(trained.state_dict()))
    list(steps_of(*second, batches, first_step=2))
    return steps, untrained, weights(whole[1]), weights(second[1])


def unchanged(before, after):
    return {name for name in before if torch.equal(before[name], after[name])}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", PARTLY_TRAINED)
def test_two_ranks_equal_one_if_some_weights_get_no_gradient(two, monkeypatch, kind, accumulation):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    expected_steps, untrained, expected, _ = run_partly_trained(kind, accumulation)
    for rank in two:
        steps, _, trained, resumed = rank[kind, accumulation]
        assert steps == [pytest.approx(step, rel=1e-4) for step in expected_steps]
        assert_same(trained, expected, rtol=1e-4, atol=5e-5)  # Adam turns rounding into a part of the rate, 1e-2
        assert_same(resumed, trained, rtol=0, atol=0)
        assert unchanged(untrained, trained) == unchanged(untrained, expected)
        assert any("vision" in name or "experts.3" in name for name in unchanged(untrained, trained))


def test_dropout_differs_between_steps_ranks_and_seeds(two):
    one_rank, other_seed = run()[1], run(seed=1)[1]
    assert two[0]["2 x (1 x 4)"][1] == two[0]["2 x (2 x 2)"][1] == one_rank
    seeds = [*one_rank, *two[1]["2 x (1 x 4)"][1], *other_seed]
    assert len(set(seeds)) == 3 * len(SIZES)


def test_code_between_two_steps_has_no_effect():
    calm, disturbed, steps = start(2, dropout=0.5), start(2, dropout=0.5), []
    for step in steps_of(*disturbed):
        steps.append(deterministic(step))
        disturbed[1].eval()(**GLOBAL_BATCHES[0])
        torch.rand(step.number)
    assert steps == list(map(deterministic, steps_of(*calm)))
    assert_same(weights(disturbed[1]), weights(calm[1]), rtol=0, atol=0)
    assert steps != run(2)[0]  # there is dropout


def test_first_step_continues_as_without_interruption():
    whole, first = start(2, dropout=0.5), start(2, dropout=0.5)
    steps = list(map(deterministic, steps_of(*whole)))
    list(steps_of(*first, num_steps=2))
    second = start(2, copy.deepcopy(first[1]))
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    assert list(map(deterministic, steps_of(*second, first_step=2))) == steps[2:]
    assert_same(weights(second[1]), weights(whole[1]), rtol=0, atol=0)


@pytest.mark.parametrize("number", [1, 3])
def test_a_wrong_number_of_micro_batches_is_an_error(number):
    accelerator, model, optimizer = start(2)
    batches = iter([cut(GLOBAL_BATCHES[0], number)])
    options = {"num_steps": 1, "max_grad_norm": 1.0, "seed": 0, "learning_rate": RATE}
    with pytest.raises(ValueError, match=rf"expected 2\b.*got {number}\b"):
        next(train_steps(accelerator, model, optimizer, batches, **options))


def test_a_step_measures_its_seconds_and_those_of_its_batch(monkeypatch):
    clock = iter([10.0, 10.5, 14.0])  # at the start, after the batch, at the end
    monkeypatch.setattr("rqa.training.loop.time.perf_counter", lambda: next(clock))
    step = next(steps_of(*start()))
    assert (step.seconds, step.batch_seconds) == (4.0, 0.5)


# Gradients that are not finite


def poisoned(factors):
    """Yield (skipped, non_finite_examples) of each step, and the weights and the optimizer's state after it.

    In each step the loss of one example, of rank 1 if there are two, is multiplied by one of `factors`.
    """
    accelerator, model, optimizer = start(2, Poisonable(decoder()))
    for step in steps_of(accelerator, model, optimizer, poison(factors), learning_rate=lambda step: 1e-2):
        moments = optimizer.state_dict()["state"].items()
        state = weights(model) | {f"{i} {k}": v.clone() for i, of in moments for k, v in of.items()}
        yield (step.skipped, step.non_finite_examples), state


ALL = tuple(range(100, 108))


@pytest.mark.parametrize(
    ("factor", "examples"),
    [
        (NAN, (105,)),
        (float("inf"), (105,)),
        (3e38, (105,)),  # overflows to inf
        (1e30, ALL),  # every loss is finite, the norm is not
    ],
)
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_names_its_examples(factor, examples):
    results, states = zip(*poisoned([1, factor, 1]), strict=True)
    assert results == (CALM, (True, examples), CALM)
    assert_same(states[1], states[0], rtol=0, atol=0)
    _, without = zip(*poisoned([1, 1]), strict=True)
    assert_same(states[2], without[1], rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_all(two):
    expected = list(poisoned([1, NAN, 1, 1e30]))
    assert [result for result, _ in expected] == [CALM, POISON, CALM, (True, ALL)]
    for rank in two:
        for (result, state), (expected_result, expected_state) in zip(rank["poisoned"], expected, strict=True):
            assert result == expected_result
            assert_same(state, expected_state, rtol=1e-4, atol=2e-6)


def test_three_skipped_steps_in_a_row_are_an_error():
    results = []
    with pytest.raises(FloatingPointError, match=r"step 9: .*\b3 in a row"):
        results.extend(result for result, _ in poisoned([NAN, NAN, 1, NAN, NAN, 1, NAN, NAN, NAN, 1]))
    assert results == [POISON, POISON, CALM] * 2 + [POISON] * 3


if __name__ == "__main__":
    world = int(os.environ["WORLD_SIZE"])
    layouts = {name: accumulation for name, (processes, accumulation) in LAYOUTS_OF_MORE.items() if processes == world}
    results = {name: run(accumulation) for name, accumulation in layouts.items()}
    results["poisoned"] = list(poisoned([1, NAN, 1, 1e30]))
    if world == 2:
        results |= {(kind, n): run_partly_trained(kind, n) for kind in PARTLY_TRAINED for n in (1, 2)}
    hand_over(results, Path(sys.argv[1]))
