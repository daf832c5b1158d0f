"""The tables of models and GPUs in docs/distributed.md: the doctor's estimates for public sizes, without weights.

    python tests/helpers/which_gpu.py

It takes minutes, and writes no file.
"""

import math
from collections.abc import Mapping, Sequence
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
LORA = Lora(16, 32.0)
# By the flags, or the files of accelerate: the numbers of devices, and options. The first that fits is the fastest.
ADAPTERS: dict[str, tuple[Sequence[int], dict[str, Any]]] = {
    "`--lora_rank 16`": ([1], {"lora": LORA}),
    "`--lora_rank 16 --load_in_4bit true`": ([1], {"lora": LORA, "load_in_4bit": True}),
}
ALL_WEIGHTS: dict[str, tuple[Sequence[int], dict[str, Any]]] = {
    "`adamw`": ([1, 4, 8], {}),
    "`adamw_8bit`": ([1], {"optim": "adamw_8bit"}),
    "`adafactor`": ([1], {"optim": "adafactor"}),
    "`adamw_bf16`": ([1], {"optim": "adamw_bf16"}),
    "`zero2`": ([4, 8], {"zero": {"stage": 2, **AUTO}}),
    "`fsdp2`": ([4, 8], {"fsdp": True}),
    "`zero3`": ([4, 8], {"zero": {"stage": 3}}),
    "`zero2_offload`": ([1], {"zero": {"stage": 2, **AUTO, **OPTIMIZER}}),
    "`zero3_offload`": ([1], {"zero": {"stage": 3, "stage3_max_live_parameters": 1e9, **OPTIMIZER, **WEIGHTS}}),
}
CARDS = {"24": (1, 24), "48": (1, 48), "80": (1, 80), "4 × 80": (4, 80), "8 × 80": (8, 80)}  # number, GB
USABLE = 0.9  # share of a card: the device's context and the allocator's fragments take the rest
EVALUATION = "`evaluate.py`"
Memory = dict[tuple[str, int], tuple[float, float]]  # GB on a device and of the CPU, by setting and number of devices
REHEARSALS: dict[Any, int] = {}


def rehearse_once(model: Any, rows: Any, autocast: bool, *options: Any) -> int:
    """Return the peak of forward and backward; settings that differ elsewhere share it."""
    key = type(model), model.dtype, autocast, model.num_parameters()
    if key not in REHEARSALS:
        REHEARSALS[key] = _simulated_peak(model, rows, autocast, *options)
    return REHEARSALS[key]


_simulated_peak, rqa.doctor.memory._simulated_peak = rqa.doctor.memory._simulated_peak, rehearse_once


def estimates(name: str) -> Memory:
    """Return the memory of each setting and number of devices."""
    config, layer = MODELS[name]
    rows = [EncodedExample([[7] * 300] * 4 if config.is_encoder_decoder else [[7] * 1400], [7] * 100)]
    memory = {}
    for setting, (numbers, options) in (ADAPTERS | ALL_WEIGHTS).items():
        options = options | ({"fsdp": [layer]} if "fsdp" in options else {})
        for number in numbers:
            shared = {"processes": number, "gradient_checkpointing": True, "accumulation": 8}
            _, held = training_memory(config, rows, **shared, **options)
            host = held.pop("host", 0)
            memory[setting, number] = sum(held.values()) / 1e9, host / 1e9
    evaluated = evaluation_memory(config, rows * 8, max_new_tokens=512)
    memory[EVALUATION, 1] = sum(evaluated.values()) / 1e9, 0.0
    return memory


def memory_table(memory: Mapping[str, Memory]) -> str:
    """Return the table of GB, a row for each setting."""
    lines = [f"| | devices | {' | '.join(memory)} |", "|---|---" + "|---" * len(memory) + "|"]
    rows = {key: [memory[name][key] for name in memory] for key in next(iter(memory.values()))}
    for (setting, number), each in rows.items():
        cells = [f"{device:.1f}" + (f" + {host:.0f}" if host else "") for device, host in each]
        lines.append(f"| {setting} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fitting_table(memory: Mapping[str, Memory]) -> str:
    """Return the table of the fastest way to train all weights of a model on each card."""
    lines = [f"| | {' | '.join(f'{card} GB' for card in CARDS)} |", "|---" * (1 + len(CARDS)) + "|"]
    for name, of_model in memory.items():
        cells = []
        for number, size in CARDS.values():
            fits = [s for s in ALL_WEIGHTS if of_model.get((s, number), (math.inf, 0))[0] <= USABLE * size]
            cells.append(fits[0] if fits else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    memory = {name: estimates(name) for name in MODELS}
    print(memory_table(memory), fitting_table(memory), sep="\n\n")


if __name__ == "__main__":
    main()
