"""Low-rank adapters: Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

The output of a frozen linear layer W becomes W·x + (alpha / rank) · B·A·x, with A (rank, in) and B (out, rank) trained.
The package peft makes these layers, and defines the files of an adapter. The model keeps its plain class: a layer NAME
becomes NAME.base_layer, NAME.lora_A.default and NAME.lora_B.default.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rqa.distributed.hub import is_adapter
from rqa.distributed.untrusted import ADAPTER_CONFIG, read_settings
from rqa.errors import InputError

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ALL_LINEAR: Final = "all-linear"  # all linear layers but the output layer; fused matrices of experts are no layers
_NAME = "default"  # peft's name of the only adapter of a model
_PREFIX = "base_model.model."  # of names in an adapter file
# Settings of peft that change the product above: an adapter with another value is refused.
_PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "modules_to_save": None, "target_parameters": None}
_READ = ("r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


@dataclass(frozen=True)
class Lora:
    """The shape of an adapter. `target_modules` are ends of the names of linear layers, or ALL_LINEAR."""

    rank: int
    alpha: float
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR


def add_adapter(model: PreTrainedModel, lora: Lora, seed: int = 0) -> None:
    """Freeze a model, and add adapters in float32 to its linear layers. B is zero: the output does not change yet.

    A is the same for the same seed. Raises InputError if no layer has such a name.
    """
    import peft  # takes seconds

    targets = lora.target_modules
    if targets == ALL_LINEAR:
        targets = tuple(layers_with_adapters(model, lora))
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        base_model_name_or_path=model.name_or_path,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, model)
        except ValueError as error:
            every = layers_with_adapters(model, replace(lora, target_modules=ALL_LINEAR))
            names = ", ".join(sorted({name.rpartition(".")[2] for name in every}))
            raise InputError(
                f"--lora_target_modules: expected {ALL_LINEAR} or names of linear layers ({names}), "
                f"got {', '.join(targets)[:200]}"
            ) from error
    _check_layers(model)


def layers_with_adapters(model: PreTrainedModel, lora: Lora) -> dict[str, nn.Linear | Conv1D]:
    """Return the layers that get adapters, by name."""
    ends, output = lora.target_modules, model.get_output_embeddings()
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and (layer is not output if ends == ALL_LINEAR else f".{name}".endswith(tuple(f".{end}" for end in ends)))
    }


def has_adapter(model: nn.Module) -> bool:
    """Return True if a model has low-rank adapters."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def adapter_options(folder: Path) -> dict[str, Any]:
    """Return the keyword arguments of peft.LoraConfig for an adapter. Raises InputError if it is of another kind."""
    path = folder / ADAPTER_CONFIG
    settings = read_settings(path)
    changed = {name: settings.get(name, plain) for name, plain in _PLAIN.items() if settings.get(name, plain) != plain}
    if (kind := settings.get("peft_type")) != "LORA" or changed:
        raise InputError(
            f"{path}: expected an adapter of type LORA without further settings, got {kind}, {changed}. "
            "Merge it into its base model with peft's merge_and_unload, and save the result"
        )
    return {name: settings[name] for name in ("base_model_name_or_path", *_READ) if name in settings}


def planned_adapter(name_or_path: str, lora: Lora | None) -> Lora | None:
    """Return the adapter that is trained: `lora`, or that of a folder with an adapter."""
    if not is_adapter(name_or_path):
        return lora
    options = adapter_options(Path(name_or_path))
    return Lora(options["r"], options["lora_alpha"], options["lora_dropout"], tuple(options["target_modules"]))


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Freeze a model, and add the adapter in a folder in float32. Raises InputError if it does not fit."""
    import peft

    path = folder / ADAPTER_WEIGHTS
    options = adapter_options(folder)
    try:
        tensors = load_file(path)
        peft.inject_adapter_in_model(peft.LoraConfig(**options), model)
        _check_layers(model)  # before the weights are copied: in bfloat16 they would be rounded
        with warnings.catch_warnings(action="ignore"):  # on the device "meta" only names and shapes are compared
            loaded: Any = peft.set_peft_model_state_dict(model, tensors)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: expected the adapter of {model.name_or_path}, got: {reason}") from error
    missing = [name for name in loaded.missing_keys if ".lora_" in name]
    if missing or loaded.unexpected_keys:
        counts = f"{len(missing)} missing weights and {len(loaded.unexpected_keys)} unknown ones"
        raise InputError(f"{path}: expected the adapter of {model.name_or_path}, got {counts}")


def save_adapter(model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the adapter in the `state` of a model to a folder, in peft's format and float32."""
    tensors = {
        _PREFIX + name.replace(f".{_NAME}.", "."): tensor.float().contiguous().cpu()
        for name, tensor in state.items()
        if ".lora_" in name
    }
    config: Any = model.peft_config[_NAME]
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes from run to run
    config.save_pretrained(str(folder))
    save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})


def merged_state(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the `state` of a model as that of the plain model: W + (alpha / rank) · B·A, rounded to the type of W."""
    merged = {}
    for name, tensor in state.items():
        if ".lora_" not in name:
            merged[name.replace(".base_layer.", ".")] = tensor
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            a, b = (state[f"{name}.lora_{part}.{_NAME}.weight"].float() for part in "AB")
            change = layer.scaling[_NAME] * (b @ a)  # (out, in)
            weight = merged[f"{name}.weight"]
            change = change.T if layer.fan_in_fan_out else change  # of GPT-2's Conv1D
            merged[f"{name}.weight"] = (weight.float() + change).to(weight.dtype)
    return merged


def _check_layers(model: PreTrainedModel) -> None:
    """Make the weights of an adapter float32. Raises InputError if it changes layers that are not linear."""
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and not isinstance(layer.base_layer, nn.Linear | Conv1D):
            raise InputError(
                f"{model.name_or_path}: expected adapters of linear layers, got one of {name} "
                f"({type(layer.base_layer).__name__}). Name others: --lora_target_modules q_proj,k_proj,v_proj,o_proj"
            )
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
