"""Readings to tensors.

B examples in a batch, L tokens in the longest of them; for fusion-in-decoder N passages in the longest list of them, L
tokens in the longest passage, T in the longest answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rqa.data.jsonl import DataError
from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput
from rqa.data.records import Example
from rqa.errors import InputError
from rqa.prompts.decoder_prompt import PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder
from rqa.timing import Stopwatch

IGNORE_INDEX = -100  # the label of a position that is no target
CACHE_TOKEN_BUDGET = 4_000_000  # tokens of encoded rows, some 150 MB

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class EncodedExample:
    """The ids of one example: its prompt, or its prompts, and the answer; and how many tokens of passages were cut."""

    prompts: list[list[int]]  # for a decoder one, for fusion-in-decoder one for each passage
    answer: list[int]
    cut: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    def __len__(self) -> int:
        return self.num_prompt_tokens + len(self.answer)


class Collator(ABC):
    """Readings to batches, for training and for generation, by way of rows of ids without padding.

    Supervision is by position: the answer's ids are the labels, whatever they are, and everything else is ignored, so
    that a tokenizer whose padding token is its eos still learns to stop.

    `positions` are those of the model, `rqa.models.decoder.max_positions`; None where there is no last one.
    """

    def __init__(
        self,
        builder: PromptBuilder | PassagePromptBuilder,
        max_answer_length: int,
        positions: int | None,
        positions_of_prompt: int,
    ) -> None:
        self.builder = builder
        self.max_answer_length = max_answer_length
        self.positions = positions
        self.positions_of_prompt = positions_of_prompt  # at most, before those of the answer
        pad_id = builder.tokenizer.pad_token_id
        self.pad_id: int = builder.stop_ids[0] if pad_id is None else pad_id
        self._kept: dict[GeneratorInput, EncodedExample] = {}  # the most recent last
        self._kept_tokens = 0

    @abstractmethod
    def collate(self, rows: Sequence[EncodedExample]) -> Batch:
        """Pad encoded rows for training. No rows give one of a single padding position, with no target."""

    @abstractmethod
    def collate_prompts(self, rows: Sequence[EncodedExample]) -> Batch:
        """Pad encoded rows for generation, without their answers."""

    @abstractmethod
    def _prompts(self, reading: GeneratorInput) -> tuple[list[list[int]], int]:
        """Return the prompts of a reading, and how many tokens of its passages were cut."""

    def __call__(self, readings: Sequence[GeneratorInput]) -> Batch:
        """Return a batch for training."""
        return self.collate(self.encode(readings))

    def prompts(self, readings: Sequence[GeneratorInput]) -> Batch:
        """Return a batch for generation."""
        return self.collate_prompts(self.encode(readings))

    def encode(self, readings: Iterable[GeneratorInput]) -> list[EncodedExample]:
        """Return the ids of each reading, unpadded.

        Rows are kept: those of the next epoch, or of the next evaluation, are the same where the readings are.
        """
        rows, watch = [], Stopwatch()
        for reading in readings:
            row = self._kept.pop(reading, None)
            if row is None or watch.is_recorded:  # what is timed is made, not found
                self._kept_tokens -= 0 if row is None else len(row)
                prompts, cut = self._prompts(reading)
                row = EncodedExample(prompts, self.builder.answer(reading.answer), cut)
                self._kept_tokens += len(row)
            self._kept[reading] = row
            rows.append(row)
            watch.lap("prompt", 1, row.num_prompt_tokens)
        while self._kept_tokens > CACHE_TOKEN_BUDGET:
            self._kept_tokens -= len(self._kept.pop(next(iter(self._kept))))
        return rows

    def num_read(self, reading: GeneratorInput, row: EncodedExample) -> int:
        """Return how many of a ranked reading's passages are in its `row`: if there is no room, the last are not."""
        num_read = len(reading.passages)
        while row.cut and num_read:
            prompts, _ = self._prompts(GeneratorInput.from_ranked(reading.example, reading.passages[: num_read - 1]))
            if prompts != row.prompts:
                break
            num_read -= 1
        return num_read

    def check(
        self,
        examples: Iterable[Example],
        *,
        answers: bool = False,
        gold_dropout: float = 0.0,
        refusal_answer: str = REFUSAL_ANSWER,
    ) -> None:
        """Raise DataError unless every question fits its prompt, and every target the positions of the model.

        Targets are the first answers and, of unanswerable examples and with `gold_dropout`, the `refusal_answer`. With
        `answers` they are trained on, and have at most `max_answer_length` tokens; else it is their loss that is asked.
        """
        error = DataError()
        refused = self._excess(refusal_answer, is_trained_on=answers)
        if gold_dropout > 0 and refused:
            error.add("--refusal_answer", f"it {refused}")
        for example in examples:
            try:
                self._prompts(GeneratorInput.from_ranked(example, ()))
            except InputError as problem:
                error.add(example.where, str(problem))
            if example.unanswerable:
                who, excess = "it is unanswerable, and its refusal", refused
            else:
                who = "the answer"
                excess = self._excess(example.answers[0], is_trained_on=answers) if example.answers else ""
            if excess:
                error.add(example.where, f"{who} {excess}")
        if error.count:
            raise error

    def _excess(self, answer: str, *, is_trained_on: bool) -> str:
        """Return in which way an answer is too long, after its name; nothing where it is not."""
        length, prompt = len(self.builder.answer(answer)), self.positions_of_prompt
        if is_trained_on and length > self.max_answer_length:
            return f"takes {length} tokens, --max_answer_length is {self.max_answer_length}"
        if self.positions is not None and prompt + length > self.positions:
            beside = f"beside --max_prompt_length {prompt} " if prompt else ""
            return f"takes {length} tokens, {beside}the model has positions for {self.positions - prompt}"
        return ""


