"""Every architecture of the installed transformers, tiny and with random weights, against the plain computation.

    python tests/helpers/architectures.py [MODEL_TYPE …] [--output FILE]

Each family is built and compared in a process of its own, with limits of time and memory. The command writes
tests/models/ARCHITECTURES.md; with model types it prints their results only.
"""

import argparse
import multiprocessing
import os
import re
import resource
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_models import random_batch
from tiny_seq2seq import random_passages
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MoEModelOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from rqa.errors import InputError
from rqa.models.decoder import AnswerLM
from rqa.models.families import SINGLE_PROMPT_MODELS, UNPADDED_MODELS, UNSUPPORTED_MODELS, check_family
from rqa.models.fid import FusionInDecoder
from rqa.models.loading import generate_ids, num_embeddings

SECONDS = 120
MEMORY_BYTES = 6 << 30
OUTCOMES = ("exact", "different", "refused", "not built")
TABLE = Path(__file__).parents[1] / "models" / "ARCHITECTURES.md"
PAD, BOS, EOS, VOCABULARY = 0, 1, 2, 300
SIZES = {  # the first pattern that matches the whole name of a setting; 0 and None stay
    r"(.*_)?vocab_size(_per_layer_input)?": VOCABULARY,
    r"(num|n|encoder|decoder|num_hidden|num_decoder|num_encoder)_layers?": 4,
    r"(num|n)_(key_value|kv|global_key_value)_heads": 2,
    r"(.*_)?attention_heads|n_heads?|num_heads": 4,
    r"hidden_size|d_model|n_embd|dim|embedding_size|word_embed_proj_dim": 32,
    r"(qk_nope_|qk_rope_|v_|global_|swa_)?head_dim|d_kv": 8,
    r"(q|kv|o)_lora_rank": 16,
    r"(.*_)?(ffn_dim|intermediate_size|ffn_hidden_size|d_ff|n_inner)": 48,
    r"(num_|n_|moe_num_)?(local_|routed_)?experts": 4,
    r"(n|num|num_expert)_groups?": 2,
    r"topk_group": 1,
    r"num_experts_per_tok|moe_k|moe_topk|top_k_experts": 2,
    r"sliding_window": 8,
    r"initializer_range|init_std": 0.3,
    r"pad_token_id": PAD,
    r"bos_token_id": BOS,
    r"eos_token_id": EOS,
}

MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
GROUPS = {"num_experts": 4, "num_experts_per_token": 2, "num_expert_group": 2, "topk_group": 1}
LINEAR = {"linear_head_dim": 8, "linear_num_heads": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BLT = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
OWN_VALUES: dict[str, dict[str, Any]] = {
    "axk2": {"index_n_heads": 2, "index_head_dim": 16},
    "bailing_hybrid": GROUPS | LINEAR | {"mlp_layer_types": ["dense", "sparse"] * 2},
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "beam": GROUPS,
    "blt": {
        "encoder_hash_byte_group_vocab": 100, "encoder_config": BLT, "patcher_config": BLT,
        "decoder_config": BLT | {"hidden_size_global": 64},
        "global_config": BLT | {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8},
    },
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"] * 2,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "mlp_layer_types": ["moe"] * 4, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4, "o_groups": 2,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4, "num_kv_shared_layers": 0,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "sliding_window_size": 8},
    "inkling2_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "sliding_window_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8},
    "kimi_linear": GROUPS | LINEAR | {"num_expert_group": 1, "mlp_layer_types": ["dense", "sparse"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "marian": {"decoder_start_token_id": PAD, "decoder_vocab_size": VOCABULARY},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2, "attention_head_size": 8,
        "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "feed_forward_size": 48, "hash_seed": 0,
    },
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_headdim": 8, "n_mamba_heads": 8,
        "mamba_d_state": 8, "attention_head_dim": 16, "hybrid_layer_ids": [1, 3], "adapter_rank": 8, "chunk_size": 16,
    },
}  # fmt: skip
for _whole, _part in {"qwen4_exp": "qwen4_exp_text"}.items():
    OWN_VALUES[_whole] = {"text_config": OWN_VALUES[_part]}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return a configuration with the class's own defaults, but small numbers."""
    if model_type == "encoder-decoder":
        parts = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        bert = partial(CONFIG_MAPPING["bert"], **parts, intermediate_size=48, initializer_range=0.3)
        return CONFIG_MAPPING[model_type].from_encoder_decoder_configs(bert(), bert())
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**merged(small_values(config_class()), OWN_VALUES.get(model_type, {})))


