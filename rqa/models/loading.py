"""Load checkpoints: every weight; adapters; generate without the checkpoint's generation_config."""

import logging
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device, find_device, send_to_device
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils.hub import cached_file

from rqa.atomic_files import LFS_POINTER
from rqa.distributed.hub import base_model, check_checkpoint_name, is_adapter, quiet_transformers
from rqa.distributed.pickled_weights import log_pickled, pickled_files, read_pickled
from rqa.distributed.untrusted import ADAPTER_CONFIG, check_untrusted_keys, keys_in, read_settings
from rqa.errors import InputError
from rqa.models.families import check_family
from rqa.models.lora import Lora, add_adapter, load_adapter
from rqa.models.quantization import quantize
from rqa.terminal import Progress

log = logging.getLogger(__name__)

FILE_ERRORS = (
    *(OSError, ValueError, ImportError, EOFError, pickle.UnpicklingError),
    *(SafetensorError, StrictDataclassError),
)
# Classes of transformers raise these too, for a value in a file that they do not expect.
VALUE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)
SETTINGS_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
# For a hub name with pickled weights alone transformers would request their conversion on the hub.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
# Arguments of transformers' cached_file, which then returns None if a checkpoint lacks the file.
OPTIONAL_FILE = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
# Layers and experts are built one by one before weights are compared: a damaged number would take all memory.
COUNTS, MAX_COUNT = re.compile("layer|num_.*experts"), 10_000
# The argument, and the field of the output, that holds keys and values. transformers 5.24 renamed it.
CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
LAYERS = re.compile(r"(num_|n_).*layers?|(encoder|decoder)_layers")


def load_config(name_or_path: str, kind: str) -> PreTrainedConfig:
    """Return a checkpoint's configuration, with our own choice of kernels and outputs.

    `kind` is "decoder", "encoder-decoder", or "generator" for either. Raises InputError if there is no model of this
    kind, if a file is not valid or has a key that runs code, or if the weights are quantized.
    """
    name_or_path = base_model(name_or_path)
    check_checkpoint_name(name_or_path)
    _check_settings(name_or_path)
    with _value_errors(name_or_path, kind):
        config: PreTrainedConfig = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        config._attn_implementation = config._experts_implementation = None
        config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False
    if kind != "generator":
        check_family(name_or_path, config, kind)
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise InputError(
            f"{name_or_path}: expected weights of 16 or 32 bits, got quantized ones ({method}). "
            "Use the checkpoint before its quantization, or save it dequantized"
        )
    return config


