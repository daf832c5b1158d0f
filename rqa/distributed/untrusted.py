"""Keys of a checkpoint's JSON files that make a library import, download or unpickle code.

transformers and sentence-transformers act on them although trust_remote_code is false. Such a file is an InputError.
Plain values, such as "sdpa", are allowed: models are loaded with our own choice in their place.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rqa.errors import InputError

# Every JSON file with settings: of models, tokenizers, processors, generation, and modules of sentence-transformers.
SETTINGS_FILES = ("*config*.json", "modules.json")
ADAPTER_CONFIG = "adapter_config.json"
LIBRARY_CLASSES = ("sentence_transformers.", "torch.nn.")  # classes that settings may name by their module


class _Rule(NamedTuple):
    """Keys, the values that are refused, given the mapping that has the key, and the reason."""

    keys: frozenset[str]
    is_refused: Callable[[Any, Mapping[str, Any]], bool]
    reason: str


def check_untrusted_keys(config: Any, path: str | Path) -> None:
    """Raise InputError for the first key, at any depth, that runs code. `config` is the content of the file `path`."""
    for place, key, mapping in keys_in(config):
        for rule in RULES:
            if key in rule.keys and rule.is_refused(mapping[key], mapping):
                raise InputError(
                    f"{path}: expected settings that run no code, got {place} {_short(mapping[key])}: {rule.reason}"
                )


def check_untrusted_folder(folder: Path) -> None:
    """Raise InputError if a settings file in a checkpoint folder, or below it, is not JSON or has a key that runs code.

    An adapter is refused too: with peft installed, transformers loads the base model that the adapter names.
    """
    for path in sorted({path for pattern in SETTINGS_FILES for path in folder.rglob(pattern)}):
        if path.name == ADAPTER_CONFIG:
            raise InputError(
                f"{path}: expected a whole checkpoint, got an adapter. "
                "Merge it into its base model with peft's merge_and_unload, and save the result"
            )
        check_untrusted_keys(read_settings(path), path)


def read_settings(path: Path) -> Any:
    """Return the content of a JSON file. Raises InputError if it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got {error or 'too many levels'}. Copy the file again") from error


def keys_in(config: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the place of each key, the key, and the mapping that has it."""
    parts = [("", config)]
    while parts:
        place, part = parts.pop()
        if isinstance(part, Mapping):
            for key, value in part.items():
                yield f"{place}{key}", key, part
                parts.append((f"{place}{key}.", value))
        elif isinstance(part, list):
            parts += [(f"{place}{i}.", item) for i, item in enumerate(part)]


def _texts(value: Any) -> list[str]:
    """Return a text, or the texts in a list or mapping: some keys have one value for each part of a model."""
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]


def _names_hub_kernel(value: Any, _mapping: Mapping[str, Any]) -> bool:
    return any("/" in text for text in _texts(value))


def _is_set(value: Any, _mapping: Mapping[str, Any]) -> bool:
    return bool(value)


def _is_false(value: Any, _mapping: Mapping[str, Any]) -> bool:
    return value is not None and not value


def _names_foreign_class(value: Any, _mapping: Mapping[str, Any]) -> bool:
    return any("." in text and not text.startswith(LIBRARY_CLASSES) for text in _texts(value))


def _is_foreign_module(value: Any, mapping: Mapping[str, Any]) -> bool:
    """Return True for a class of a module in modules.json or of a route in router_config.json."""
    return bool({"path", "structure"} & mapping.keys()) and _names_foreign_class(value, mapping)


def _has_no_class(_value: Any, mapping: Mapping[str, Any]) -> bool:
    """Return True if transformers has no class for the model, so that it would need the checkpoint's own code."""
    from transformers import CONFIG_MAPPING  # not needed for most files

    return "model_type" in mapping and str(mapping["model_type"]) not in CONFIG_MAPPING


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_ATTENTION = {"_attn_implementation", "_attn_implementation_internal", "attn_implementation"}
_EXPERTS = {"_experts_implementation", "_experts_implementation_internal", "experts_implementation"}
_KERNELS = {"use_kernels", "allow_all_kernels", "kernel_config", "kernel_mapping"}
_DOWNLOADED = "the package kernels would download and run that code. Remove the key"
_FOREIGN = "the class is in neither sentence_transformers nor torch.nn. Use a checkpoint without own code"
RULES = (
    _Rule(frozenset(_ATTENTION | _EXPERTS), _names_hub_kernel, _DOWNLOADED),
    _Rule(frozenset(_KERNELS), _is_set, _DOWNLOADED),
    _Rule(frozenset({"type", "types"}), _is_foreign_module, _FOREIGN),
    # Dense and WordEmbeddings of sentence-transformers. Another activation function would be replaced by Tanh.
    _Rule(frozenset({"tokenizer_class", "activation_function"}), _names_foreign_class, _FOREIGN),
    # In the model_kwargs of an encoder; the default is true.
    _Rule(frozenset({"weights_only"}), _is_false, "unpickled weights can run code. Remove the key"),
    _Rule(
        frozenset({"auto_map"}),
        _has_no_class,
        "the installed transformers has no class for this model_type. Use a newer version, or another checkpoint",
    ),
)
