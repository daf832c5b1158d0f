"""The time of each stage of an answer: spans of time, each for the questions that are processed together."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

Stage = Literal["retrieve", "embed", "search", "bm25", "fuse", "rerank", "prompt", "prefill", "decode"]


@dataclass(frozen=True)
class Span:
    """One span of a stage: its seconds, its questions, and their tokens without padding."""

    stage: Stage
    seconds: float
    questions: int
    tokens: int = 0


_recorded: ContextVar[list[Span] | None] = ContextVar("recorded", default=None)


@contextmanager
def record_spans() -> Iterator[list[Span]]:
    """Collect the spans of this process inside the block."""
    spans: list[Span] = []
    before = _recorded.set(spans)
    try:
        yield spans
    finally:
        _recorded.reset(before)


@contextmanager
def gather_spans(gather: Callable[[list[Span]], list[Span]]) -> Iterator[None]:
    """If spans are recorded, replace those inside the block by the spans of all processes, which `gather` collects."""
    if (spans := _recorded.get()) is None:
        yield
        return
    with record_spans() as own_spans:
        yield
    spans += gather(own_spans)


class Stopwatch:
    """Divides the time since its creation into spans; it has no effect if no spans are recorded.

    The device is synchronized at each lap, so that time is attributed to the stage that used it.
    """

    def __init__(self) -> None:
        self._spans = _recorded.get()
        self.is_recorded = self._spans is not None
        self._start = self._now()

    def lap(self, stage: Stage, questions: int, tokens: int = 0) -> None:
        """End a span: the time since the last lap."""
        if self._spans is not None:
            now = self._now()
            self._spans.append(Span(stage, now - self._start, questions, tokens))
            self._start = now

    def _now(self) -> float:
        if self._spans is not None and torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return time.perf_counter()


def summarize_spans(spans: Sequence[Span]) -> dict[str, dict[str, float]]:
    """Return the times of each stage, in seconds, summed over processes.

    `p50` and `p95` are over questions. Latency is per span: they depend on `batch`, the most questions in a span.
    `tokens_per_second` counts real tokens: those embedded or in a prompt; in decoding those after the first token of an
    answer, which ends the prefill.
    """
    stages: dict[str, dict[str, float]] = {}
    for stage in dict.fromkeys(span.stage for span in spans):
        of_stage = [span for span in spans if span.stage == stage]
        seconds, questions = sum(span.seconds for span in of_stage), sum(span.questions for span in of_stage)
        latencies = np.repeat([span.seconds for span in of_stage], [span.questions for span in of_stage])
        p50, p95 = np.quantile(latencies, [0.5, 0.95]).tolist()
        stages[stage] = {
            "seconds": seconds,
            "questions": questions,
            "batch": max(span.questions for span in of_stage),
            "seconds_per_question": seconds / questions,
            "p50": p50,
            "p95": p95,
        }
        if tokens := sum(span.tokens for span in of_stage):
            stages[stage]["tokens_per_second"] = tokens / seconds
    return stages


def environment(accelerator: Accelerator, batch_size: int) -> dict[str, Any]:
    """Return the conditions of time measurements other than model and data; `batch_size` is that of answers.

    The search runs on one process; queries are embedded in float32, by all processes if they are many.
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