def merged(values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the values of both, part by part; `own` wins."""
    parts = {name: merged(values[name], part) for name, part in own.items() if isinstance(values.get(name), dict)}
    return {**values, **own, **parts}


def small_values(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings to change, also those of the parts of a model."""
    values: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        part = getattr(type(config), "sub_configs", {}).get(name) and getattr(config, name)
        if isinstance(part, PreTrainedConfig):
            values[name] = small_values(part)
        elif name in ("pad_token_id", "bos_token_id", "eos_token_id") or (
            value and isinstance(value, int | float) and not isinstance(value, bool)
        ):
            small = next((small for pattern, small in SIZES.items() if re.fullmatch(pattern, name)), None)
            if small is not None:
                values[name] = small
    if "kv_lora_rank" in values:  # multi-head latent attention
        values["num_key_value_heads"] = values["num_attention_heads"]
    if getattr(config, "is_decoder", None) is False:
        values["is_decoder"] = True
    return values


def tiny_model(model_type: str, is_fid: bool) -> PreTrainedModel:
    """Return a model in evaluation mode, the same in each process."""
    torch.manual_seed(0)
    auto_class = AutoModelForSeq2SeqLM if is_fid else AutoModelForCausalLM
    config = tiny_config(model_type)
    if is_fid and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = BOS
    model: PreTrainedModel = auto_class.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and parameter.std() < 0.05 and "embed" not in name:  # answers depend on the prompt
                parameter.normal_(0, 0.15, generator=generator)
    return model


# Comparisons


def decoder_problems(model: PreTrainedModel, folder: Path) -> Iterator[str]:
    """Yield what differs between `AnswerLM` and the plain model."""
    ids = torch.randint(5, VOCABULARY - 5, (1, 12), generator=torch.Generator().manual_seed(9))
    changed = ids.clone()
    changed[0, -1] = 4
    before, after = (model(row, use_cache=False).logits[:, :-1] for row in (ids, changed))
    if not close(before, after):
        yield "a later token changes earlier logits"

    batch = random_batch([(9, 4), (3, 12), (14, 1), (6, 6)])
    rows = [{name: tensor[i : i + 1, :n] for name, tensor in batch.items()} for i, n in enumerate((13, 15, 15, 12))]
    alone = torch.cat([plain_loss(model, row) for row in rows])
    answer_lm = AnswerLM(model)
    losses = answer_lm(**batch)
    if not close(losses.double(), alone.double()):
        yield "another loss in a batch"
    losses.sum().backward()
    if any(not p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
        yield "a gradient is not finite"

    prompts = [row["input_ids"][0, :n].tolist() for row, n in zip(rows, (6, 3, 14, 6), strict=True)]
    mask = [[0] * (14 - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    padded = [[PAD] * (14 - len(prompt)) + prompt for prompt in prompts]
    options = {"max_new_tokens": 8, "eos_token_id": EOS, "pad_token_id": PAD}
    expected = [greedy(lambda ids: model(ids, use_cache=False).logits, prompt, 8) for prompt in prompts]
    batch = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    yield from answer_problems(expected, answer_lm.generate(**batch, **options).tolist())
    if model.config.model_type in UNPADDED_MODELS:
        answers = generate_ids(model, **batch, **options)[:, 14:].tolist()
        if not [*answer_problems(expected, answers)]:
            yield "it is one of UNPADDED_MODELS, and padding changes no answer"
    yield from export_problems(model, folder, lambda other: plain_loss(other, rows[0]), AnswerLM)


def fid_problems(model: PreTrainedModel, folder: Path) -> Iterator[str]:
    """Yield what differs between `FusionInDecoder` and the published formulation."""
    fid, batch = FusionInDecoder(model), random_passages([[9, 4, 17], [12, 8], [3]], [5, 1, 7])
    start = fid.start_id
    rows = []
    for i, answer in enumerate((5, 1, 7)):
        row = {name: tensor[i] for name, tensor in batch.items()}
        passages = [ids[mask.bool()][None] for ids, mask in zip(row["input_ids"], row["attention_mask"], strict=True)]
        rows.append(([ids for ids in passages if ids.numel()], row["labels"][:answer]))
    alone = torch.stack([textbook_loss(model, start, *row) for row in rows])
    losses = fid(**batch)
    if not close(losses.double(), alone.double()):
        yield "another loss in a batch"
    losses.sum().backward()
    if any(not p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
        yield "a gradient is not finite"

    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    together = fid.generate(**inputs, max_new_tokens=8, eos_token_id=EOS, pad_token_id=PAD).tolist()
    expected = [greedy(lambda ids, p=passages: textbook(model, p, ids), [start], 8) for passages, _ in rows]
    yield from answer_problems(expected, together)
    yield from export_problems(model, folder, lambda other: textbook_loss(other, start, *rows[0]), FusionInDecoder)


def answer_problems(expected: list[list[Tensor]], found: list[list[int]]) -> Iterator[str]:
    """Yield the first answer in a batch that is not that of the logits of each step."""
    for steps, ids in zip(expected, found, strict=True):
        if not same_answer(steps, ids):
            yield "another answer in a batch"
            return


def export_problems(
    model: PreTrainedModel, folder: Path, loss: Callable[[PreTrainedModel], Tensor], wrapper: Any
) -> Iterator[str]:
    """Yield what differs after the model is saved and loaded."""
    model.save_pretrained(folder)
    expected = loss(model)
    is_fid = wrapper is FusionInDecoder
    auto_class = AutoModelForSeq2SeqLM if is_fid else AutoModelForCausalLM
    plain, info = auto_class.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    if info["missing_keys"] or info["mismatched_keys"]:
        yield f"weights are missing after export: {sorted(info['missing_keys'])[:3]}"
    if not close(loss(plain.eval()), expected):
        yield "the exported model has another loss"
    embeddings = num_embeddings(auto_class, str(folder), "encoder-decoder" if is_fid else "decoder")
    if embeddings != model.get_input_embeddings().weight.shape[0]:
        yield f"{embeddings} embeddings before loading"
    if not close(loss(wrapper.from_pretrained(str(folder)).eval().model), expected):
        yield "the loaded model has another loss"


def plain_loss(model: PreTrainedModel, row: dict[str, Tensor]) -> Tensor:
    """Return (1,): the cross-entropy over a row alone, from all logits."""
    logits = model(row["input_ids"], use_cache=False).logits.double()
    losses = cross_entropy(logits[:, :-1].mT, row["labels"][:, 1:], reduction="none", ignore_index=-100)
    return losses.sum(-1).detach()


def textbook(model: PreTrainedModel, passages: list[Tensor], before: Tensor) -> Tensor:
    """Return the logits (1, T, V) of fusion-in-decoder: encode each passage alone, concatenate, decode."""
    states = [model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids))[0] for ids in passages]
    memory = torch.cat(states, 1)  # (1, M, D)
    mask = torch.ones(memory.shape[:2], dtype=torch.long)
    outputs = MoEModelOutput(last_hidden_state=memory)
    return model(encoder_outputs=outputs, attention_mask=mask, decoder_input_ids=before, use_cache=False).logits


def textbook_loss(model: PreTrainedModel, start: int, passages: list[Tensor], labels: Tensor) -> Tensor:
    logits = textbook(model, passages, torch.cat([labels.new_tensor([start]), labels[:-1]])[None])
    return cross_entropy(logits[0].double(), labels, reduction="sum").detach()


def greedy(logits: Callable[[Tensor], Tensor], prompt: list[int], length: int) -> list[Tensor]:
    """Return the logits of each step of greedy decoding, without a cache and without padding."""
    ids, steps = torch.tensor([prompt]), []
    for _ in range(length):
        steps.append(logits(ids)[0, -1].detach())
        ids = torch.cat([ids, steps[-1].argmax().view(1, 1)], 1)
        if ids[0, -1] == EOS:
            break
    return steps


def same_answer(expected: list[Tensor], found: list[int]) -> bool:
    """Return True if the ids are the likeliest at each step, up to rounding. After a tie the texts may differ."""
    for logits, token in zip(expected, found, strict=False):
        best = logits.argmax().item()
        if token != best:
            return bool(logits[best] - logits[token] < 1e-4 * logits.abs().max())
    return len(found) >= len(expected) and not any(id != PAD for id in found[len(expected) :])


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, expected.abs().max().item()))


# One family after the other


@dataclass(frozen=True)
class Result:
    """The `outcome` is "exact", "different", "refused" or "not built". `is_fid` is True for fusion-in-decoder."""

    model_type: str
    is_fid: bool
    class_name: str
    outcome: str
    reason: str = ""


def families() -> list[tuple[str, bool, str]]:
    """Return the model types of decoders and of encoder-decoders (True), with their classes."""
    decoders = [(name, False, made) for name, made in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()]
    return decoders + [(name, True, made) for name, made in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items()]


def compare(model_type: str, is_fid: bool, class_name: str) -> Result:
    """Return the result of a family. An unsupported family is compared too: it is refused only if it differs."""
    family = (model_type, is_fid, class_name)
    try:
        model = tiny_model(model_type, is_fid)
    except Exception as error:
        return Result(*family, "not built", one_line(error))
    reason = UNSUPPORTED_MODELS.pop(model_type, "")
    try:
        # Some classes change the kind: BartForCausalLM saves a decoder.
        refusals = [refusal(config, is_fid) for config in (tiny_config(model_type), model.config)]
        if all(refusals):
            return Result(*family, "refused", refusals[0])
        with tempfile.TemporaryDirectory() as folder:
            problems = "; ".join((fid_problems if is_fid else decoder_problems)(model, Path(folder)))
    except Exception as error:
        problems = one_line(error)
    finally:
        UNSUPPORTED_MODELS.update({model_type: reason} if reason else {})
    if reason and problems:
        return Result(*family, "refused", f"{reason} ({problems})")
    if reason:
        return Result(*family, "different", f"it is one of UNSUPPORTED_MODELS ({reason}), and it is exact")
    return Result(*family, "different" if problems else "exact", problems)


def refusal(config: PreTrainedConfig, is_fid: bool) -> str:
    """Return the message if a configuration is of another kind, without the name of the checkpoint and the fix."""
    try:
        check_family("tiny", config, "encoder-decoder" if is_fid else "decoder")
    except InputError as error:
        return str(error).partition(": ")[2].partition(". ")[0]
    return ""


def one_line(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]} ({Path(where.filename).name})"


