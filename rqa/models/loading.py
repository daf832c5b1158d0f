"""Checkpoints to models: strictly, and in float32; and generation that the checkpoint has no say in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from rqa.errors import InputError


def load_config(name_or_path: str, kind: str) -> PreTrainedConfig:
    """Return a checkpoint's configuration. Raises InputError where there is none; `kind` is what was hoped for."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{name_or_path}: no {kind} can be loaded from it: {error}") from error
    return config


def load_model(
    auto_class: type[_BaseAutoModelClass],
    name_or_path: str,
    kind: str,
    *,
    attention: str | None = None,
    gradient_checkpointing: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint with float32 parameters: in bfloat16 the updates of a small learning rate round to nothing.

    Without `attention` it is sdpa, or eager where the model has no sdpa (Gemma 2, whose attention is soft-capped).
    With `gradient_checkpointing` activations are computed again in the backward pass. Raises InputError where it is
    no checkpoint of a `kind`, or lacks weights, which would otherwise be random.
    """
    model: PreTrainedModel
    loading: dict[str, Any]
    try:
        model, loading = auto_class.from_pretrained(
            name_or_path,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in `loading`, and refused below
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{name_or_path}: no {kind} can be loaded from it: {error}") from error
    if lacking := sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]):
        raise InputError(
            f"{name_or_path}: expected every weight of {type(model).__name__}, the checkpoint lacks {len(lacking)}: "
            + ", ".join(lacking[:3])
        )
    if gradient_checkpointing:
        # The re-entrant variant loses the gradient of inputs that need none, and its hooks do not suit DDP.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


@contextmanager
def without_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Hide the checkpoint's generation_config, from which transformers fills every gap in the options of a call."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