def load_model(
    auto_class: type[_BaseAutoModelClass],
    name_or_path: str,
    kind: str,
    *,
    attention: str | None = None,
    gradient_checkpointing: bool = False,
    lora: Lora | None = None,
    load_in_4bit: bool = False,
    precision: str = "no",
    trained_dtype: torch.dtype = torch.float32,
    is_trained: bool = True,
    device_map: str | Mapping[str, str | int] | None = None,
) -> PreTrainedModel:
    """Load a checkpoint, or an adapter with its base model.

    Weights that are trained are in float32: in bfloat16, steps with a small learning rate round to zero, unless the
    optimizer rounds at random; `trained_dtype` is for such an optimizer. The others are in bfloat16 if the `precision`
    is "bf16": all of them if the model is not trained, else those that `lora` freezes. With `load_in_4bit` their linear
    layers are in 4 bits, see `quantization.quantize`.
    Without `attention` the model uses sdpa, or eager attention if it has no sdpa (Gemma 2, with soft-capped scores).
    With `gradient_checkpointing` activations are computed again in the backward pass. With the `device_map` "auto", or
    one from module to device, a model that is not trained is split: see `_split`. On "meta" all files are checked, and
    no weight is read. Raises InputError if the checkpoint is not of this `kind`, is damaged, or lacks weights, which
    transformers would fill with random numbers.
    """
    config = load_config(name_or_path, kind)
    has_own_adapter, base = is_adapter(name_or_path), base_model(name_or_path)
    if has_own_adapter and lora:
        raise InputError(f"--lora_rank: {name_or_path} has an adapter, which is trained further. Remove the flag")
    is_frozen = has_own_adapter or lora is not None or not is_trained
    if load_in_4bit and not is_frozen:
        raise InputError("--load_in_4bit: weights in 4 bits cannot be trained. Set --lora_rank 16, or remove the flag")
    dtype = trained_dtype if not is_frozen else torch.bfloat16 if precision == "bf16" else torch.float32
    model: PreTrainedModel
    with Progress(f"loading {name_or_path}"), _file_errors(name_or_path, kind):
        for path in pickled_files(Path(base)):
            read_pickled(path)
        model, loading = auto_class.from_pretrained(
            base,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            experts_implementation=None,
            device_map=device_map,
            trust_remote_code=False,
            use_safetensors=None,  # preferred; pickles are read with weights_only
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in `loading` and raise an error below
        )
    if missing := sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]):
        raise InputError(
            f"{base}: expected every weight of {type(model).__name__}, the checkpoint lacks {len(missing)}: "
            + ", ".join(missing[:3])
        )
    if device_map != "meta" and pickled_files(Path(base)):
        log_pickled(base)
    if device_map != "meta" and os.environ.get("LOCAL_RANK", "0") == "0":  # other ranks of FSDP have empty weights
        _check_finite(name_or_path, model)
    if load_in_4bit:
        with Progress(f"quantizing {name_or_path}"):
            quantize(model, dtype)
    if has_own_adapter:
        load_adapter(model, Path(name_or_path))
    elif lora:
        add_adapter(model, lora)
    if device_map not in (None, "meta"):
        _split(model)
    if gradient_checkpointing:
        # The re-entrant variant loses gradients if the inputs require none, and its hooks do not work with DDP.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _check_finite(name_or_path: str, model: PreTrainedModel) -> None:
    """Raise InputError if a weight is not finite: every loss and answer would follow from it, without an error."""
    for prefix, module in model.named_modules():
        with align_module_device(module):  # weights on the CPU or on disk are read for the check
            for name, parameter in module.named_parameters(prefix, recurse=False):
                # The sum reads each weight once; it may overflow although every weight is finite.
                if not parameter.sum(dtype=torch.float32).isfinite() and (count := int((~parameter.isfinite()).sum())):
                    raise InputError(
                        f"{name_or_path}: expected finite weights, got {count} values in {name} that are not. "
                        "Use an earlier checkpoint of that run, or copy the files again"
                    )


def _split(model: PreTrainedModel) -> None:
    """Complete the hooks of a model that is split over devices, and log where its weights are.

    Accelerate moves the inputs of each layer to the device of its weights. Here the states of the encoder, and of a
    decoder before its output layer, return to the device of the inputs, where the masks that select from them are.
    Raises InputError if layers with adapters are not on a device: peft then adds empty weights.
    """
    inner = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    inner.register_forward_hook(_return_to_inputs, with_kwargs=True)
    sizes: Counter[str] = Counter()
    for parameter in model.parameters():
        sizes["CPU or disk, copied in each step" if parameter.is_meta else str(parameter.device)] += parameter.nbytes
    log.info("weights in GB: %s", ", ".join(f"{size / 1e9:.1f} on {device}" for device, size in sizes.items()))
    if any(parameter.is_meta for name, parameter in model.named_parameters() if ".lora_" in name):
        raise InputError(
            "--device_map: expected GPUs that hold all layers with adapters, got some on the CPU or disk. "
            "Use more GPUs, or merge the adapter into its base model (--merge_adapter true)"
        )


def _return_to_inputs(_module: nn.Module, args: Any, options: Any, output: Any) -> Any:
    """Return the output of a module on the device of its inputs, without its cache."""
    return send_to_device(output, find_device([args, options]), skip_keys=CACHE)


def num_embeddings(
    auto_class: type[_BaseAutoModelClass], name_or_path: str, kind: str, *, needs_weights: bool = True
) -> int:
    """Return the number of token embeddings of a checkpoint.

    Raises InputError as `load_model` does, before anything else is loaded. Of a hub name, which may need a download,
    only the configuration is checked, and of a folder without weights unless it `needs_weights`.
    """
    folder = Path(base_model(name_or_path))
    with quiet_transformers(), _value_errors(name_or_path, kind):
        if folder.is_dir() and (needs_weights or any(folder.glob("*.safetensors")) or pickled_files(folder)):
            model = load_model(auto_class, name_or_path, kind, device_map="meta")
        else:
            with torch.device("meta"):
                model = auto_class.from_config(load_config(name_or_path, kind))
        embeddings: Any = model.get_input_embeddings()
        return len(embeddings.weight)


