"""Where the time of an answer goes: stages, each timed for the questions that wait for it together."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

Stage = Literal["retrieve", "embed", "search", "prompt", "prefill", "decode"]


@dataclass(frozen=True)
class Span:
    """One stretch of a stage: its seconds, the questions in it, and their tokens without padding."""

    stage: Stage
    seconds: float
    questions: int
    tokens: int = 0


_recorded: ContextVar[list[Span] | None] = ContextVar("recorded", default=None)


@contextmanager
def record_spans() -> Iterator[list[Span]]:
    """Collect the spans of what this process does inside."""
    spans: list[Span] = []
    before = _recorded.set(spans)
    try:
        yield spans
    finally:
        _recorded.reset(before)


@contextmanager
def gather_spans(gather: Callable[[list[Span]], list[Span]]) -> Iterator[None]:
    """Record the spans of all processes, which `gather` collects, for what each of them does inside."""
    if (spans := _recorded.get()) is None:
        yield
        return
    with record_spans() as mine:
        yield
    spans += gather(mine)


class Stopwatch:
    """Cuts the time since it was made into spans; where nobody records them it does nothing.

    At each cut the device ends what it was given, or its seconds would fall to whoever waits for it next.
    """

    def __init__(self) -> None:
        self._spans = _recorded.get()
        self.is_recorded = self._spans is not None
        self._start = self._now()

    def lap(self, stage: Stage, questions: int, tokens: int = 0) -> None:
        """End a span, of all the time since the one before."""
        if self._spans is not None:
            now = self._now()
            self._spans.append(Span(stage, now - self._start, questions, tokens))
            self._start = now

    def _now(self) -> float:
        if self._spans is not None and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter()


def summarize_spans(spans: Sequence[Span]) -> dict[str, dict[str, float]]:
    """Return what each stage took, in seconds, summed over processes.

    `p50` and `p95` are over questions, each of which waits as long as the span that it is in: they depend on `batch`,
    the most questions in a span. `tokens_per_second` counts real tokens: what is embedded or read in a prefill, and in
    decoding the tokens of an answer after its first, which ends the prefill.
    """
    found: dict[str, dict[str, float]] = {}
    for stage in dict.fromkeys(span.stage for span in spans):
        mine = [span for span in spans if span.stage == stage]
        seconds, questions = sum(span.seconds for span in mine), sum(span.questions for span in mine)
        waited = np.repeat([span.seconds for span in mine], [span.questions for span in mine])
        p50, p95 = np.quantile(waited, [0.5, 0.95]).tolist()
        found[stage] = {
            "seconds": seconds,
            "questions": questions,
            "batch": max(span.questions for span in mine),
            "seconds_per_question": seconds / questions,
            "p50": p50,
            "p95": p95,
        }
        if tokens := sum(span.tokens for span in mine):
            found[stage]["tokens_per_second"] = tokens / seconds
    return found


def environment(accelerator: Accelerator, batch_size: int) -> dict[str, Any]:
    """Return what the time of answers depends on beside model and data; `batch_size` is that of answers.

    What is retrieved is retrieved by one process, for queries in float32.
    """
    device = accelerator.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "precision": {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision),
        "precision_of_queries": "fp32",
        "batch_size": batch_size,
    }