def compare_all(chosen: Sequence[str] = ()) -> Iterator[Result]:
    """Yield the result of each family, from a process of its own with limits. This process must not have used torch."""
    context = multiprocessing.get_context("fork")
    for family in families():
        if not chosen or family[0] in chosen:
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(target=_work, args=(sender, *family), daemon=True)
            worker.start()
            sender.close()
            try:
                yield receiver.recv() if receiver.poll(SECONDS) else Result(*family, "not built", f"over {SECONDS} s")
            except EOFError:
                worker.join()
                yield Result(*family, "not built", f"the process ended with {worker.exitcode}")
            worker.kill()
            worker.join()


def _work(sender: Any, *family: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    os.nice(10)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    sender.send(compare(*family))


def table(results: Sequence[Result]) -> str:
    """Return the results as Markdown."""
    counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in OUTCOMES}
    lines = [
        "# Architectures",
        "",
        f"Each family of transformers {transformers.__version__}, tiny, with random weights in float32.",
        "Exact: the loss is plain cross-entropy, answers in a batch are those of each prompt alone, fusion-in-decoder",
        "equals the published formulation, and the exported model loads with the same loss.",
        "`python tests/helpers/architectures.py` writes this file.",
        "",
        ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) + ".",
        "",
        "| model_type | class | use | result | reason |",
        "| --- | --- | --- | --- | --- |",
    ]
    for result in results:
        use = "FiD" if result.is_fid else "decoder"
        reason = result.reason.replace("|", "\\|")
        if result.outcome == "exact" and not result.is_fid and result.model_type in UNPADDED_MODELS:
            one_by_one = result.model_type in SINGLE_PROMPT_MODELS
            reason = "answers one by one" if one_by_one else "answers in batches of equal length"
        lines.append(f"| {result.model_type} | {result.class_name} | {use} | {result.outcome} | {reason} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model_types", nargs="*")
    parser.add_argument("--output", type=Path, default=TABLE)
    options = parser.parse_args()
    results = []
    for result in compare_all(options.model_types):
        print(*astuple(result), flush=True)
        results.append(result)
    if not options.model_types:
        options.output.write_text(table(results), encoding="utf-8")