def stored_dtype(name_or_path: str) -> torch.dtype:
    """Return the dtype of a checkpoint: that of config.json, else that of its first floating-point weight."""
    config = load_config(name_or_path, "generator")
    own = config.dtype or getattr(getattr(config, "text_config", None), "dtype", None)
    if isinstance(own, torch.dtype):
        return own
    for path in sorted(Path(name_or_path).glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # it is no mapping
                weight: Tensor = weights.get_tensor(name)
                if weight.is_floating_point():
                    return weight.dtype
    pickled = chain.from_iterable(read_pickled(path).values() for path in pickled_files(Path(name_or_path)))
    return next((weight.dtype for weight in pickled if weight.is_floating_point()), torch.float32)


def load_generation_config(name_or_path: str, config: PreTrainedConfig) -> GenerationConfig:
    """Return the generation_config.json of a checkpoint, or, without one, the values of its config.json."""
    name_or_path = base_model(name_or_path)
    with _value_errors(name_or_path, "generator"):
        if cached_file(name_or_path, "generation_config.json", **OPTIONAL_FILE) is None:
            return GenerationConfig.from_model_config(config)
        return GenerationConfig.from_pretrained(name_or_path)


def generate_ids(model: PreTrainedModel, **options: Any) -> Tensor:
    """Return the result of generate() with these options, without defaults of the checkpoint's generation_config."""
    original, model.generation_config = model.generation_config, GenerationConfig()
    try:
        ids: Tensor = model.generate(**options)  # type: ignore[operator]
        return ids
    finally:
        model.generation_config = original


def _check_settings(name_or_path: str) -> None:
    """Raise InputError unless the settings of a checkpoint are JSON objects without keys that run code.

    A folder needs a config.json and weights in safetensors files or in pytorch_model*.bin.
    """
    folder = Path(name_or_path)
    with _file_errors(name_or_path, "generator"):
        if folder.is_dir():
            _check_folder(folder)
        paths = [cached_file(name_or_path, name, **OPTIONAL_FILE) for name in SETTINGS_FILES]
    for path in paths:
        if path is not None:
            settings = read_settings(Path(path))
            if not isinstance(settings, dict):
                raise InputError(f"{path}: expected a JSON object, got {type(settings).__name__}. Copy the file again")
            check_untrusted_keys(settings, path)
            for place, key, values in keys_in(settings):
                value = values[key] if isinstance(values[key], int) else 0
                is_negative = value < 0 and LAYERS.fullmatch(key)
                if is_negative or (value > MAX_COUNT and COUNTS.search(key)):
                    raise InputError(f"{path}: expected 0 to {MAX_COUNT} in {place}, got {value}. Copy it again")


def _check_folder(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    if ADAPTER_CONFIG in names:  # transformers would load the base model that it names
        raise InputError(
            f"{folder}: expected a whole checkpoint as base model, got an adapter. "
            "Merge it into its base model with peft's merge_and_unload, and save the result"
        )
    if "config.json" not in names:
        raise InputError(f"{folder}: expected a checkpoint folder, got no config.json in it. Choose another folder")
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    if pickled and not pickled_files(folder) and not any(name.endswith(".safetensors") for name in names):
        raise InputError(
            f"{folder}: expected weights in safetensors files or pytorch_model.bin, got {pickled[0]}. "
            "Load it once with from_pretrained(FOLDER, use_safetensors=False), and save it with save_pretrained"
        )


def _damaged_file(name_or_path: str) -> str:
    """Return the name of the first safetensors file in a folder that is damaged, for a message; "" if there is none."""
    for path in sorted(Path(name_or_path).glob("*.safetensors")):
        with suppress(OSError), path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                return f"{path.name} is a pointer of Git LFS, not its content. Run git lfs pull. "
        try:
            safe_open(path, "pt")
        except (SafetensorError, OSError):
            return f"{path.name}: "
    return ""


@contextmanager
def _file_errors(name_or_path: str, kind: str, errors: tuple[type[Exception], ...] = FILE_ERRORS) -> Iterator[None]:
    """Raise the errors of libraries that read a checkpoint as InputError, in one line."""
    try:
        yield
    except InputError:
        raise
    except errors as error:
        reason = " ".join(f"{_damaged_file(name_or_path)}{error or type(error).__name__}".split())
        raise InputError(f"{name_or_path}: no {kind} can be loaded: {reason}") from error


def _value_errors(name_or_path: str, kind: str) -> AbstractContextManager[None]:
    """Raise also the errors of libraries that use values of a checkpoint as InputError."""
    return _file_errors(name_or_path, kind, (*FILE_ERRORS, *VALUE_ERRORS))
