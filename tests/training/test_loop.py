"""loop: a global batch gives the same update in every layout, and it is the update of a plain loop."""

import copy
import os
import sys
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from tiny_models import PAD, decoder, random_batch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from world import hand_over, results_of

from rqa.models.decoder import AnswerLM
from rqa.training.loop import train_steps
from rqa.training.optim import make_optimizer
from rqa.training.schedule import learning_rate_at

ROWS = [(3, 1), (9, 25), (4, 2), (12, 3), (5, 14), (2, 1), (8, 30), (6, 5)]  # tokens of prompt and answer
SIZES = (8, 8, 5, 8, 1)  # examples of each update's global batch; the smaller leave slots empty
GLOBAL_BATCHES = [random_batch(ROWS[:size], seed=seed) for seed, size in enumerate(SIZES)]
LAYOUTS = {"1 x (8 x 1)": 8, "1 x (4 x 2)": 4, "1 x (2 x 4)": 2, "1 x 8": 1}  # and their accumulation
LAYOUTS_OF_MORE = {  # and their processes and accumulation; three have odd micro-batches
    "2 x (1 x 4)": (2, 1),
    "2 x (2 x 2)": (2, 2),
    "2 x (4 x 1)": (2, 4),
    "3 x (1 x 3)": (3, 1),
    "3 x (2 x 2)": (3, 2),
}
EMPTY = {"input_ids": torch.tensor([[PAD]]), "labels": torch.tensor([[-100]])}
MAX_NORM = 0.5
NAN = float("nan")
RATE = partial(learning_rate_at, peak=1e-2, num_steps=len(SIZES), num_warmup_steps=2)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


def cut(batch, accumulation, processes=1, rank=0):
    """The micro-batches of one process, its examples dealt like cards; an empty one where they do not suffice."""
    micro_batches = []
    for slot in range(rank, processes * accumulation, processes):
        rows = {name: tensor[slot :: processes * accumulation] for name, tensor in batch.items()}
        micro_batches.append(rows if len(rows["labels"]) else EMPTY)
    return micro_batches


def start(accumulation=1, model=None, *, dropout=0.0):
    """A prepared model and optimizer."""
    plugin = GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False, adjust_scheduler=False)
    accelerator = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_plugin=plugin)
    model = AnswerLM(decoder(dropout=dropout)) if model is None else model
    return accelerator, *accelerator.prepare(model, make_optimizer(model, weight_decay=0.1))


def steps_of(accelerator, model, optimizer, batches=GLOBAL_BATCHES, **options):
    layout = accelerator.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
    options = {"num_steps": len(batches), "max_grad_norm": MAX_NORM, "seed": 0, "learning_rate": RATE} | options
    updates = (cut(batch, *layout) for batch in islice(batches, options.get("first_step", 0), None))
    return train_steps(accelerator, model, optimizer, updates, **options)


def weights(model):
    return {name.removeprefix("module."): tensor.clone() for name, tensor in model.state_dict().items()}


def deterministic(step):
    return {name: value for name, value in asdict(step).items() if not name.endswith("seconds")}


def run(*args, **options):
    """What a run leaves: its steps but for the seconds, the seed that torch had in each, and the weights."""
    accelerator, model, optimizer = start(*args)
    steps = [(deterministic(step), torch.initial_seed()) for step in steps_of(accelerator, model, optimizer, **options)]
    return *zip(*steps, strict=True), weights(model)


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


# The update


