"""Generation of answers: in batches on all ranks, or one answer as a stream of text. Greedy and reproducible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import LogitsProcessor, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from rqa import __version__
from rqa.data.passage_selection import GeneratorInput
from rqa.distributed.accelerator import is_sharded
from rqa.distributed.weights import weights_checksum
from rqa.generation.answers import ANSWERS_FILE, Answer, AnswerStore
from rqa.generation.batches import map_batches
from rqa.generation.streaming import BatchStreamer, Listener, RowStopping, Show
from rqa.models.decoder import AnswerLM
from rqa.models.families import UNPADDED_MODELS
from rqa.models.fid import FusionInDecoder
from rqa.models.prompt_lookup import can_look_up, generate_with_lookup
from rqa.prompts.collators import Builder, Collator, EncodedExample
from rqa.timing import Stopwatch


@dataclass
class Generator:
    """Generates answers with greedy decoding. In float32 they are the same on any number of ranks.

    With `prompt_lookup_tokens` a decoder generates up to that many more tokens in one pass, see
    `rqa.models.prompt_lookup`, unless answers are streamed. In float32 the answers are the same.
    """

    accelerator: Accelerator
    model: AnswerLM | FusionInDecoder
    collator: Collator
    batch_size: int
    max_new_tokens: int
    prompt_lookup_tokens: int = 0

    def __post_init__(self) -> None:
        if self.accelerator.distributed_type == DistributedType.FSDP:
            # FSDP then gathers weights in generate() as it does in forward().
            register_fsdp_forward_method(self._unwrapped(), "generate")
        model = self._unwrapped()
        # Sharded: every rank must call the model equally often.
        can_use = isinstance(model, AnswerLM) and can_look_up(model.model) and not is_sharded(self.accelerator)
        self.prompt_lookup_tokens = self.prompt_lookup_tokens if can_use else 0

    def __call__(self, inputs: Sequence[GeneratorInput], store: AnswerStore | None = None) -> list[Answer]:
        """Return the answer to each input, in order, on every rank; every rank must call this.

        Answers in the `store` are not generated again, and the others are added to it.
        """
        return map_batches(
            self.accelerator,
            self.collator.encode(inputs),
            self._answers,
            batch_size=self.batch_size,
            length=lambda row: row.num_prompt_tokens,
            description="generating answers",
            store=store,
        )

    def resumable(self, folder: Path) -> Callable[[Sequence[GeneratorInput]], list[Answer]]:
        """Return a function that answers as this generator does, and keeps its answers in ANSWERS_FILE in `folder`.

        If the process is killed, and the same is called again, finished batches are read from there. Every rank must
        call this.
        """
        model, state = self._unwrapped(), self.accelerator.state
        settings = {
            "weights": weights_checksum(self.accelerator, model),
            "device": self.accelerator.device.type,
            "mixed precision": self.accelerator.mixed_precision,
            "torch.compile": state.dynamo_plugin.backend.value.lower(),
            "attention": model.config._attn_implementation,
            "encoder batch size": getattr(model, "encoder_batch_size", None),
            "batch size": self.batch_size,
            "max_new_tokens": self.max_new_tokens,
            "prompt lookup tokens": self.prompt_lookup_tokens,
            "stop tokens": list(self.collator.builder.stop_ids),
            "version of rqa": __version__,
            **{f"version of {name}": version(name) for name in ("torch", "transformers")},
        }
        return partial(self, store=AnswerStore(self.accelerator, folder / ANSWERS_FILE, settings))

    def stream(self, row: EncodedExample, show: Show = lambda _text: None) -> Answer:
        """Return the answer to one encoded example, and pass its text to `show` piece by piece meanwhile."""
        [answer] = self._answers([row], AnswerStreamer(self.collator.builder, show))
        return answer

    def stream_batch(self, rows: Sequence[EncodedExample], listeners: Sequence[Listener]) -> list[Answer]:
        """Return the answers to encoded examples, and pass the text of each to its listener meanwhile.

        The answer of a listener that has left is incomplete. Models that generate a batch in parts pass each answer
        as one piece, at the end.
        """
        limits = [min(self.max_new_tokens, each.max_new_tokens or self.max_new_tokens) for each in listeners]
        builder, streamer = self.collator.builder, None
        if self._unwrapped().config.model_type not in UNPADDED_MODELS:
            streamers = [AnswerStreamer(builder, each.show) for each in listeners]
            streamer = BatchStreamer(streamers, builder.stop_ids, limits)
        answers = self._answers(rows, streamer, limits, RowStopping(listeners, limits))
        if streamer is None:
            for listener, answer in zip(listeners, answers, strict=True):
                listener.show(answer.text)
        return answers

    def _unwrapped(self) -> AnswerLM | FusionInDecoder:
        """Return the model without wrappers; with `keep_torch_compile` accelerate would remove DDP from it for good."""
        model: AnswerLM | FusionInDecoder = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    def _answers(
        self,
        rows: Sequence[EncodedExample],
        streamer: BaseStreamer | None = None,
        limits: Sequence[int] = (),
        stopping: RowStopping | None = None,
    ) -> list[Answer]:
        """Return the answer to each row, of at most `max_new_tokens`, or of `limits`, tokens."""
        limits = limits or [self.max_new_tokens] * len(rows)
        builder, watch = self.collator.builder, Stopwatch()
        model = self._unwrapped().eval()
        batch = {name: ids.to(self.accelerator.device) for name, ids in self.collator.collate_prompts(rows).items()}
        options: dict[str, Any] = {**batch, "max_new_tokens": self.max_new_tokens, "eos_token_id": builder.stop_ids}
        options |= {"pad_token_id": self.collator.pad_id}
        first_token = _FirstToken(watch, rows)
        with torch.no_grad(), self.accelerator.autocast():
            if self.prompt_lookup_tokens and streamer is None and stopping is None:
                generated = generate_with_lookup(
                    model.model, **options, num_candidates=self.prompt_lookup_tokens, after_prefill=first_token.lap
                ).tolist()
            else:
                generated = model.generate(
                    **options,
                    synced_gpus=is_sharded(self.accelerator),
                    logits_processor=[first_token],
                    streamer=streamer,
                    stopping_criteria=None if stopping is None else StoppingCriteriaList([stopping]),
                ).tolist()
        answers = []
        for row, limit, padded_ids in zip(rows, limits, generated, strict=True):
            ids = padded_ids[:limit]
            end = next((i for i, id in enumerate(ids) if id in builder.stop_ids), None)
            num_tokens, finished = (len(ids), False) if end is None else (end + 1, True)
            text, reasoning = builder.read(ids)
            counts = (num_tokens, row.num_prompt_tokens, finished, row.truncated, row.num_passages)
            answers.append(Answer(text, *counts, reasoning))
        watch.lap("decode", len(rows), sum(answer.num_tokens - 1 for answer in answers))
        return answers


class _FirstToken(LogitsProcessor):
    """Ends the stage "prefill" at the scores of the first token, and changes no score."""

    def __init__(self, watch: Stopwatch, rows: Sequence[EncodedExample]) -> None:
        self.watch, self.rows, self.is_seen = watch, rows, False

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.is_seen:
            self.lap()
            self.is_seen = True
        return scores

    def lap(self) -> None:
        """End the stage."""
        self.watch.lap("prefill", len(self.rows), sum(row.num_prompt_tokens for row in self.rows))


class AnswerStreamer(BaseStreamer):
    """Passes the text of one answer, without reasoning, to `show`, as soon as no later token can change it.

    The pieces together are `answer_text` of all ids. The TextStreamer of transformers shows the separator and white
    space at the end of an answer, drops a space after a line feed, and shows languages without spaces only at the end.
    """

    def __init__(self, builder: Builder, show: Show) -> None:
        self.builder = builder
        self.show = show
        self.num_shown = 0
        self.ids: list[int] = []
        # A separator of ordinary text is shown only if more text follows: an answer does not end with it and its eos.
        num_text = next(i for i, id in enumerate([*builder.separator, builder.eos_id]) if id in builder.stop_ids)
        self._delay = num_text and num_text + 1
        # SentencePiece decodes single bytes in runs, and one invalid byte makes the whole run invalid.
        tokenizer = builder.tokenizer
        self._open = {tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in range(256)}
        self._open |= {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}

    def put(self, value: Tensor) -> None:
        """Take the next token, (1,); the first call passes the prompt, (1, L)."""
        if value.ndim > 1:
            return
        self.ids += value.tolist()
        settled = self.ids[: max(0, len(self.ids) - self._delay)]
        while settled and settled[-1] in self._open:
            settled.pop()
        self._show(self.builder.settled_text(settled).rstrip("\ufffd").rstrip())  # \ufffd: an incomplete character

    def end(self) -> None:
        """Show the rest."""
        self._show(self.builder.answer_text(self.ids))

    def _show(self, text: str) -> None:
        if new := text[self.num_shown :]:
            self.show(new)
            self.num_shown += len(new)
