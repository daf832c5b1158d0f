"""Fusion-in-decoder: an encoder-decoder that encodes every passage by itself, and decodes over all of them at once.

Izacard and Grave, 2021, "Leveraging Passage Retrieval with Generative Models for Open Domain Question Answering".

B examples, N passages, L tokens in the longest passage, S passages of the batch that are there (at most B·N), M tokens
in all passages of an example, T answer tokens, V vocabulary, D width, n target tokens in the whole batch.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from rqa.distributed.device import AttentionKernel, attention_kernel
from rqa.errors import InputError
from rqa.models.decoder import context_length, nll_per_example
from rqa.models.loading import load_config, load_model, without_generation_config
from rqa.prompts.collators import IGNORE_INDEX

# Passages of like length share a call: with four the encoder computes 1.05 to 1.2 positions for each real one, with one
# 1.2 to 1.8; eight small calls are no quicker. Spread weights are gathered again for each call.
ENCODER_CALLS = 4
SYNCED_ENCODER_CALLS = 2

UNSUPPORTED_OPTIONS = {
    "assistant_model": "the drafts of an assistant are not made of passages",
    "decoder_input_ids": "answers begin with the model's own first token",
    "encoder_no_repeat_ngram_size": "what is decoded from is no longer text",
    "encoder_repetition_penalty": "what is decoded from is no longer text",
    "output_attentions": "ids alone are returned",
    "output_hidden_states": "ids alone are returned",
    "output_logits": "ids alone are returned",
    "output_scores": "ids alone are returned",
    "prompt_lookup_num_tokens": "what is decoded from is no longer text",
    "return_dict_in_generate": "ids alone are returned",
}


class FusionInDecoder(nn.Module):
    """Scores and generates answers with an unchanged encoder-decoder, `plain`, which is what gets saved.

    Where passages are tells nobody: the encoder sees one at a time, and cross-attention has no positions. So passages
    are encoded in a few calls, each of passages of like length, and the decoder reads their tokens without the padding.

    `encoder_batch_size` is the most passages in one call; in training these are then computed again in the backward
    pass, so that the activations of one call are in memory at a time. With `sync_encoder_calls`, for weights that are spread over
    processes and gathered by all of them together, every process makes as many calls.
    """

    def __init__(
        self, seq2seq: PreTrainedModel, *, encoder_batch_size: int | None = None, sync_encoder_calls: bool = False
    ) -> None:
        super().__init__()
        self.model = seq2seq
        self.config = seq2seq.config  # Accelerate reads the hidden size from it to size DeepSpeed's buckets
        self.encoder_batch_size = encoder_batch_size
        self.sync_encoder_calls = sync_encoder_calls
        self.start_id = _start_id(seq2seq.name_or_path, seq2seq.config, seq2seq.generation_config)
        pooler = getattr(seq2seq.get_encoder(), "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)  # nobody reads what it makes, and DDP waits for all that learns

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        encoder_batch_size: int | None = None,
        sync_encoder_calls: bool = False,
        **options: Any,
    ) -> "FusionInDecoder":
        """Load a checkpoint; see `rqa.models.loading.load_model`, which takes the other `options`."""
        seq2seq = load_model(AutoModelForSeq2SeqLM, name_or_path, "encoder-decoder", **options)
        return cls(seq2seq, encoder_batch_size=encoder_batch_size, sync_encoder_calls=sync_encoder_calls)

    def tie_weights(self) -> None:
        """Make tied weights one again: Accelerate asks for it where FSDP2 took them apart."""
        self.model.tie_weights()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return (B,): the negative log-likelihood of each example's target tokens, summed, in nats, float32.

        `input_ids` and `attention_mask` are (B, N, L), `labels` (B, T); the mask of a passage that is not there is 0.
        """
        logits = self.logits(input_ids, attention_mask, labels)[labels != IGNORE_INDEX]  # (n, V)
        return nll_per_example(logits, labels)

    def logits(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Return (B, T, V), the scores of each token of the answer given those before it."""
        memory, mask = self.encode(input_ids, attention_mask)
        start = labels.new_full((len(labels), 1), self.start_id)
        before = torch.cat([start, labels[:, :-1]], 1)  # (B, T)
        logits: Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=mask,
            # What stands at a position without a target is seen by none that has one.
            decoder_input_ids=before.masked_fill(before == IGNORE_INDEX, self.start_id),
            use_cache=False,
        ).logits
        return logits

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Return the ids of the answers, (B, answer length), padded on the right; (B, N, L) as in `forward`.

        Greedy, but for `options` (sampling, beams): the checkpoint's own generation_config has no say. Raises
        ValueError for options that cannot work.
        """
        if cannot := sorted(UNSUPPORTED_OPTIONS.keys() & options):
            raise ValueError("; ".join(f"{name}: {UNSUPPORTED_OPTIONS[name]}" for name in cannot))
        memory, mask = self.encode(input_ids, attention_mask)
        with without_generation_config(self.model):
            ids: Tensor = self.model.generate(  # type: ignore[operator]
                encoder_outputs=BaseModelOutput(last_hidden_state=memory),
                attention_mask=mask,
                decoder_start_token_id=self.start_id,
                **options,
            )
        return ids[:, 1:]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder reads, (B, M, D), and its mask, (B, M): all real positions, passage after passage."""
        num_rows, num_passages, length = input_ids.shape
        real = attention_mask.bool().clone()
        real[:, 0, 0] |= ~real.any((1, 2))  # an example must read something: without passages, its first position
        ids, is_real = input_ids.flatten(0, 1), real.flatten(0, 1)  # (B·N, L)
        places = (real.flatten(1).cumsum(1) - 1).view_as(is_real)  # of each position among the real ones of its example
        widths = (is_real * torch.arange(1, length + 1, device=ids.device)).amax(1)  # up to the last real position

        rows, slots, states, unread = [], [], [], []
        for call in self._calls(widths.tolist(), ids.device):
            if not call:  # to keep in step: nobody reads it, but it takes part in the backward pass
                unread.append(self._encoded(ids[:1, :1], torch.ones_like(ids[:1, :1])).sum() * 0)
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
        if unread:
            memory = memory + torch.stack(unread).sum()
        return memory, (torch.arange(most, device=ids.device) < lengths[:, None]).long()

    def _encoded(self, ids: Tensor, mask: Tensor) -> Tensor:
        def encoder(ids: Tensor, mask: Tensor) -> Tensor:
            hidden: Tensor = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            return hidden

        if self.encoder_batch_size is not None and self.training and torch.is_grad_enabled():
            again: Tensor = checkpoint(encoder, ids, mask, use_reentrant=False)
            return again
        return encoder(ids, mask)

    def _calls(self, widths: Sequence[int], device: torch.device) -> list[list[int]]:
        """Deal the passages that are there, of `widths`, to calls, so that those of one call are alike in length."""
        longest_first = sorted((i for i, width in enumerate(widths) if width), key=lambda i: -widths[i])
        if self.encoder_batch_size is None:
            calls = SYNCED_ENCODER_CALLS if self.sync_encoder_calls else min(ENCODER_CALLS, len(longest_first))
        else:
            calls = -(-len(longest_first) // self.encoder_batch_size)
            if self.sync_encoder_calls:
                calls = _most(calls, device)
        cuts = [len(longest_first) * call // calls for call in range(calls + 1)]
        return [longest_first[a:b] for a, b in pairwise(cuts)]


def check_model(name_or_path: str, max_passage_length: int, max_answer_length: int) -> PreTrainedConfig:
    """Return a checkpoint's configuration.

    Raises InputError unless it is of an encoder-decoder with such windows that says how answers begin.
    """
    config = load_config(name_or_path, "encoder-decoder")
    if not config.is_encoder_decoder:
        raise InputError(
            f"{name_or_path}: fusion-in-decoder needs an encoder-decoder (T5, BART), found a {config.model_type}: "
            "a decoder is trained by recipes/sft_mistral.py and recipes/swr_starling.py"
        )
    for part, length, flags in (
        ("encoder", max_passage_length, "--max_passage_length"),
        ("decoder", max_answer_length, "--max_answer_length or --max_new_tokens"),
    ):
        window = context_length(getattr(config, part, config), part)
        if window is not None and length > window:
            raise InputError(f"{name_or_path}: its {part} reads at most {window} tokens, not {length}: lower {flags}")
    try:
        generation = GenerationConfig.from_pretrained(name_or_path)
    except OSError:  # it has no generation_config.json
        generation = GenerationConfig.from_model_config(config)
    _start_id(name_or_path, config, generation)
    return config


def attention_of(
    config: PreTrainedConfig, accelerator: Accelerator, *, use_flash_attention: bool = False
) -> AttentionKernel | None:
    """Return the `attention` to load a model with. Raises InputError where its precision is one it does not survive."""
    is_t5 = hasattr(config, "relative_attention_num_buckets")  # a bias for positions is added to the attention
    if is_t5 and accelerator.mixed_precision == "fp16":
        raise InputError(
            f"mixed precision fp16: {config.model_type} was trained in bfloat16, and its activations exceed 65504, the "
            "largest number of float16: give --bf16 true, or neither"
        )
    if is_t5 and use_flash_attention:
        raise InputError(f"--use_flash_attention true: {config.model_type} adds a bias that flash attention cannot add")
    if is_t5 and accelerator.mixed_precision == "bf16" and accelerator.device.type == "cpu":
        return "eager"  # there the bias is a float mask to sdpa, which is then 2.5 times slower
    return attention_kernel(use_flash_attention, accelerator.mixed_precision)


def _most(calls: int, device: torch.device) -> int:
    """Return the largest number of calls that a process has to make."""
    most = torch.tensor(calls, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def _start_id(name_or_path: str | None, config: PreTrainedConfig, generation: GenerationConfig) -> int:
    """Return the token that stands before every answer."""
    for source in (generation, config):
        if (start := getattr(source, "decoder_start_token_id", None)) is not None:
            return int(start)
    start = config.get_text_config(decoder=True).bos_token_id
    if start is None:
        raise InputError(
            f"{name_or_path}: expected a decoder_start_token_id in its config.json or generation_config.json, "
            "found none"
        )
    return int(start)
