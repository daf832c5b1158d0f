"""A decoder-only language model whose forward returns each example's loss.

B examples, L positions, V vocabulary, n target tokens in the whole batch.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rqa.errors import InputError
from rqa.models.loading import load_config, load_model, without_generation_config
from rqa.prompts.collators import IGNORE_INDEX

# Of these the first position is pad_token_id + 1.
_FROM_PADDING = (
    "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod"
).split()


class AnswerLM(nn.Module):
    """Scores the answers of a batch with an unchanged causal language model, `plain`, which is what gets saved.

    The vocabulary projection runs on the target positions alone, through the model's own forward, so that soft-capping
    and scaling stay the model's. The loss is computed inside, because Accelerate copies whatever a prepared model
    returns to float32, and (n, V) is often the largest tensor of the run.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.model = lm
        self.config = lm.config  # Accelerate reads the hidden size from it to size DeepSpeed's buckets
        self._can_select = "logits_to_keep" in inspect.signature(lm.forward).parameters
        # Causal attention never looks at padding on the right, and without a mask the fast kernels stay on. A router
        # of experts does look at it.
        self._needs_mask = any("expert" in key for key in lm.config.to_dict())

    @classmethod
    def from_pretrained(cls, name_or_path: str, **options: Any) -> "AnswerLM":
        """Load a checkpoint; see `rqa.models.loading.load_model`, which takes the `options`."""
        return cls(load_model(AutoModelForCausalLM, name_or_path, "decoder", **options))

    def tie_weights(self) -> None:
        """Make tied weights one again: Accelerate asks for it where FSDP2 took them apart."""
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

    def logits(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Return (B, L, V), the scores of the token after each position, for inspection."""
        del labels  # the signature is that of forward, so that one batch serves both
        logits: Tensor = self.model(input_ids, use_cache=False).logits
        return logits

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Return the ids of the answers alone, (B, answer length), from prompts (B, L) padded on the left.

        Greedy, but for `options`: the checkpoint's own generation_config has no say.
        """
        with without_generation_config(self.model):
            ids: Tensor = self.model.generate(  # type: ignore[operator]
                input_ids=input_ids, attention_mask=attention_mask, **options
            )
        return ids[:, input_ids.shape[1] :]


def nll_per_example(logits: Tensor, targets: Tensor) -> Tensor:
    """Return (B,): the negative log-likelihood of each row's targets, summed, in nats, float32.

    `targets` are (B, L), `logits` (n, V) those of the n that are not IGNORE_INDEX, row by row.
    """
    is_target = targets != IGNORE_INDEX
    losses = cross_entropy(logits.float(), targets[is_target], reduction="none")  # (n,)
    return losses.new_zeros(len(targets)).index_add(0, is_target.nonzero()[:, 0], losses)


def context_length(config: PreTrainedConfig, part: str = "decoder") -> int | None:
    """Return the most tokens that a model, or this `part` of one, was made for; None where it says none, as T5."""
    names = ("max_position_embeddings", f"max_{part}_position_embeddings")  # the latter LED's
    window: int | None = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    return window - config.pad_token_id - 1 if window and config.model_type in _FROM_PADDING else window


def max_positions(config: PreTrainedConfig) -> int | None:
    """Return how many positions a decoder has, beyond which it cannot read; None where none is the last.

    So it is with rotary positions: what such a model makes of more than it was made for, its loss tells.
    """
    decoder = config.get_text_config(decoder=True)
    return None if getattr(decoder, "rope_parameters", None) else context_length(decoder)


def check_context_length(name_or_path: str, num_tokens: int) -> int | None:
    """Return the `max_positions` a checkpoint. Raises InputError where rows of `num_tokens` may exceed its window."""
    config = load_config(name_or_path, "decoder")
    if config.is_encoder_decoder:
        raise InputError(
            f"{name_or_path}: expected a decoder, found an encoder-decoder, a {config.model_type}: it is trained by "
            "recipes/fid_flan_t5.py, and evaluated with --qa_is_fid true"
        )
    window = context_length(config.get_text_config())
    if window is not None and num_tokens > window:
        raise InputError(
            f"{name_or_path} reads at most {window} tokens: prompt and answer may have {num_tokens}; "
            "lower --max_prompt_length, --max_answer_length or --max_new_tokens"
        )
    return max_positions(config)


def _up_to_last_target(labels: Tensor) -> Tensor:
    """Return the attention mask (B, L) of rows padded on the right, whose answer comes last."""
    mask = (labels != IGNORE_INDEX).flip(1).cumsum(1).flip(1) > 0
    mask[:, 0] = True  # a row without targets must attend to something
    return mask.long()
