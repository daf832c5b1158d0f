"""Training: batches in, one optimizer update out, one `Step` yielded for each.

There is no trainer and there are no callbacks: the body of the `for` is where to log, evaluate, save and stop.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim import Optimizer

from rqa.prompts.collators import IGNORE_INDEX

Batch = dict[str, Any]
MAX_SKIPPED_IN_A_ROW = 3


@dataclass(frozen=True)
class Step:
    """What one optimizer update did. Every count covers the global batch: all processes, all micro-batches."""

    number: int  # updates since training began, from 1
    loss: float  # nats per target token
    gradient_norm: float  # before clipping
    learning_rate: float
    target_tokens: int
    positions: int  # of tokens that were read: those of the attention mask, or without one all, padding included
    examples: int
    skipped: bool  # the gradient was not finite, and the weights stayed as they were
    suspects: tuple[int, ...]  # of a skipped update, the examples whose loss was not finite, or all if none was
    seconds: float  # for the whole update
    batch_seconds: float  # of these, waited for the batch


def train_steps(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    updates: Iterator[list[Batch]],
    *,
    learning_rate: Callable[[int], float],
    num_steps: int,
    max_grad_norm: float,
    seed: int,
    first_step: int = 0,
) -> Iterator[Step]:
    """Train until `num_steps` updates are done, yielding after each.

    `model` and `optimizer` come from `accelerator.prepare`; `model(**batch)` returns each example's negative
    log-likelihood, (B,), in nats. `updates` yields the micro-batches of one update on this process: as many as
    `accelerator.gradient_accumulation_steps`. A batch may name its "examples", a list of numbers, for `Step.suspects`;
    the model does not see them. Torch's random numbers (dropout) start anew in every update from
    (seed, update, process), whatever ran between two of them.

    An update whose gradient is not finite is skipped, on all processes; FloatingPointError after three in a row. In
    float16, whose scaler finds its scale by overflowing, only those count whose loss is not finite either.
    """
    skipped_in_a_row = 0
    for step in range(first_step, num_steps):
        start = time.perf_counter()
        micro_batches = next(updates)
        examples_of = [batch.get("examples", []) for batch in micro_batches]
        micro_batches = [_tensors_to(accelerator.device, batch) for batch in micro_batches]
        batch_seconds = time.perf_counter() - start
        if len(micro_batches) != accelerator.gradient_accumulation_steps:
            raise ValueError(
                f"an update of {len(micro_batches)} micro-batches, where the accelerator accumulates "
                f"{accelerator.gradient_accumulation_steps}: `accelerate launch` sets that number, unless it is given "
                "in a GradientAccumulationPlugin"
            )
        model.train()  # the body of the loop may have evaluated
        torch.manual_seed(((seed * 1_000_003 + step) * 4096 + accelerator.process_index) % 2**32)
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate

        # The target tokens of the whole global batch are counted first: every token then weighs the same, whichever
        # process and micro-batch it is in.
        counts = torch.zeros(3, device=accelerator.device, dtype=torch.long)
        for batch in micro_batches:
            is_target = batch["labels"] != IGNORE_INDEX
            is_read = batch.get("attention_mask")
            positions = torch.tensor(batch["input_ids"].numel(), device=accelerator.device)
            counts += torch.stack(
                [is_target.sum(), is_target.any(-1).sum(), positions if is_read is None else is_read.sum()]
            )
        tokens, examples, num_positions = accelerator.reduce(counts, "sum").tolist()

        losses = []
        for batch in micro_batches:
            with accelerator.accumulate(model):
                nll = model(**batch)  # (B,)
                # Accelerate takes the mean over processes and micro-batches; undo it, then divide by the tokens.
                accelerator.backward(nll.sum() * accelerator.num_processes * len(micro_batches) / tokens)
                losses.append(nll.detach())
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
                    skipped = not math.isfinite(norm)  # the norm is global: all processes decide alike
                if not (accelerator.sync_gradients and skipped) or accelerator.scaler is not None:
                    optimizer.step()  # a scaler of float16 skips by itself, and must see it to lower its scale
                optimizer.zero_grad()

        loss = accelerator.reduce(torch.cat(losses).sum() / tokens, "sum").item()
        is_fault = skipped and (accelerator.mixed_precision != "fp16" or not math.isfinite(loss))
        skipped_in_a_row = skipped_in_a_row + 1 if is_fault else 0
        yield Step(
            number=step + 1,
            loss=loss,
            gradient_norm=norm,
            learning_rate=rate,
            target_tokens=tokens,
            positions=num_positions,
            examples=examples,
            skipped=skipped,
            suspects=_suspects(examples_of, losses) if skipped else (),
            seconds=time.perf_counter() - start,
            batch_seconds=batch_seconds,
        )
        if skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"update {step + 1}: the gradient was not finite {skipped_in_a_row} times in a row"
            )


def _tensors_to(device: torch.device, batch: Batch) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)}


def _suspects(examples_of: Sequence[Sequence[int]], losses: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the examples of an update, on all processes, whose loss is not finite, or all if every loss is."""
    named = [
        (example, math.isfinite(loss))
        for examples, nll in zip(examples_of, losses, strict=True)
        for example, loss in zip(examples, nll.tolist(), strict=False)  # a slot without examples has one dummy row
    ]
    everywhere = gather_object(named)
    return tuple(sorted(example for example, finite in everywhere if not finite or all(ok for _, ok in everywhere)))
