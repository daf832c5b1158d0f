"""Attribution of an answer to its passages: leave-one-out for any generator, cross-attention for fusion-in-decoder.

B examples, N passages, L tokens in the longest passage, M tokens in all passages of an example, H heads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import softmax
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask
from transformers.modeling_outputs import BaseModelOutput

from rqa.data.passage_selection import GeneratorInput
from rqa.distributed.accelerator import is_sharded
from rqa.errors import InputError
from rqa.generation.batches import map_batches
from rqa.models.fid import FusionInDecoder
from rqa.prompts.collators import Collator, EncodedExample

# One number for each passage of each input; the input contains the answer to attribute.
Attribution = Callable[[Sequence[GeneratorInput]], list[list[float]]]
Losses = Callable[[Sequence[GeneratorInput]], list[tuple[float, int]]]


def leave_one_out(losses: Losses, inputs: Sequence[GeneratorInput]) -> list[list[float]]:
    """Return for each passage the increase in the answer's negative log-likelihood, in nats, if it is left out.

    `losses`, such as `AnswerLoss`, returns the negative log-likelihood of each answer, and its number of tokens. One
    call scores every input, and its variants without each of its passages.
    """
    variants = [[item, *(_without(item, i) for i in range(len(item.passages)))] for item in inputs]
    scored = iter(losses([variant for of_item in variants for variant in of_item]))
    increases = []
    for of_item in variants:
        complete, *reduced = (nll for nll, _ in islice(scored, len(of_item)))
        increases.append([nll - complete for nll in reduced])
    return increases


def _without(item: GeneratorInput, position: int) -> GeneratorInput:
    def drop(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return values[:position] + values[position + 1 :]

    return replace(item, passages=drop(item.passages), ranks=drop(item.ranks))


class CrossAttention:
    """Returns the share of each passage in the cross-attention of a fusion-in-decoder; see `cross_attention`."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, collator: Collator, batch_size: int) -> None:
        if is_sharded(accelerator):
            raise InputError(
                "--attribution cross_attention: expected unsharded weights, got FSDP or ZeRO-3. Launch without them"
            )
        self.accelerator = accelerator
        self.model: FusionInDecoder = accelerator.unwrap_model(model, keep_torch_compile=False)
        self.collator = collator
        self.batch_size = batch_size

    def __call__(self, inputs: Sequence[GeneratorInput]) -> list[list[float]]:
        """Return a share for each passage of each input; every rank must call this."""
        self.model.eval()
        shares = map_batches(
            self.accelerator,
            self.collator.encode(inputs),
            self._shares,
            batch_size=self.batch_size,
            description="computing cross-attention",
        )
        return [row[: len(item.passages)] for row, item in zip(shares, inputs, strict=True)]

    @torch.no_grad()
    def _shares(self, rows: Sequence[EncodedExample]) -> list[list[float]]:
        batch = self.collator.collate_prompts(rows)
        with self.accelerator.autocast():
            shares = cross_attention(self.model, **{k: v.to(self.accelerator.device) for k, v in batch.items()})
        return shares.tolist()


def cross_attention(model: FusionInDecoder, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the shares of the passages (B, N), with sum 1; `input_ids` and `attention_mask` are (B, N, L).

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
        # There is one query, so that self-attention has one key; the memory has at least two.
        crossing = [score[:, :, 0].float().mean(1) for score in scores if score.shape[-1] > 1]
    by_token = torch.stack(crossing).mean(0)  # (B, M)
    ends = lengths.cumsum(1)
    positions = torch.arange(by_token.shape[1], device=ends.device).expand(len(ends), -1)
    owners = torch.searchsorted(ends, positions.contiguous(), right=True)  # (B, M): the passage of each token
    sums = by_token.new_zeros(len(ends), ends.shape[1] + 1)  # the last is for padding
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
    """Compute attention, and keep the scores (B, H, queries, keys) before mask and softmax."""
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
    """Collect the scores of every attention of `decoder`, in order of computation."""
    own = decoder.config._attn_implementation
    decoder.set_attn_implementation(_RECORDING)
    try:
        yield _scores
    finally:
        decoder.set_attn_implementation(own)
        _scores.clear()


def share_on_gold(values: Sequence[float], is_gold: Sequence[bool]) -> float:
    """Return the share of gold passages, from 0 to 1, in the positive values: the evidence for the answer.

    A negative value, of a passage without which the answer is more likely, counts as 0. Without positive values the
    share is 0.
    """
    positive = [max(0.0, value) for value in values]
    total = sum(positive)
    return sum(value for value, gold in zip(positive, is_gold, strict=True) if gold) / total if total else 0.0
