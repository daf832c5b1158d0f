"""The training loop, without callbacks: the body of the caller's `for` logs, evaluates, saves and stops."""

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
from rqa.training.schedule import warn_without_change

Batch = dict[str, Any]
MAX_SKIPPED_IN_A_ROW = 3


@dataclass(frozen=True)
class Step:
    """The result of one optimizer step. Counts cover the global batch: all ranks, all micro-batches."""

    number: int  # from 1
    loss: float  # nats per target token
    gradient_norm: float  # before clipping
    learning_rate: float
    target_tokens: int
    positions: int  # tokens in the attention mask; without a mask all tokens, padding included
    examples: int
    skipped: bool  # the gradient was not finite, and the weights did not change
    non_finite_examples: tuple[
        int, ...
    ]  # of a skipped step: those with a loss that is not finite; all if every loss is finite
    seconds: float  # of the whole step
    batch_seconds: float  # the part of `seconds` that was spent on waiting for the batch


def train_steps(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[list[Batch]],
    *,
    learning_rate: Callable[[int], float],
    num_steps: int,
    max_grad_norm: float,
    seed: int,
    first_step: int = 0,
) -> Iterator[Step]:
    """Yield a `Step` after each optimizer step, until step `num_steps`.

    `model` and `optimizer` come from `accelerator.prepare`. `model(**batch)` returns the negative log-likelihood of
    each example in nats, (B,). `batches` yields `accelerator.gradient_accumulation_steps` micro-batches
    for each step on this rank. A batch may contain "examples", a list of numbers, for
    `Step.non_finite_examples`; the model does not get it. Torch's random numbers (dropout) are seeded in every step
    with (seed, step, rank), so that code between two steps has no effect on them.

    A step whose gradient is not finite is skipped on all ranks. Raises FloatingPointError after three in a row. In
    float16 only steps whose loss is not finite count, because its scaler overflows to adjust the scale. Logs a warning
    if the learning rates are too small to change answers.
    """
    warn_without_change(learning_rate, num_steps)
    skipped_in_a_row = 0
    for step in range(first_step, num_steps):
        start = time.perf_counter()
        micro_batches = next(batches)
        examples_of = [batch.get("examples", []) for batch in micro_batches]
        micro_batches = [_tensors_to(accelerator.device, batch) for batch in micro_batches]
        batch_seconds = time.perf_counter() - start
        if len(micro_batches) != accelerator.gradient_accumulation_steps:
            raise ValueError(
                f"micro-batches of a step: expected {accelerator.gradient_accumulation_steps} (the accelerator's), got "
                f"{len(micro_batches)}. `accelerate launch` sets the number unless a GradientAccumulationPlugin does."
            )
        model.train()  # the caller may have evaluated since the last step
        torch.manual_seed(((seed * 1_000_003 + step) * 4096 + accelerator.process_index) % 2**32)
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate

        # Count the global batch first: every target token has the same weight, on every rank and in every micro-batch.
        counts = torch.zeros(3, device=accelerator.device, dtype=torch.long)
        for batch in micro_batches:
            is_target = batch["labels"] != IGNORE_INDEX
            mask, ids = batch.get("attention_mask"), batch["input_ids"]
            positions = ids.new_tensor(ids.numel()) if mask is None else mask.sum()
            counts += torch.stack([is_target.sum(), is_target.any(-1).sum(), positions])
        tokens, examples, num_positions = accelerator.reduce(counts, "sum").tolist()
        divisor = max(1, tokens)  # the last batch of a contrastive epoch may have no target

        losses = []
        for batch in micro_batches:
            with accelerator.accumulate(model):
                nll = model(**batch)  # (B,)
                # Accelerate averages over ranks and micro-batches. Undo it, then divide by the number of tokens.
                accelerator.backward(nll.sum() * accelerator.num_processes * len(micro_batches) / divisor)
                losses.append(nll.detach())
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
                    skipped = not math.isfinite(norm)  # the norm is global: the same decision on all ranks
                if not (accelerator.sync_gradients and skipped) or accelerator.scaler is not None:
                    optimizer.step()  # the scaler of float16 skips by itself, and then lowers its scale
                optimizer.zero_grad()

        loss = accelerator.reduce(torch.cat(losses).sum() / divisor, "sum").item()
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
            non_finite_examples=_non_finite(examples_of, losses) if skipped else (),
            seconds=time.perf_counter() - start,
            batch_seconds=batch_seconds,
        )
        if skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"step {step + 1}: expected a finite gradient, got {skipped_in_a_row} in a row that are not finite. "
                "Lower --learning_rate, or remove the examples that the log names"
            )


def _tensors_to(device: torch.device, batch: Batch) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items() if isinstance(value, Tensor)}


def _non_finite(examples_of: Sequence[Sequence[int]], losses: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the examples of a step, on all ranks, whose loss is not finite; all examples if every loss is finite."""
    is_finite = [
        (example, math.isfinite(loss))
        for examples, nll in zip(examples_of, losses, strict=True)
        for example, loss in zip(examples, nll.tolist(), strict=False)  # a slot without examples has a row of padding
    ]
    everywhere = gather_object(is_finite)
    return tuple(sorted(example for example, finite in everywhere if not finite or all(ok for _, ok in everywhere)))
