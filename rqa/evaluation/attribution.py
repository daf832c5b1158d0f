"""Which of its passages an answer rests on, by two measures; for either kind of generator, or one.

B examples, N passages, L tokens in the longest passage, M tokens in all passages of an example, H heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import softmax
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.modeling_outputs import BaseModelOutput

from rqa.data.passage_selection import GeneratorInput
from rqa.distributed.accelerator import is_sharded
from rqa.errors import InputError
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import Collator

# A number for each passage of each reading, whose answer is the one to explain.
Attribution = Callable[[Sequence[GeneratorInput]], list[list[float]]]
Losses = Callable[[Sequence[GeneratorInput]], list[tuple[float, int]]]


def leave_one_out(losses: Losses, readings: Sequence[GeneratorInput]) -> list[list[float]]:
    """Return for each passage of each reading by how many nats its answer is less likely without that passage.

    `losses`, such as `AnswerLoss`, returns of each answer the negative log-likelihood, and its tokens. It
    is asked once, for every reading as it is, and without each of its passages.
    """
    variants = [[reading, *(_without(reading, i) for i in range(len(reading.passages)))] for reading in readings]
    each = iter(losses([variant for of_reading in variants for variant in of_reading]))
    found = []
    for of_reading in variants:
        whole, *without = (nll for nll, _ in islice(each, len(of_reading)))
        found.append([nll - whole for nll in without])
    return found


def _without(reading: GeneratorInput, place: int) -> GeneratorInput:
    def drop(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return values[:place] + values[place + 1 :]

    return replace(reading, passages=drop(reading.passages), ranks=drop(reading.ranks))


class CrossAttention:
    """The share of a fusion-in-decoder's cross-attention that falls to each passage; see `cross_attention`."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, collator: Collator, batch_size: int) -> None:
        if is_sharded(accelerator):
            raise InputError("cross-attention is read from whole weights: launch without FSDP or ZeRO-3")
        self.accelerator = accelerator
        self.model: FusionInDecoder = accelerator.unwrap_model(model)
        self.collator = collator
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, readings: Sequence[GeneratorInput]) -> list[list[float]]:
        """Return a share for each passage of each reading; every process must call this."""
        self.model.eval()
        rows = self.collator.encode(readings)
        longest_first = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        batches = [longest_first[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        numbered: list[tuple[int, list[float]]] = []
        for mine in batches[self.accelerator.process_index :: self.accelerator.num_processes]:
            batch = self.collator.collate_prompts([rows[i] for i in mine])
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            with self.accelerator.autocast():
                numbered += zip(mine, cross_attention(self.model, **batch).tolist(), strict=True)
        shares = dict(gather_object(numbered))
        return [shares[i][: len(reading.passages)] for i, reading in enumerate(readings)]


def cross_attention(model: FusionInDecoder, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return (B, N): the share of each passage, all together 1; `input_ids` and `attention_mask` are (B, N, L).

    Before the softmax, the attention scores of the first token of the answer are averaged over layers, heads and the
    tokens of a passage; the shares are the softmax of these averages over the passages. Izacard and Grave, 2021,
    "Distilling Knowledge from Reader to Retriever for Question Answering", section 3.
    """
    memory, mask = model.encode(input_ids, attention_mask)
    lengths = attention_mask.sum(-1)  # (B, N)
    if memory.shape[1] == 1:
        return (lengths > 0).float()
    start = memory.new_full((len(memory), 1), model.start_id, dtype=torch.long)
    with _recording(model.model.get_decoder()) as scores:
        model.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=mask,
            decoder_input_ids=start,
            use_cache=False,
        )
        # There is one query, so that self-attention has one key; the memory has more, a text and its end.
        crossing = [score[:, :, 0].float().mean(1) for score in scores if score.shape[-1] > 1]
    by_token = torch.stack(crossing).mean(0)  # (B, M)
    ends = lengths.cumsum(1)
    positions = torch.arange(by_token.shape[1], device=ends.device).expand(len(ends), -1)
    owners = torch.searchsorted(ends, positions.contiguous(), right=True)  # (B, M): the passage of each
    sums = by_token.new_zeros(len(ends), ends.shape[1] + 1)  # the last for padding
    sums = sums.scatter_add(1, owners, by_token.masked_fill(mask == 0, 0))[:, :-1]
    means = (sums / lengths.clamp(min=1)).masked_fill(lengths == 0, -torch.inf)
    return softmax(means, 1)


_RECORDING = "rqa_recording"
_scores: list[Tensor] = []


def _recording_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **_options: Any,
) -> tuple[Tensor, Tensor]:
    """Attend as the formula says, and keep the scores (B, H, queries, keys) as they are before mask and softmax."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    _scores.append(scores)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = softmax(scores.float(), -1).to(value.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(_RECORDING, _recording_attention)
AttentionMaskInterface.register(_RECORDING, eager_mask)


@contextmanager
def _recording(decoder: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect the scores of every attention of `decoder`, in the order in which they are made."""
    own = decoder.config._attn_implementation
    decoder.set_attn_implementation(_RECORDING)
    try:
        yield _scores
    finally:
        decoder.set_attn_implementation(own)
        _scores.clear()


def share_on_gold(values: Sequence[float], is_gold: Sequence[bool]) -> float:
    """Return the share, from 0 to 1, of what speaks for an answer that stands in gold passages.

    What speaks against it, a passage without which the answer is likelier, counts as nothing; where nothing speaks for
    the answer, nothing of it is gold.
    """
    positive = [max(0.0, value) for value in values]
    total = sum(positive)
    return sum(value for value, gold in zip(positive, is_gold, strict=True) if gold) / total if total else 0.0