class ConcatenatedCollator(Collator):
    """Readings for a decoder: the passages stand one after the other in one prompt.

    For training `input_ids` and `labels`, both (B, L), padded on the right::

        input_ids  prompt prompt prompt answer answer eos   pad  pad
        labels      -100   -100   -100  answer answer eos  -100 -100

    for generation `input_ids` and `attention_mask` (B, L), padded on the left.
    """

    builder: PromptBuilder

    def __init__(self, builder: PromptBuilder, max_answer_length: int = 512, positions: int | None = None) -> None:
        super().__init__(builder, max_answer_length, positions, builder.max_prompt_length)

    def collate(self, rows: Sequence[EncodedExample]) -> Batch:
        """Return `input_ids` and `labels`, see the class."""
        ids = [[*row.prompts[0], *row.answer] for row in rows] or [[self.pad_id]]
        labels = [[IGNORE_INDEX] * len(row.prompts[0]) + row.answer for row in rows] or [[IGNORE_INDEX]]
        return {"input_ids": _padded(ids, self.pad_id), "labels": _padded(labels, IGNORE_INDEX)}

    def collate_prompts(self, rows: Sequence[EncodedExample]) -> Batch:
        """Return `input_ids` and `attention_mask`, see the class."""
        ids = [row.prompts[0] for row in rows]
        mask = [[1] * len(prompt) for prompt in ids]
        return {"input_ids": _padded(ids, self.pad_id, left=True), "attention_mask": _padded(mask, 0, left=True)}

    def _prompts(self, reading: GeneratorInput) -> tuple[list[list[int]], int]:
        ids, cut = self.builder.prompt(reading)
        return [ids], cut


class ParallelCollator(Collator):
    """Readings for fusion-in-decoder: each passage is a text of its own.

    For training `input_ids` and `attention_mask`, both (B, N, L), and `labels` (B, T), padded on the right; for
    generation the same without the labels. An example with fewer passages than another has masks of zeros in their
    place, never copies. Two examples, the second with one passage and a longer answer::

        attention_mask  [[1 1 1] [1 1 0]]    labels  answer eos -100
                        [[1 1 0] [0 0 0]]            answer answer eos
    """

    builder: PassagePromptBuilder

    def __init__(
        self, builder: PassagePromptBuilder, max_answer_length: int = 512, positions: int | None = None
    ) -> None:
        super().__init__(builder, max_answer_length, positions, 0)

    def collate(self, rows: Sequence[EncodedExample]) -> Batch:
        """Return `input_ids`, `attention_mask` and `labels`, see the class."""
        if not rows:
            return self.collate([EncodedExample([[self.pad_id]], [IGNORE_INDEX])])
        return {**self.collate_prompts(rows), "labels": _padded([row.answer for row in rows], IGNORE_INDEX)}

    def collate_prompts(self, rows: Sequence[EncodedExample]) -> Batch:
        """Return `input_ids` and `attention_mask`, see the class."""
        most = max(len(row.prompts) for row in rows)
        texts = [text for row in rows for text in row.prompts + [[]] * (most - len(row.prompts))]
        ids, mask = _padded(texts, self.pad_id), _padded([[1] * len(text) for text in texts], 0)
        return {
            name: tensor.view(len(rows), most, -1) for name, tensor in (("input_ids", ids), ("attention_mask", mask))
        }

    def _prompts(self, reading: GeneratorInput) -> tuple[list[list[int]], int]:
        return self.builder.prompt(reading)


def _padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Return (B, L): `rows`, filled up with `value` on the right or the left."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, fill, strict=True)])
