"""Generator inputs to token ids, and token ids to padded batches.

B examples in a batch, L tokens in the longest. Fusion-in-decoder: N passages in the longest list, L tokens in the
longest passage, T tokens in the longest answer.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from rqa.data.citations import (
    citation_problems,
    cited_numbers,
    new_numbers,
    renumber,
    with_number,
    without_cited_history,
)
from rqa.data.file_report import DataError
from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput
from rqa.data.records import Example
from rqa.errors import InputError
from rqa.prompts.answer_decoder import unknown_control_tokens
from rqa.prompts.decoder_prompt import Prompt, PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder
from rqa.terminal import Progress, track
from rqa.timing import Stopwatch

log = logging.getLogger(__name__)

IGNORE_INDEX = -100  # the label of a position without a target
CACHE_TOKEN_BUDGET = 4_000_000  # tokens of cached examples, about 150 MB

_LOCK = Lock()  # an evaluation encodes while a thread encodes the next rows of training: cache and tokenizer are shared

Batch = dict[str, Tensor]
Builder = PromptBuilder | PassagePromptBuilder


@dataclass(frozen=True)
class EncodedExample:
    """The token ids of one example, without padding. `len` is the number of tokens of prompts and answer."""

    prompts: list[list[int]]  # one for a decoder, one per passage for fusion-in-decoder
    answer: list[int]
    truncated: int = 0  # passage tokens that did not fit
    num_passages: int = 0  # passages that fitted, at least in part

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    def __len__(self) -> int:
        return self.num_prompt_tokens + len(self.answer)


class Collator(ABC):
    """Encodes generator inputs and pads them to batches, for training and for generation.

    Supervision is by position: the answer's ids are the labels, all other labels are IGNORE_INDEX. A tokenizer whose
    padding token is its eos still teaches the model to stop.

    `max_positions` is that of the model, see `rqa.models.decoder.max_positions`; None if positions are unlimited.
    `pad_id` is by default that of the tokenizer.

    With `citations` the numbers of an answer's citations become those of the passages in the prompt, see
    `rqa.data.citations`, and the assistant's turns in the history have no citations.
    """

    def __init__(
        self,
        builder: Builder,
        max_answer_length: int = 512,
        max_positions: int | None = None,
        pad_id: int | None = None,
        *,
        citations: bool = False,
    ) -> None:
        self.builder = builder
        self.citations = citations
        self.max_answer_length = max_answer_length
        self.max_positions = max_positions
        pad_id = builder.tokenizer.pad_token_id if pad_id is None else pad_id
        self.pad_id: int = builder.stop_ids[0] if pad_id is None else pad_id
        self._cache: dict[GeneratorInput, EncodedExample] = {}  # least recently used first
        self._cached_tokens = 0
        self._longest_numbers: dict[int, int] = {}  # by the number of passages

    @abstractmethod
    def collate(self, rows: Sequence[EncodedExample]) -> Batch:
        """Pad encoded examples for training. Without rows: one example of one padding position, without a target."""

    @abstractmethod
    def collate_prompts(self, rows: Sequence[EncodedExample]) -> Batch:
        """Pad encoded examples for generation, without their answers."""

    def __call__(self, inputs: Sequence[GeneratorInput]) -> Batch:
        """Return a batch for training."""
        return self.collate(self.encode(inputs))

    def encode(self, inputs: Iterable[GeneratorInput]) -> list[EncodedExample]:
        """Return the token ids of each input, without padding, from a cache: epochs often read the same inputs.

        If spans are recorded, every input is encoded again, so that the time is measured.
        """
        rows = []
        with Progress("encoding", unit="examples") as progress:
            watch = Stopwatch()
            for item in inputs:
                with _LOCK:
                    row = self._cache.pop(item, None)
                    if row is None or watch.is_recorded:
                        self._cached_tokens -= 0 if row is None else len(row)
                        row = self._encode(item)
                        self._cached_tokens += len(row)
                    self._cache[item] = row
                rows.append(row)
                watch.lap("prompt", 1, row.num_prompt_tokens)
                progress.advance()
        with _LOCK:
            while self._cached_tokens > CACHE_TOKEN_BUDGET:
                self._cached_tokens -= len(self._cache.pop(next(iter(self._cache))))
        return rows

    def check(
        self,
        examples: Iterable[Example],
        *,
        answers: bool = False,
        num_passages: int = 0,
        gold_dropout: float = 0.0,
        refusal_answer: str = REFUSAL_ANSWER,
    ) -> None:
        """Raise DataError unless every question fits its prompt and every target fits the model's positions.

        Targets are the first answers. Unanswerable examples, and all with `gold_dropout`, have the `refusal_answer`.
        With `answers` they are training targets of at most `max_answer_length` tokens, and strings in the prefixes
        and separators that look like control tokens are a warning.

        With `citations` answers may cite only gold passages, and the refusal none. A target must fit with the longest
        number of `num_passages`, the most in a prompt, or of the gold passages if these are more.
        """
        if answers and (unknown := unknown_control_tokens(self.builder)):
            log.warning(
                "prefixes and separators: %s look like control tokens, and are ordinary text for %s",
                ", ".join(unknown),
                self.builder.tokenizer.name_or_path,
            )
        error = DataError()
        refusal_problem = self._length_problem(refusal_answer, is_target=answers)
        if gold_dropout > 0 and refusal_problem:
            error.add("--refusal_answer", f"it {refusal_problem}")
        if self.citations and cited_numbers(refusal_answer):
            error.add("--refusal_answer", "--citations true: expected no citations, got some")
        for example in track(examples, "checking lengths", unit="examples"):
            try:
                self.builder.check_prompt(self._asked(example))
            except InputError as problem:
                error.add(example.where, str(problem))
            if answers and not (example.answers or example.unanswerable):
                error.add(example.where, 'field "answers": expected an answer to train on, got an empty list')
            if example.unanswerable:
                subject, problem_text = "it is unanswerable, and its refusal", refusal_problem
            else:
                subject, num_gold = "the answer", len(example.gold_passages)
                for problem_text in citation_problems(example.answers, num_gold) if self.citations else ():
                    error.add(example.where, problem_text)
                longest = self._longest(example.answers[0], max(num_passages, num_gold)) if example.answers else ""
                problem_text = self._length_problem(longest, is_target=answers) if example.answers else ""
            if problem_text:
                error.add(example.where, f"{subject} {problem_text}")
        if error.count:
            raise error

    def _encode(self, item: GeneratorInput) -> EncodedExample:
        prompt = self.builder.prompt(replace(item, example=self._asked(item.example)))
        prompts = [prompt.ids] if isinstance(prompt, Prompt) else prompt.ids
        answer = item.answer
        if self.citations:
            answer = renumber(answer, new_numbers(item.citable_ids, prompt.numbers))
        return EncodedExample(prompts, self.builder.answer(answer), prompt.truncated, prompt.num_passages)

    def _asked(self, example: Example) -> Example:
        return without_cited_history(example) if self.citations else example

    def _longest(self, answer: str, num_passages: int) -> str:
        """Return the answer with each citation as long as any to one of `num_passages`."""
        if not (self.citations and cited_numbers(answer)):
            return answer
        return with_number(answer, self._longest_number(num_passages))

    def _longest_number(self, num_passages: int) -> int:
        """Return the number up to `num_passages` that takes the most tokens."""
        if num_passages not in self._longest_numbers:
            numbers = range(1, num_passages + 1)
            longest = max(numbers, key=lambda number: len(self.builder.answer(f"[{number}]")), default=1)
            self._longest_numbers[num_passages] = longest
        return self._longest_numbers[num_passages]

    def _length_problem(self, answer: str, *, is_target: bool) -> str:
        """Return the predicate of a message about an answer that is too long; "" if it fits."""
        prompt = self.builder.max_prompt_length if isinstance(self.builder, PromptBuilder) else 0
        room = math.inf if self.max_positions is None else self.max_positions - prompt
        longest = min(room, self.max_answer_length) if is_target else room
        if self.builder.max_answer_tokens(answer) <= longest or (length := len(self.builder.answer(answer))) <= longest:
            return ""
        if is_target and length > self.max_answer_length:
            return f"takes {length} tokens, --max_answer_length is {self.max_answer_length}"
        beside = f"beside --max_prompt_length {prompt} " if prompt else ""
        return f"takes {length} tokens, {beside}the model has positions for {room}"


class ConcatenatedCollator(Collator):
    """Batches for a decoder: all passages are in one prompt.

    For training `input_ids` and `labels`, both (B, L), padded on the right:

        input_ids  prompt prompt prompt answer answer eos   pad  pad
        labels      -100   -100   -100  answer answer eos  -100 -100

    For generation `input_ids` and `attention_mask`, both (B, L), padded on the left.
    """

    def collate(self, rows: Sequence[EncodedExample]) -> Batch:
        """Return `input_ids` and `labels`."""
        ids = [[*row.prompts[0], *row.answer] for row in rows] or [[self.pad_id]]
        labels = [[IGNORE_INDEX] * len(row.prompts[0]) + row.answer for row in rows] or [[IGNORE_INDEX]]
        return {"input_ids": _padded(ids, self.pad_id), "labels": _padded(labels, IGNORE_INDEX)}

    def collate_prompts(self, rows: Sequence[EncodedExample]) -> Batch:
        """Return `input_ids` and `attention_mask`."""
        ids = [row.prompts[0] for row in rows]
        mask = [[1] * len(prompt) for prompt in ids]
        return {"input_ids": _padded(ids, self.pad_id, left=True), "attention_mask": _padded(mask, 0, left=True)}


class ParallelCollator(Collator):
    """Batches for fusion-in-decoder: each passage has a prompt of its own.

    For training `input_ids` and `attention_mask`, both (B, N, L), and `labels` (B, T), padded on the right; for
    generation the same without labels. Missing passages have an attention mask of zeros. Two examples, the second with
    one passage and a longer answer:

        attention_mask  [[1 1 1] [1 1 0]]    labels  answer eos -100
                        [[1 1 0] [0 0 0]]            answer answer eos
    """

    def collate(self, rows: Sequence[EncodedExample]) -> Batch:
        """Return `input_ids`, `attention_mask` and `labels`."""
        rows = rows or [EncodedExample([[self.pad_id]], [IGNORE_INDEX])]
        return {**self.collate_prompts(rows), "labels": _padded([row.answer for row in rows], IGNORE_INDEX)}

    def collate_prompts(self, rows: Sequence[EncodedExample]) -> Batch:
        """Return `input_ids` and `attention_mask`."""
        most = max(len(row.prompts) for row in rows)
        texts = [text for row in rows for text in row.prompts + [[]] * (most - len(row.prompts))]
        ids, mask = _padded(texts, self.pad_id), _padded([[1] * len(text) for text in texts], 0)
        return {"input_ids": ids.view(len(rows), most, -1), "attention_mask": mask.view(len(rows), most, -1)}


def _padded(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> Tensor:
    """Return (B, L): `rows`, padded with `value` on the right or the left."""
    longest = max(map(len, rows))
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, fill, strict=True)])
