"""The steps of a plain training loop, and batches to compare `train_steps` with it."""

from dataclasses import asdict
from functools import cache, partial
from itertools import islice

import pytest
import torch
from tiny_models import PAD, decoder, random_batch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from rqa.models.decoder import AnswerLM
from rqa.training.loop import train_steps
from rqa.training.schedule import learning_rate_at

ROWS = [(3, 1), (9, 25), (4, 2), (12, 3), (5, 14), (2, 1), (8, 30), (6, 5)]  # tokens of prompt and answer
SIZES = (8, 8, 5, 8, 1)  # examples in the global batch of each step; smaller ones leave slots empty
GLOBAL_BATCHES = [random_batch(ROWS[:size], seed=seed) for seed, size in enumerate(SIZES)]
EMPTY = {"input_ids": torch.tensor([[PAD]]), "labels": torch.tensor([[-100]])}
MAX_NORM = 0.5
NAN = float("nan")
RATE = partial(learning_rate_at, peak=1e-2, num_steps=len(SIZES), num_warmup_steps=2)


def cut(batch, accumulation, processes=1, rank=0):
    """Return the micro-batches of one rank: example i goes to slot i modulo all slots; a slot without rows is EMPTY."""
    micro_batches = []
    for slot in range(rank, processes * accumulation, processes):
        rows = {name: tensor[slot :: processes * accumulation] for name, tensor in batch.items()}
        micro_batches.append(rows if len(rows["labels"]) else EMPTY)
    return micro_batches


def steps_of(accelerator, model, optimizer, batches=GLOBAL_BATCHES, **options):
    layout = accelerator.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
    options = {"num_steps": len(batches), "max_grad_norm": MAX_NORM, "seed": 0, "learning_rate": RATE} | options
    micro_batches = (cut(batch, *layout) for batch in islice(batches, options.get("first_step", 0), None))
    return train_steps(accelerator, model, optimizer, micro_batches, **options)


def deterministic(step):
    return {name: value for name, value in asdict(step).items() if not name.endswith("seconds")}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@cache
def plain_loop():
    """Return the steps and weights of a loop over whole global batches: the loss is the mean over target tokens."""
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
    assert min(step["gradient_norm"] for step in steps) > 2 * MAX_NORM  # every step is clipped
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
        assert step["non_finite_examples"] == ()
        assert {k: v for k, v in step.items() if k != "non_finite_examples"} == pytest.approx(
            expected | counts, rel=2e-5 * loosely
        )
    assert_same(trained, plain_loop[1], rtol=1e-4 * loosely, atol=2e-6 * loosely)


class Poisonable(AnswerLM):
    """A decoder whose loss is multiplied by the factor of the batch."""

    def forward(self, input_ids, labels, factor=1.0):
        return super().forward(input_ids, labels) * factor


def poison(factors):
    """Return one batch for each factor: the loss of example 105 is multiplied by it."""
    named = GLOBAL_BATCHES[0] | {"examples": list(range(100, 108))}
    return [named | {"factor": torch.tensor([1.0] * 5 + [factor, 1.0, 1.0])} for factor in factors]


CALM, POISON = (False, ()), (True, (105,))
