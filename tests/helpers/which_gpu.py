"""The README's tables of models and GPUs: the doctor's estimates for public sizes, without weights.

    python tests/helpers/which_gpu.py

It takes minutes, and writes no file.
"""

import sys
from typing import Any

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, T5Config

import rqa.doctor.memory
from rqa.doctor.memory import evaluation_memory, training_memory
from rqa.models.lora import Lora
from rqa.prompts.collators import EncodedExample

GROUPED = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
GROUPED |= {"num_key_value_heads": 8}
QWEN = {"num_hidden_layers": 28, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28}
T5_XL = {
    "num_layers": 24,
    "d_model": 2048,
    "d_ff": 5120,
    "d_kv": 64,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
}
# Of the config.json of mistralai/Mistral-7B-Instruct-v0.2, meta-llama/Meta-Llama-3-8B, Qwen/Qwen2.5-7B, flan-t5-xl.
MODELS: dict[str, tuple[PreTrainedConfig, str]] = {
    "Mistral-7B": (MistralConfig(**GROUPED, vocab_size=32_000, sliding_window=None), "MistralDecoderLayer"),
    "Llama-3-8B": (LlamaConfig(**GROUPED, vocab_size=128_256), "LlamaDecoderLayer"),
    "Qwen2.5-7B": (Qwen2Config(**QWEN, num_key_value_heads=4, vocab_size=152_064), "Qwen2DecoderLayer"),
    "flan-t5-xl": (T5Config(**T5_XL, vocab_size=32_128, tie_word_embeddings=False), "T5Block"),
}
AUTO = {"reduce_bucket_size": "auto"}
OPTIMIZER, WEIGHTS = ({f"offload_{part}": {"device": "cpu"}} for part in ("optimizer", "param"))
# Flags by name, with the number of devices. The first that fits is the fastest.
SETTINGS = {
    "AdamW": (1, {}),
    "Adafactor": (1, {"optim": "adafactor"}),
    "adapter": (1, {"lora": Lora(16, 32.0)}),
    "ZeRO-2 offload": (1, {"zero": {"stage": 2, **AUTO, **OPTIMIZER}}),
    "ZeRO-3 offload": (1, {"zero": {"stage": 3, "stage3_max_live_parameters": 1e9, **OPTIMIZER, **WEIGHTS}}),
    "ZeRO-2": (None, {"zero": {"stage": 2, **AUTO}}),
    "ZeRO-3": (None, {"zero": {"stage": 3}}),
    "FSDP2": (None, {"fsdp": True}),
}
CARDS = {"24": (1, 24), "48": (1, 48), "80": (1, 80), "4 x 80": (4, 80), "8 x 80": (8, 80)}  # number, GB
REHEARSALS: dict[Any, int] = {}
USABLE = 0.9  # share of a card: the device's context and the allocator's fragments take the rest


def rehearse_once(model: Any, rows: Any, autocast: bool, *options: Any) -> int:
    """Return the peak of forward and backward; settings that differ elsewhere share it."""
    key = type(model), model.dtype, autocast, model.num_parameters()
    if key not in REHEARSALS:
        REHEARSALS[key] = _simulated_peak(model, rows, autocast, *options)
    return REHEARSALS[key]


_simulated_peak, rqa.doctor.memory._simulated_peak = rqa.doctor.memory._simulated_peak, rehearse_once


def estimates(name: str) -> dict[tuple[str, int], tuple[float, float]]:
    """Return GB on a device and GB of CPU memory for each setting and number of devices."""
    config, layer = MODELS[name]
    is_fid = config.is_encoder_decoder
    rows = [EncodedExample([[7] * 300] * 4 if is_fid else [[7] * 1400], [7] * 100)]
    found = {}
    for setting, (devices, options) in SETTINGS.items():
        options = options | ({"fsdp": [layer]} if "fsdp" in options else {})
        for number in (devices,) if devices else (4, 8):
            shared = {"processes": number, "gradient_checkpointing": True, "accumulation": 8}
            _, held = training_memory(config, rows, **shared, **options)
            host = held.pop("host", 0)
            found[setting, number] = sum(held.values()) / 1e9, host / 1e9
    evaluated = evaluation_memory(config, rows * 8, max_new_tokens=512)
    found["evaluate.py", 1] = sum(evaluated.values()) / 1e9, 0.0
    return found


def fitting(found: dict[tuple[str, int], tuple[float, float]], card: str) -> str:
    """Return the settings that fit on the devices of a card."""
    number, size = CARDS[card]
    names = [
        setting
        for (setting, devices), (used, _) in found.items()
        if devices == number and used <= USABLE * size and setting != "evaluate.py"
    ]
    return ", ".join(names) or "-"


def main() -> None:
    """Print both tables."""
    found = {}
    for name in MODELS:
        found[name] = estimates(name)
        print(name, found[name], file=sys.stderr)
    keys = list(found["flan-t5-xl"])
    print("| model |", " | ".join(f"{setting} on {number}" for setting, number in keys), "|")
    print("|---" * (len(keys) + 1) + "|")
    for name, by_setting in found.items():
        cells = [f"{used:.1f}" + (f" + {host:.0f}" if host else "") for used, host in by_setting.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print()
    print("| model |", " | ".join(f"{card} GB" for card in CARDS), "|")
    print("|---" * (len(CARDS) + 1) + "|")
    for name, by_setting in found.items():
        print(f"| {name} | {' | '.join(fitting(by_setting, card) for card in CARDS)} |")


if __name__ == "__main__":
    main()