@pytest.fixture(scope="module")
def plain_loop():
    """What a textbook does with the whole batch: the mean over its target tokens."""
    lm = decoder().train()
    matrices, vectors = ([p for p in lm.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], weight_decay=0.1)
    steps = []
    for number, batch in enumerate(GLOBAL_BATCHES, 1):
        logits = lm(batch["input_ids"]).logits
        loss = cross_entropy(logits[:, :-1].mT, batch["labels"][:, 1:], ignore_index=-100)
        loss.backward()
        norm = clip_grad_norm_(lm.parameters(), MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = RATE(number - 1)
        optimizer.step()
        optimizer.zero_grad()
        steps.append(
            {
                "number": number,
                "loss": loss.item(),
                "gradient_norm": norm.item(),
                "skipped": False,
            }
        )
    assert min(step["gradient_norm"] for step in steps) > 2 * MAX_NORM  # every update is clipped
    return steps, {f"model.{name}": tensor for name, tensor in lm.state_dict().items()}


def assert_is_plain_loop(found, plain_loop, slots, loosely=1):
    steps, _, trained = found
    for i, (step, expected, batch) in enumerate(zip(steps, plain_loop[0], GLOBAL_BATCHES, strict=True)):
        counts = {
            "learning_rate": RATE(i),
            "target_tokens": sum(answer for _, answer in ROWS[: SIZES[i]]),
            "examples": SIZES[i],
            "positions": batch["input_ids"].numel() + max(0, slots - SIZES[i]),
        }
        assert step["suspects"] == ()
        assert {k: v for k, v in step.items() if k != "suspects"} == pytest.approx(
            expected | counts, rel=2e-5 * loosely
        )
    assert_same(trained, plain_loop[1], rtol=1e-4 * loosely, atol=2e-6 * loosely)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_process_does_what_a_plain_loop_does(plain_loop, layout):
    assert_is_plain_loop(run(LAYOUTS[layout]), plain_loop, LAYOUTS[layout])


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What each process did, by the number of processes."""
    return {number: results_of(__file__, tmp_path_factory.mktemp("ranks"), processes=number) for number in (2, 3)}


@pytest.mark.parametrize("layout", LAYOUTS_OF_MORE)
def test_more_processes_do_what_a_plain_loop_does(plain_loop, launched, layout):
    processes, accumulation = LAYOUTS_OF_MORE[layout]
    for rank in launched[processes]:
        assert_is_plain_loop(rank[layout], plain_loop, processes * accumulation)
        assert_same(rank[layout][2], launched[processes][0][layout][2], rtol=0, atol=0)


@pytest.fixture
def two(launched):
    return launched[2]


def test_dropout_differs_between_updates_processes_and_seeds(two):
    one_process, other_seed = run()[1], run(seed=1)[1]
    assert two[0]["2 x (1 x 4)"][1] == two[0]["2 x (2 x 2)"][1] == one_process
    seeds = [*one_process, *two[1]["2 x (1 x 4)"][1], *other_seed]
    assert len(set(seeds)) == 3 * len(SIZES)


def test_what_runs_between_two_updates_changes_nothing():
    calm, disturbed, steps = start(2, dropout=0.5), start(2, dropout=0.5), []
    for step in steps_of(*disturbed):
        steps.append(deterministic(step))
        disturbed[1].eval()(**GLOBAL_BATCHES[0])
        torch.rand(step.number)
    assert steps == list(map(deterministic, steps_of(*calm)))
    assert_same(weights(disturbed[1]), weights(calm[1]), rtol=0, atol=0)
    assert steps != run(2)[0]  # there is dropout


def test_a_later_start_goes_on_as_if_it_had_never_stopped():
    whole, first = start(2, dropout=0.5), start(2, dropout=0.5)
    steps = list(map(deterministic, steps_of(*whole)))
    list(steps_of(*first, num_steps=2))
    second = start(2, copy.deepcopy(first[1]))
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    assert list(map(deterministic, steps_of(*second, first_step=2))) == steps[2:]
    assert_same(weights(second[1]), weights(whole[1]), rtol=0, atol=0)


@pytest.mark.parametrize("given", [1, 3])
def test_an_update_of_another_number_of_micro_batches_is_refused(given):
    accelerator, model, optimizer = start(2)
    updates = iter([cut(GLOBAL_BATCHES[0], given)])
    options = {"num_steps": 1, "max_grad_norm": 1.0, "seed": 0, "learning_rate": RATE}
    with pytest.raises(ValueError, match=f"an update of {given} micro-batches, where the accelerator accumulates 2:"):
        next(train_steps(accelerator, model, optimizer, updates, **options))


def test_a_step_counts_the_seconds_of_its_whole_update_and_of_its_batch(monkeypatch):
    clock = iter([10.0, 10.5, 14.0])  # at the start, after the batch, at the end
    monkeypatch.setattr("rqa.training.loop.time.perf_counter", lambda: next(clock))
    step = next(steps_of(*start()))
    assert (step.seconds, step.batch_seconds) == (4.0, 0.5)


# Gradients that are not finite


class Poisonable(AnswerLM):
    """Multiplies the loss by what the batch says."""

    def forward(self, input_ids, labels, factor=1.0):
        return super().forward(input_ids, labels) * factor


def poison(factors):
    """Batches in which one row is multiplied by one of `factors`, each with the numbers of its examples."""
    named = GLOBAL_BATCHES[0] | {"examples": list(range(100, 108))}
    return [named | {"factor": torch.tensor([1.0] * 5 + [factor, 1.0, 1.0])} for factor in factors]


def poisoned(factors):
    """Yield whether each update was skipped and its suspects, and the weights and the optimizer's state after it.

    Each update multiplies one row, of process 1 if there are two, by one of `factors`.
    """
    accelerator, model, optimizer = start(2, Poisonable(decoder()))
    for step in steps_of(accelerator, model, optimizer, poison(factors), learning_rate=lambda step: 1e-2):
        moments = optimizer.state_dict()["state"].items()
        state = weights(model) | {f"{i} {k}": v.clone() for i, of in moments for k, v in of.items()}
        yield (step.skipped, step.suspects), state


ALL = tuple(range(100, 108))
CALM, POISON = (False, ()), (True, (105,))


@pytest.mark.parametrize(
    ("factor", "suspects"),
    [
        (NAN, (105,)),
        (float("inf"), (105,)),
        (3e38, (105,)),  # overflows to inf, which is no NaN
        (1e30, ALL),  # every loss is finite, the norm is not: nobody can be told from the others
    ],
)
def test_an_update_whose_gradient_is_not_finite_is_skipped_and_names_its_examples(factor, suspects):
    found, states = zip(*poisoned([1, factor, 1]), strict=True)
    assert found == (CALM, (True, suspects), CALM)
    assert_same(states[1], states[0], rtol=0, atol=0)
    _, without = zip(*poisoned([1, 1]), strict=True)
    assert_same(states[2], without[1], rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_on_one_process_is_skipped_on_all(two):
    expected = list(poisoned([1, NAN, 1, 1e30]))
    assert [found for found, _ in expected] == [CALM, POISON, CALM, (True, ALL)]
    for rank in two:
        for (found, state), (expected_found, expected_state) in zip(rank["poisoned"], expected, strict=True):
            assert found == expected_found
            assert_same(state, expected_state, rtol=1e-4, atol=2e-6)


def test_three_in_a_row_are_an_error_and_fewer_are_not():
    found = []
    with pytest.raises(FloatingPointError, match="update 9: the gradient was not finite 3 times in a row"):
        found.extend(found for found, _ in poisoned([NAN, NAN, 1, NAN, NAN, 1, NAN, NAN, NAN, 1]))
    assert found == [POISON, POISON, CALM] * 2 + [POISON] * 3


# Optimizer


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("adafactor", torch.optim.Adafactor)])
def test_matrices_decay_biases_and_norms_do_not_and_the_frozen_are_left_out(name, kind):
    model = decoder("gpt2")
    model.transformer.wte.requires_grad_(False)
    model.transformer.ln_f.requires_grad_(False)
    optimizer = make_optimizer(model, name, weight_decay=0.1)
    assert type(optimizer) is kind
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        expected = None if "wte" in key or "ln_f" in key else 0.0 if key.endswith("bias") or ".ln_" in key else 0.1
        assert decays.pop(id(parameter), None) == expected, key
    assert not decays


if __name__ == "__main__":
    world = int(os.environ["WORLD_SIZE"])
    layouts = {name: accumulation for name, (processes, accumulation) in LAYOUTS_OF_MORE.items() if processes == world}
    results = {name: run(accumulation) for name, accumulation in layouts.items()}
    results["poisoned"] = list(poisoned([1, NAN, 1, 1e30]))
    hand_over(results, Path(sys.argv[1]))
