"""Load checkpoints: every weight, in float32; generate without the checkpoint's generation_config."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from rqa.errors import InputError
from rqa.terminal import Progress


def load_config(name_or_path: str, kind: str) -> PreTrainedConfig:
    """Return a checkpoint's configuration. Raises InputError, with the expected `kind` of model, if there is none."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{name_or_path}: no {kind} can be loaded: {error}") from error
    return config


def load_model(
    auto_class: type[_BaseAutoModelClass],
    name_or_path: str,
    kind: str,
    *,
    attention: str | None = None,
    gradient_checkpointing: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint with float32 parameters: in bfloat16, steps with a small learning rate round to zero.

    Without `attention` the model uses sdpa, or eager attention if it has no sdpa (Gemma 2, with soft-capped scores).
    With `gradient_checkpointing` activations are computed again in the backward pass. Raises InputError if the
    checkpoint is not of this `kind` or lacks weights, which transformers would fill with random numbers.
    """
    model: PreTrainedModel
    try:
        with Progress(f"loading {name_or_path}"):
            model, loading = auto_class.from_pretrained(
                name_or_path,
                dtype=torch.float32,
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in `loading` and raise an error below
            )
    except (OSError, ValueError) as error:
        raise InputError(f"{name_or_path}: no {kind} can be loaded: {error}") from error
    if missing := sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]):
        raise InputError(
            f"{name_or_path}: expected every weight of {type(model).__name__}, the checkpoint lacks {len(missing)}: "
            + ", ".join(missing[:3])
        )
    if gradient_checkpointing:
        # The re-entrant variant loses gradients if the inputs require none, and its hooks do not work with DDP.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def generate_ids(model: PreTrainedModel, **options: Any) -> Tensor:
    """Return the result of generate() with these options, without defaults of the checkpoint's generation_config."""
    original, model.generation_config = model.generation_config, GenerationConfig()
    try:
        ids: Tensor = model.generate(**options)  # type: ignore[operator]
        return ids
    finally:
        model.generation_config = original
