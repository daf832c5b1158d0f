"""Readings to answers: batched by length, spread over the processes, greedy and reproducible."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import LogitsProcessor

from rqa.data.passage_selection import GeneratorInput
from rqa.distributed.accelerator import is_sharded
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import Collator, EncodedExample
from rqa.timing import Stopwatch, gather_spans, record_spans


@dataclass(frozen=True)
class Answer:
    """A generated answer, and what it took."""

    text: str
    num_tokens: int  # generated, with the one that ended it
    num_prompt_tokens: int
    finished: bool  # ended by the model, not by max_new_tokens
    num_cut: int = 0  # tokens of its passages that did not fit
    num_read: int | None = None  # passages that fit, at least in part; None: all


class Generator:
    """Answers readings with greedy decoding.

    Batches are composed over all readings, by length, before they are dealt to the processes: in float32 the answers
    are the same on any number of them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: AnswerLM | FusionInDecoder,
        collator: Collator,
        batch_size: int,
        max_new_tokens: int,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.collator = collator
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        if accelerator.distributed_type == DistributedType.FSDP:
            register_fsdp_forward_method(accelerator.unwrap_model(model), "generate")  # it gathers weights as forward
        self.is_sharded = is_sharded(accelerator)

    def __call__(self, readings: Sequence[GeneratorInput]) -> list[Answer]:
        """Return the answer to each reading, in order, on every process."""
        rows = self.collator.encode(readings)
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        # Too much memory shows at once.
        longest_first = sorted(range(len(rows)), key=lambda i: -rows[i].num_prompt_tokens)
        batches = [longest_first[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        here, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = batches[here::processes]
        # Who has no batch left repeats one where all processes gather the weights together; and as a warm-up.
        is_repeating = (self.is_sharded or len(batches) < processes) and here >= len(batches) % processes > 0
        with gather_spans(gather_object):
            numbered = [
                pair
                for batch in mine
                for pair in zip(batch, self._generate(model, [rows[i] for i in batch]), strict=True)
            ]
            if is_repeating:
                with record_spans():
                    self._generate(model, [rows[i] for i in batches[-1]])
        answers: dict[int, Answer] = dict(gather_object(numbered))
        assert answers.keys() == set(range(len(rows))), "every reading is answered exactly once"
        for i, row in enumerate(rows):
            if row.cut:
                answers[i] = replace(answers[i], num_read=self.collator.num_read(readings[i], row))
        return [answers[i] for i in range(len(rows))]

    def _generate(self, model: AnswerLM | FusionInDecoder, rows: Sequence[EncodedExample]) -> list[Answer]:
        builder, watch = self.collator.builder, Stopwatch()
        num_prompt_tokens = sum(row.num_prompt_tokens for row in rows)
        batch = {name: ids.to(self.accelerator.device) for name, ids in self.collator.collate_prompts(rows).items()}
        with torch.no_grad(), self.accelerator.autocast():
            generated = model.generate(
                **batch,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=builder.stop_ids,
                pad_token_id=self.collator.pad_id,
                synced_gpus=self.is_sharded,
                logits_processor=[_FirstToken(watch, len(rows), num_prompt_tokens)],
            ).tolist()
        answers = []
        for row, ids in zip(rows, generated, strict=True):
            end = next((i for i, id in enumerate(ids) if id in builder.stop_ids), None)
            num_tokens = len(ids) if end is None else end + 1
            answers.append(
                Answer(builder.answer_text(ids), num_tokens, row.num_prompt_tokens, end is not None, row.cut)
            )
        watch.lap("decode", len(rows), sum(answer.num_tokens - 1 for answer in answers))
        return answers


class _FirstToken(LogitsProcessor):
    """Changes no score: when the first are there, the prefill is over."""

    def __init__(self, watch: Stopwatch, num_questions: int, num_tokens: int) -> None:
        self.watch, self.num_questions, self.num_tokens = watch, num_questions, num_tokens
        self.should_stop = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        if not self.should_stop:
            self.watch.lap("prefill", self.num_questions, self.num_tokens)
            self.should_stop = True
        return scores
