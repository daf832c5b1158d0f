"""Readings to tensors.

B examples in a batch, L tokens in the longest of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rqa.data import DataError, Example
from rqa.errors import InputError
from rqa.passages import Reading
from rqa.prompts import PromptBuilder

IGNORED = -100  # the label of a position that is no target
KEPT = 4_000_000  # tokens of encoded rows, some 150 MB

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """The ids of one example: prompt and answer, and how many tokens of its passages were cut."""

    prompt: list[int]
    answer: list[int]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class ConcatenatedCollator:
    """Readings for a decoder: the passages stand one after the other in one prompt.

    Supervision is by position: the answer's ids are the labels, whatever they are, and everything else is ignored, so
    that a tokenizer whose padding token is its eos still learns to stop::

        input_ids  prompt prompt prompt answer answer eos   pad  pad
        labels      -100   -100   -100  answer answer eos  -100 -100
    """

    def __init__(self, builder: PromptBuilder, max_answer_length: int = 512) -> None:
        self.builder = builder
        self.max_answer_length = max_answer_length
        tokenizer = builder.tokenizer
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._kept: dict[Reading, Row] = {}  # the most recent last
        self._kept_tokens = 0

    def __call__(self, readings: Sequence[Reading]) -> Batch:
        """Return `input_ids` and `labels`, both (B, L), padded on the right."""
        return self.collate(self.encode(readings))

    def prompts(self, readings: Sequence[Reading]) -> Batch:
        """Return the same rows without their answers: `input_ids` and `attention_mask` (B, L), padded on the left."""
        return self.collate_prompts(self.encode(readings))

    def encode(self, readings: Iterable[Reading]) -> list[Row]:
        """Return the ids of each reading, unpadded.

        Rows are kept: those of the next epoch, or of the next evaluation, are the same where the readings are.
        """
        rows = []
        for reading in readings:
            if (row := self._kept.pop(reading, None)) is None:
                prompt = self.builder.prompt(reading)
                row = Row(prompt.ids, self.builder.answer(reading.answer), prompt.cut)
                self._kept_tokens += len(row)
            self._kept[reading] = row
            rows.append(row)
        while self._kept_tokens > KEPT:
            self._kept_tokens -= len(self._kept.pop(next(iter(self._kept))))
        return rows

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pad encoded rows, see `__call__`. No rows give one of a single padding position, with no target."""
        ids = [row.prompt + row.answer for row in rows] or [[self.pad_id]]
        labels = [[IGNORED] * len(row.prompt) + row.answer for row in rows] or [[IGNORED]]
        return {"input_ids": _padded(ids, self.pad_id), "labels": _padded(labels, IGNORED)}

    def collate_prompts(self, rows: Sequence[Row]) -> Batch:
        """Pad the prompts of encoded rows, see `prompts`."""
        ids = [row.prompt for row in rows]
        mask = [[1] * len(prompt) for prompt in ids]
        return {"input_ids": _padded(ids, self.pad_id, left=True), "attention_mask": _padded(mask, 0, left=True)}

    def check(self, examples: Iterable[Example], *, answers: bool = False) -> None:
        """Raise DataError unless every question fits its prompt and, with `answers`, every target its length."""
        error = DataError()
        for example in examples:
            try:
                self.builder.prompt(Reading.ranked(example, ()))
            except InputError as problem:
                error.add(example.where, str(problem))
            is_target = answers and not example.unanswerable
            length = len(self.builder.answer(example.answers[0])) if is_target else 0
            if length > self.max_answer_length:
                error.add(
                    example.where, f"the answer takes {length} tokens, --max_answer_length is {self.max_answer_length}"
                )
        if error.count:
            raise error


def _padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Return (B, L): `rows`, filled up with `value` on the right or the left."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, fill, strict=True)])
