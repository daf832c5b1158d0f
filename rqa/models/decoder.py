"""A decoder whose forward returns the loss of each example.

B examples, L positions, V vocabulary, n target tokens in the whole batch.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rqa.errors import InputError
from rqa.models.families import SINGLE_PROMPT_MODELS, UNPADDED_MODELS
from rqa.models.loading import generate_ids, load_config, load_model
from rqa.prompts.collators import IGNORE_INDEX

# The first position of these models is pad_token_id + 1.
_POSITIONS_AFTER_PADDING = (
    "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod"
).split()


class AnswerLM(nn.Module):
    """Scores and generates answers with an unchanged causal language model, `model`, which is exported as it is.

    The vocabulary projection runs on target positions only, in the model's own forward, which keeps soft-capping and
    scaling. The loss is computed inside: Accelerate copies the outputs of a prepared model to float32, and (n, V) is
    often the largest tensor of a run.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.model = lm
        self.config = lm.config  # Accelerate sizes DeepSpeed's buckets by its hidden size
        self._can_select = "logits_to_keep" in inspect.signature(lm.forward).parameters
        # Causal attention ignores padding on the right, and the fast kernels take no mask. A router of experts does
        # not ignore it.
        self._needs_mask = any("expert" in key for key in lm.config.to_dict())

    @classmethod
    def from_pretrained(cls, name_or_path: str, **options: Any) -> "AnswerLM":
        """Load a checkpoint; `options` are those of `rqa.models.loading.load_model`."""
        return cls(load_model(AutoModelForCausalLM, name_or_path, "decoder", **options))

    def tie_weights(self) -> None:
        """Tie weights again; Accelerate calls this after FSDP2 has separated them."""
        self.model.tie_weights()

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Return (B,): the negative log-likelihood of each example's target tokens, summed, in nats, float32.

        `input_ids` and `labels` are (B, L), padded on the right; a label stands at the position of its own token.
        """
        targets = labels[:, 1:]
        is_target = targets != IGNORE_INDEX
        keep = nn.functional.pad(is_target, (0, 1))  # (B, L): position t predicts the token at t + 1
        mask = _up_to_last_target(labels) if self._needs_mask else None
        if self._can_select:
            logits = self.model(input_ids, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits  # (n, V)
        else:
            logits = self.model(input_ids, attention_mask=mask, use_cache=False).logits[keep]
        return nll_per_example(logits, targets)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Return the ids of the answers, (B, answer length), without the prompts (B, L), padded on the left.

        Decoding is greedy unless `options` change it: the checkpoint's generation_config is ignored.
        """
        if self.config.model_type in UNPADDED_MODELS:
            return self._generate_by_length(input_ids, attention_mask, **options)
        ids = generate_ids(self.model, input_ids=input_ids, attention_mask=attention_mask, **options)
        return ids[:, input_ids.shape[1] :]

    def _generate_by_length(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Return the same as `generate`, from one call for each length of a prompt, without padding."""
        lengths = attention_mask.sum(1).tolist()
        groups: dict[int, list[int]] = {}  # rows of equal length, or single rows
        for row, length in enumerate(lengths):
            groups.setdefault(row if self.config.model_type in SINGLE_PROMPT_MODELS else length, []).append(row)
        plan = [groups[key] for key in sorted(groups)]
        calls = len(plan)
        if options.get("synced_gpus"):  # every rank makes equally many calls
            calls = most_of_ranks(calls, input_ids.device)
        answers: dict[int, Tensor] = {}
        for rows in (plan + plan[-1:] * calls)[:calls]:
            length = lengths[rows[0]]
            ids = input_ids[rows, input_ids.shape[1] - length :]
            made = generate_ids(self.model, input_ids=ids, attention_mask=torch.ones_like(ids), **options)[:, length:]
            answers |= zip(rows, made.view(len(rows), -1, made.shape[-1]), strict=True)
        pieces = [answer for row in range(len(lengths)) for answer in answers[row]]
        return nn.utils.rnn.pad_sequence(pieces, True, options.get("pad_token_id", 0))


def most_of_ranks(number: int, device: torch.device) -> int:
    """Return the largest number of all ranks; every rank must call this."""
    most = torch.tensor(number, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def nll_per_example(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B,): the negative log-likelihood of each row's targets, summed, in nats, float32.

    `targets` are (B, L). `logits` (n, V) are those of the n targets that are not IGNORE_INDEX, row by row.
    """
    is_target = targets != IGNORE_INDEX
    losses = cross_entropy(logits.float(), targets[is_target], reduction="none")  # (n,)
    return losses.new_zeros(len(targets)).index_add(0, is_target.nonzero()[:, 0], losses)


def context_length(config: PreTrainedConfig, part: str = "decoder") -> int | None:
    """Return the context length of a model or of this `part`, in tokens; None if the config has none, as T5's."""
    names = ("max_position_embeddings", f"max_{part}_position_embeddings")  # the second is LED's
    length: int | None = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    is_shifted = length and config.model_type in _POSITIONS_AFTER_PADDING
    return length - config.pad_token_id - 1 if is_shifted else length


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return the number of positions of a decoder; None if it is unlimited, as with rotary positions.

    A longer input is an error in a model with learned positions. With rotary positions it is only a higher loss.
    """
    decoder = config.get_text_config(decoder=True)
    return None if getattr(decoder, "rope_parameters", None) else context_length(decoder)


def check_context_length(name_or_path: str, num_tokens: int) -> int | None:
    """Return the `max_positions` of a checkpoint. Raises InputError if its context length is below `num_tokens`."""
    config = load_config(name_or_path, "decoder")
    length = context_length(config.get_text_config())
    if length is not None and num_tokens > length:
        raise InputError(
            f"{name_or_path}: expected at most {length} tokens in prompt and answer, got {num_tokens}. "
            "Lower --max_prompt_length, --max_answer_length or --max_new_tokens"
        )
    return max_positions(config)


def _up_to_last_target(labels: Tensor) -> Tensor:
    """Return the attention mask (B, L) of rows that end with their answer, padded on the right."""
    mask = (labels != IGNORE_INDEX).flip(1).cumsum(1).flip(1) > 0
    mask[:, 0] = True  # attention needs at least one position, also in a row without targets
    return mask.long()
