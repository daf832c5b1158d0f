"""Fusion-in-decoder: an encoder-decoder that encodes each passage alone and decodes over all of them.

Izacard and Grave, 2021, "Leveraging Passage Retrieval with Generative Models for Open Domain Question Answering".

B examples, N passages, L tokens in the longest passage, s passages in an encoder call, M tokens in all passages of an
example, T answer tokens, V vocabulary, D width, n target tokens in the whole batch.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import MoEModelOutput

from rqa.distributed.device import AttentionKernel, attention_kernel
from rqa.errors import InputError
from rqa.models.decoder import context_length, most_of_ranks, nll_per_example
from rqa.models.loading import CACHE, generate_ids, load_config, load_generation_config, load_model
from rqa.prompts.collators import IGNORE_INDEX

# Passages of similar length share a call: the encoder computes 1.05 to 1.2 positions per token with 4 calls, 1.1 to 1.8
# with 1. A call takes as long as about CALL_POSITIONS further positions. Sharded weights are gathered for each call.
ENCODER_CALLS = 4  # at most
CALL_POSITIONS = 256
SHARDED_ENCODER_CALLS = 2

_TEXT_OPTIONS = ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "prompt_lookup_num_tokens")
_OUTPUT_OPTIONS = "output_attentions output_hidden_states output_logits output_scores return_dict_in_generate".split()
UNSUPPORTED_OPTIONS = {
    "assistant_model": "an assistant model does not read passages in parallel",
    "decoder_input_ids": "answers begin with the model's own start token",
    **dict.fromkeys(_TEXT_OPTIONS, "FiD passes encoder states to generate(), not input_ids"),
    **dict.fromkeys(_OUTPUT_OPTIONS, "generate() returns only ids"),
}


class FusionInDecoder(nn.Module):
    """Scores and generates answers with an unchanged encoder-decoder, `model`, which is exported as it is.

    Passage order has no effect: each passage is encoded alone, and cross-attention has no position bias. The encoder
    is called a few times, each time with passages of similar length. The decoder reads their tokens without padding.

    `encoder_batch_size` is the maximum of passages in one call. In training each call is then computed again in the
    backward pass, so that only its activations are in memory. With `sync_encoder_calls`, for sharded weights, every
    rank makes equally many calls.
    """

    def __init__(
        self, seq2seq: PreTrainedModel, *, encoder_batch_size: int | None = None, sync_encoder_calls: bool = False
    ) -> None:
        super().__init__()
        self.model = seq2seq
        self.config = seq2seq.config  # Accelerate sizes DeepSpeed's buckets by its hidden size
        self.encoder_batch_size = encoder_batch_size
        self.sync_encoder_calls = sync_encoder_calls
        self.start_id = _start_id(seq2seq.name_or_path, seq2seq.config, seq2seq.generation_config)
        pooler = getattr(seq2seq.get_encoder(), "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)  # its output is unused, and DDP waits for every trained parameter

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, *, encoder_batch_size: int | None = None, sync_encoder_calls: bool = False, **other: Any
    ) -> "FusionInDecoder":
        """Load a checkpoint; the `other` options are those of `rqa.models.loading.load_model`."""
        seq2seq = load_model(AutoModelForSeq2SeqLM, name_or_path, "encoder-decoder", **other)
        return cls(seq2seq, encoder_batch_size=encoder_batch_size, sync_encoder_calls=sync_encoder_calls)

    def tie_weights(self) -> None:
        """Tie weights again; Accelerate calls this after FSDP2 has separated them."""
        self.model.tie_weights()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return (B,): the negative log-likelihood of each example's target tokens, summed, in nats, float32.

        `input_ids` and `attention_mask` are (B, N, L), `labels` (B, T). The mask of a missing passage is 0.
        """
        logits = self.logits(input_ids, attention_mask, labels)[labels != IGNORE_INDEX]  # (n, V)
        return nll_per_example(logits, labels)

    def logits(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return (B, T, V): the logits of each token of the answer, given the tokens before it."""
        memory, mask = self.encode(input_ids, attention_mask)
        start = labels.new_full((len(labels), 1), self.start_id)
        before = torch.cat([start, labels[:, :-1]], 1)  # (B, T)
        logits: Tensor = self.model(
            encoder_outputs=MoEModelOutput(last_hidden_state=memory),
            attention_mask=mask,
            # Ids at positions without a target do not matter: they follow all targets.
            decoder_input_ids=before.masked_fill(before == IGNORE_INDEX, self.start_id),
            use_cache=False,
        ).logits
        return logits

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Return the ids of the answers, (B, answer length), padded on the right; (B, N, L) as in `forward`.

        Decoding is greedy unless `options` change it (sampling, beams): the checkpoint's generation_config is ignored.
        Raises ValueError for options that FiD does not support.
        """
        if unsupported := sorted(UNSUPPORTED_OPTIONS.keys() & options):
            raise ValueError("; ".join(f"{name}: {UNSUPPORTED_OPTIONS[name]}" for name in unsupported))
        memory, mask = self.encode(input_ids, attention_mask)
        encoded: dict[str, Any] = {"encoder_outputs": MoEModelOutput(last_hidden_state=memory), "attention_mask": mask}
        is_deeper = getattr(self.config, "num_decoder_layers", 0) > getattr(self.config, "num_layers", math.inf)
        if is_deeper and options.get("use_cache", True):
            # generate() makes a cache of T5 with as many layers as the encoder has.
            encoded[CACHE] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return generate_ids(self.model, **encoded, decoder_start_token_id=self.start_id, **options)[:, 1:]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoder states (B, M, D) and their mask (B, M): all tokens, passage after passage, without padding."""
        num_rows, num_passages, length = input_ids.shape
        real = attention_mask.bool().clone()
        real[:, 0, 0] |= ~real.any((1, 2))  # an example without passages keeps one position: attention needs one
        ids, is_real = input_ids.flatten(0, 1), real.flatten(0, 1)  # (B·N, L)
        places = (real.flatten(1).cumsum(1) - 1).view_as(is_real)  # index among the real positions of the example
        widths = (is_real * torch.arange(1, length + 1, device=ids.device)).amax(1)  # up to the last real position

        rows, slots, states, unused = [], [], [], []
        for call in self._calls(widths.tolist(), ids.device):
            if not call:  # only to make equally many calls; the backward pass includes it
                unused.append(self._encoded(ids[:1, :1], torch.ones_like(ids[:1, :1])).sum() * 0)
                continue
            chosen = torch.tensor(call, device=ids.device)  # (s,)
            mask = is_real[chosen, : widths[chosen[0]]]  # the longest comes first
            hidden = self._encoded(ids[chosen, : mask.shape[1]], mask.long())  # (s, its length, D)
            rows.append((chosen // num_passages)[:, None].expand_as(mask)[mask])
            slots.append(places[chosen, : mask.shape[1]][mask])
            states.append(hidden[mask])
        values = torch.cat(states)  # (real positions, D)
        lengths = real.sum((1, 2))
        most = int(lengths.max())
        empty = values.new_zeros(num_rows, most, values.shape[-1])
        memory = empty.index_put((torch.cat(rows), torch.cat(slots)), values)
        if unused:
            memory = memory + torch.stack(unused).sum()
        return memory, (torch.arange(most, device=ids.device) < lengths[:, None]).long()

    def _encoded(self, ids: Tensor, mask: Tensor) -> Tensor:
        def encoder(ids: Tensor, mask: Tensor) -> Any:
            return self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state

        is_recomputed = self.encoder_batch_size is not None and self.training and torch.is_grad_enabled()
        hidden: Tensor = checkpoint(encoder, ids, mask, use_reentrant=False) if is_recomputed else encoder(ids, mask)
        return hidden

    def _calls(self, widths: Sequence[int], device: torch.device) -> list[Sequence[int]]:
        """Return the passages of each call, of similar length; `widths` are tokens per passage, 0 if it is missing."""
        longest_first = sorted((i for i, width in enumerate(widths) if width), key=lambda i: -widths[i])
        calls = encoder_calls([widths[i] for i in longest_first], self.encoder_batch_size)
        if self.sync_encoder_calls:
            calls = SHARDED_ENCODER_CALLS if self.encoder_batch_size is None else most_of_ranks(calls, device)
        return evenly_divided(longest_first, calls)


def encoder_calls(widths: Sequence[int], encoder_batch_size: int | None = None) -> int:
    """Return the number of encoder calls for passages of these lengths, longest first.

    With an `encoder_batch_size` it is the smallest one, else the fastest: more calls compute less padding.
    """
    if encoder_batch_size is not None:
        return -(-len(widths) // encoder_batch_size)

    def cost(calls: int) -> int:
        return CALL_POSITIONS * calls + sum(call[0] * len(call) for call in evenly_divided(widths, calls))

    return min(range(1, min(ENCODER_CALLS, len(widths)) + 1), key=cost)


def evenly_divided(items: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Return neighbours in `parts` lists, whose numbers of items differ by at most one."""
    return [items[a:b] for a, b in pairwise(len(items) * part // parts for part in range(parts + 1))]


def check_encoder_decoder(name_or_path: str, max_passage_length: int, max_answer_length: int) -> PreTrainedConfig:
    """Return a configuration. Raises InputError unless it is an encoder-decoder of these lengths with a start token."""
    config = load_config(name_or_path, "encoder-decoder")
    for part, length, flags in (
        ("encoder", max_passage_length, "--max_passage_length"),
        ("decoder", max_answer_length, "--max_answer_length or --max_new_tokens"),
    ):
        limit = context_length(getattr(config, part, config), part)
        if limit is not None and length > limit:
            raise InputError(
                f"{name_or_path}: expected at most {limit} tokens in the {part}, got {length}. Lower {flags}"
            )
    _start_id(name_or_path, config, load_generation_config(name_or_path, config))
    return config


def fid_attention(
    config: PreTrainedConfig, accelerator: Accelerator, *, use_flash_attention: bool = False
) -> AttentionKernel | None:
    """Return the `attention` to load a model with. Raises InputError if kernel or precision do not work with it."""
    is_t5 = hasattr(config, "relative_attention_num_buckets")  # it adds a position bias to the attention scores
    if is_t5 and accelerator.mixed_precision == "fp16":
        raise InputError(
            f"mixed precision fp16: activations of {config.model_type} exceed 65504, the largest float16. "
            "Set --bf16 true, or neither --bf16 nor --fp16"
        )
    if is_t5 and use_flash_attention:
        raise InputError(
            f"--use_flash_attention true: flash attention has no position bias, {config.model_type} needs one. "
            "Remove the flag"
        )
    if is_t5 and accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu":
        return "eager"  # on a CPU sdpa with a float mask is 2.5 times slower
    return attention_kernel(use_flash_attention, accelerator.mixed_precision)


def _start_id(name_or_path: str | None, config: PreTrainedConfig, generation: GenerationConfig) -> int:
    """Return the start token of every answer."""
    decoder = config.get_text_config(decoder=True)
    starts = [getattr(source, "decoder_start_token_id", None) for source in (generation, config)]
    start = next((id for id in (*starts, getattr(decoder, "bos_token_id", None)) if id is not None), None)
    if type(start) is not int or not 0 <= start < getattr(decoder, "vocab_size", start + 1):
        raise InputError(
            f"{name_or_path}: expected a decoder_start_token_id in config.json or generation_config.json "
            f"that is the id of a token, got {'none' if start is None else start}"
        )
    return start
