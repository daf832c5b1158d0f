"""Frozen weights in 4 bits: Dettmers et al., 2023, "QLoRA: Efficient Finetuning of Quantized LLMs".

A weight is the nearest of 16 values (NF4), times the maximum of its block of 64; the maxima are in 8 bits themselves. A
layer computes with a copy of its weight in 16 or 32 bits, made for each call. The package bitsandbytes has the kernels.
"""

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PreTrainedModel

from rqa.errors import InputError

BLOCK, NESTED_BLOCK = 64, 256  # weights with one maximum, maxima with one maximum
TABLES_BYTES = 4 * (16 + 256 + 1)  # of a layer: the values of 4 and of 8 bits, the mean of the maxima


def quantize(model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
    """Replace the linear layers of a model by layers in 4 bits, on the device of this process.

    Raises InputError if there are none: GPT-2 has layers of another class.
    """
    layer_classes: Any = import_module("bitsandbytes.nn")  # takes seconds
    layers, device = quantized_layers(model), PartialState().device
    if not layers:
        raise InputError(
            f"--load_in_4bit: expected linear layers with multiples of {BLOCK} inputs, {model.name_or_path} has none. "
            "Remove the flag"
        )
    for name, layer in layers.items():
        options = {"bias": layer.bias is not None, "compute_dtype": compute_dtype, "quant_type": "nf4"}
        with torch.device("meta"):
            quantized: Any = layer_classes.Linear4bit(layer.in_features, layer.out_features, **options)
        weight = layer_classes.Params4bit(layer.weight.data, quant_type="nf4", module=quantized)
        quantized.weight, quantized.bias = weight.to(device), layer.bias
        # On a CPU with AVX-512 the first call in evaluation would change the weight: its maxima lose bits.
        quantized.support_avx512bf16_for_cpu = False
        quantized.register_state_dict_post_hook(_leave_out_statistics)
        model.set_submodule(name, quantized.train(layer.training))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft reads it


def quantized_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the layers that `quantize` replaces, by name: all linear ones but the output layer.

    T5 reads the dtype of its layers "wo", which stay as they are. So do layers whose inputs are not a multiple of
    BLOCK: with AVX-512 the CPU kernel of bitsandbytes (0.50.2) multiplies their values by maxima of other blocks.
    """
    output, kept = model.get_output_embeddings(), {*(model._keep_in_fp32_modules or ())}
    return {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear
        and layer is not output
        and layer.in_features % BLOCK == 0
        and not kept & {*name.split(".")}
    }


def quantized_bytes(number: int) -> int:
    """Return the bytes of a matrix of this many weights in 4 bits."""
    blocks = math.ceil(number / BLOCK)
    return math.ceil(number / 2) + blocks + 4 * math.ceil(blocks / NESTED_BLOCK) + TABLES_BYTES


def dequantized(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the `state` of a model with its weights of 4 bits as the values that the layers compute with."""
    result = dict(state)
    for name, parameter in model.named_parameters():
        if (statistics := getattr(parameter, "quant_state", None)) is not None:
            result[name] = import_module("bitsandbytes.functional").dequantize_4bit(parameter.data, statistics)
    return result


def _leave_out_statistics(_layer: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Leave the statistics of a weight out of a state: the base checkpoint determines them."""
    for name in [name for name in state if name.startswith(f"{prefix}weight.")]:
        del state[name]
