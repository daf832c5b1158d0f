"""Batches whose answers are streamed, each to a listener of its own that may leave before the end."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

Show = Callable[[str], object]


@dataclass(frozen=True)
class Listener:
    """The receiver of one answer: `show` takes its text piece by piece, and `has_left` ends its generation."""

    show: Show
    has_left: Callable[[], bool] = lambda: False
    max_new_tokens: int | None = None  # fewer than those of the generator


class BatchStreamer(BaseStreamer):
    """Passes the tokens of each row to its own streamer, up to the end of its answer."""

    def __init__(self, streamers: Sequence[BaseStreamer], stop_ids: Collection[int], limits: Sequence[int]) -> None:
        self.streamers, self.stop_ids = streamers, stop_ids
        self.num_left = list(limits)  # tokens of each row until its end

    def put(self, value: Tensor) -> None:
        """Take the next token of each row, (B,); the first call passes the prompts, (B, L)."""
        if value.ndim > 1:
            return
        for row, id in enumerate(value.tolist()):
            if self.num_left[row]:
                self.streamers[row].put(value[row : row + 1])
                self.num_left[row] = 0 if id in self.stop_ids else self.num_left[row] - 1
                if not self.num_left[row]:
                    self.streamers[row].end()

    def end(self) -> None:
        """End the rows that have no end of their own."""
        for streamer, num_left in zip(self.streamers, self.num_left, strict=True):
            if num_left:
                streamer.end()


class RowStopping(StoppingCriteria):
    """Ends the rows whose listener has left, and those that have all their tokens."""

    def __init__(self, listeners: Sequence[Listener], limits: Sequence[int]) -> None:
        self.listeners, self.limits, self.num_tokens = listeners, limits, 0

    def __call__(self, input_ids: Tensor, scores: Any, **_options: Any) -> Tensor:  # noqa: ARG002
        """Return (B,): True for each row that ends here."""
        self.num_tokens += 1
        left = [listener.has_left() for listener in self.listeners]
        if len(left) != len(input_ids):  # a model that generates row by row
            is_done = [all(left)] * len(input_ids)
        else:
            is_done = [gone or self.num_tokens >= limit for gone, limit in zip(left, self.limits, strict=True)]
        return torch.tensor(is_done, device=input_ids.device)
