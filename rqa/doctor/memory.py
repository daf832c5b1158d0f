"""Estimates before a training run: sampled rows, steps, positions, and memory on one device.

Weights, gradients and optimizer states are counted by the rules of torch and of DeepSpeed. Forward and backward are
simulated in torch's FakeTensorMode, without content; after every operation the sizes of live storages are added up.

B examples, L positions, M positions of all passages of an example, T answer tokens, V vocabulary, P parameters.
"""

import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutput
from transformers.pytorch_utils import Conv1D

from rqa.data.passage_selection import GeneratorInput, select_passages
from rqa.data.records import Example, Passage, distinct
from rqa.distributed.deepspeed_config import config_precision, merge_configs, read_ds_config, resolve_config
from rqa.errors import InputError
from rqa.models.fid import encoder_calls, evenly_divided
from rqa.models.loading import CACHE
from rqa.models.lora import Lora, layers_with_adapters
from rqa.models.quantization import quantized_bytes, quantized_layers
from rqa.prompts.collators import EncodedExample
from rqa.terminal import Progress, track
from rqa.training.batching import BatchLayout, num_positions, steps_per_epoch, training_batches
from rqa.training.optim import OPTIMIZERS, OptimizerName

Rows = Sequence[EncodedExample]
Source = Sequence[Passage] | Literal["gold", "ctxs"]  # of the passages that are read; a sequence is a corpus

OFFLOADED_PARTS = ("offload_param", "offload_optimizer")
EXTRA_CANDIDATES = 10  # passages after the first k, which replace dropped gold: as many as the recipes retrieve

# Without content, transformers could take ids for packed rows, and make a mask that sdpa's causal attention needs not.
_WITHOUT_MASK = "rqa_sdpa_without_mask"
AttentionInterface.register(_WITHOUT_MASK, sdpa_attention_forward)


def sample_inputs(
    split: str, examples: Sequence[Example], source: Source, *, k: int, seed: int = 0, **selection: Any
) -> list[GeneratorInput]:
    """Return the generator inputs of the first epoch, or of evaluation; `selection` is for `select_passages`.

    Random passages of a corpus stand in for retrieved ones. In training `k` of them, the most, are added to the gold.
    """
    rng = random.Random(f"{seed}/{split}/stand-ins")
    inputs = []
    for example in examples:
        candidates: Sequence[Passage] = ()
        if source == "ctxs":
            candidates = example.contexts[: k + EXTRA_CANDIDATES]
        elif source != "gold":
            candidates = [source[rng.randrange(len(source))] for _ in range(k + EXTRA_CANDIDATES)]
        if split == "train":
            inputs.append(select_passages(example, candidates, k=k, seed=seed, epoch=0, **selection))
        else:
            passages = candidates if source == "ctxs" else distinct([*example.gold_passages, *candidates])
            inputs.append(GeneratorInput.from_ranked(example, passages[: None if source == "gold" else k]))
    return inputs


def forecast_epoch(
    rows: Rows,
    num_examples: int,
    layout: BatchLayout,
    group_by_length: bool = True,
    seed: int = 0,
    is_fid: bool = False,
    encoder_batch_size: int | None = None,
) -> tuple[dict[str, int], Rows]:
    """Return counts of the first epoch as `rqa.training.batching` plans it, for all ranks, and its largest micro-batch.

    `rows` are those of all examples in order, or a sample from which the rows of the epoch are drawn with replacement.
    """
    rng = random.Random(f"{seed}/forecast")
    if len(rows) < num_examples:
        rows = [rng.choice(rows) for _ in range(num_examples)]
    steps = steps_per_epoch(num_examples, layout)
    micro_batches: list[Rows] = []
    order: dict[str, Any] = {"seed": seed, "group_by_length": group_by_length}
    for rank in track(range(layout.processes), "planning an epoch", unit="ranks"):
        own = replace(layout, rank=rank)
        plan = training_batches(
            num_examples, own, lambda _, at: [rows[i] for i in at], lambda batch: {"rows": batch}, **order
        )
        micro_batches += [batch["rows"] for step in islice(plan, steps) for batch in step if batch["rows"]]

    def positions(micro_batch: Rows) -> int:
        if not is_fid:
            return num_positions([len(row) for row in micro_batch])
        calls = lengths_of_calls(micro_batch, encoder_batch_size)
        return sum(map(num_positions, calls)) + num_positions([len(row.answer) for row in micro_batch])

    counts = {"tokens": sum(map(len, rows)), "targets": sum(len(row.answer) for row in rows)}
    epoch = {"steps": steps, **counts, "positions": sum(map(positions, micro_batches))}
    return epoch, max(micro_batches, key=positions)


def estimate_training(
    rows: Mapping[str, Rows],
    num_examples: int,
    config: PreTrainedConfig,
    layout: BatchLayout,
    *,
    num_steps: Callable[[int], int],
    max_prompt_length: int,
    max_passage_length: int,
    max_answer_length: int,
    group_by_length: bool,
    seed: int,
    precision: str,
    encoder_batch_size: int | None,
    per_device_eval_batch_size: int,
    generation_limit: int,
    **memory_options: Any,
) -> dict[str, Any]:
    """Return the estimates of an epoch and of memory, as printed and written; `memory_options`: see `training_memory`.

    "host_bytes" is the memory of the CPU for each process, "evaluation_bytes" that of recipes/evaluate.py on a device.

    `rows` are those of some or all examples of each file. `num_steps` returns the steps of the run, given those of an
    epoch.
    """
    is_fid = config.is_encoder_decoder
    train, others = rows["train"], [row for split in rows if split != "train" for row in rows[split]]
    evaluated = sorted(others or train, key=lambda row: -row.num_prompt_tokens)[:per_device_eval_batch_size]
    epoch, largest = forecast_epoch(train, num_examples, layout, group_by_length, seed, is_fid, encoder_batch_size)
    longest_prompt = max(len(row.prompts) for row in train) * max_passage_length if is_fid else max_prompt_length
    options: dict[str, Any] = {"precision": precision, "encoder_batch_size": encoder_batch_size}
    memory_options |= options
    memory_options |= {"accumulation": layout.accumulation, "processes": layout.processes}
    parameters, memory = training_memory(config, largest, **memory_options)
    return {
        "epoch": {**epoch, "padded": num_examples * (longest_prompt + max_answer_length)},
        "steps": num_steps(epoch["steps"]),
        "micro_batch": f"at most {len(largest)} rows, {sum(map(len, largest))} tokens together",
        "precision": precision,
        "parameters": parameters,
        "host_bytes": memory.pop("host", 0),
        "evaluation_bytes": evaluation_memory(config, evaluated, max_new_tokens=generation_limit, **options),
        "bytes": memory,
    }


def planned_sharding(
    accumulation: int,
    *,
    bf16: bool | None,
    fp16: bool,
    deepspeed: str,
    flags: Mapping[str, Any],
    num_processes: int | None,
    accelerate_config: str = "",
) -> tuple[int, dict[str, Any]]:
    """Return the processes, and the precision and sharding of a run, for options of `make_accelerator`.

    `accelerate_config` is a file of `accelerate launch`. Without a setting there is one process, and the precision is
    bf16. The dictionary has options of `training_memory`. Raises InputError if settings contradict.
    """
    launcher = _read_launcher(accelerate_config) if accelerate_config else {}
    processes = num_processes or int(launcher.get("num_processes") or 1)
    precision = "fp16" if fp16 else {True: "bf16", False: "no", None: None}[bf16]
    precision = precision or launcher.get("mixed_precision")
    config, source = (read_ds_config(deepspeed), f"--deepspeed {deepspeed}") if deepspeed else ({}, "")
    settings = launcher.get("deepspeed_config", {}) if launcher.get("distributed_type") == "DEEPSPEED" else {}
    if settings:
        file = settings.get("deepspeed_config_file")
        parts = {part: {"device": settings.get(f"{part}_device", "none")} for part in OFFLOADED_PARTS}
        own = read_ds_config(file) if file else {"zero_optimization": {"stage": settings.get("zero_stage", 2), **parts}}
        config, source = merge_configs(config, source, own, accelerate_config), source or accelerate_config
    if source:
        precision = precision or config_precision(config) or "bf16"
        flags = {"gradient_accumulation_steps": accumulation, **flags}
        resolved = resolve_config(config, source, flags, processes=processes, precision=precision)
        return processes, {"precision": precision, "zero": resolved["zero_optimization"]}
    sharding: dict[str, Any] = {"precision": precision or "bf16"}
    if launcher.get("distributed_type") == "FSDP":
        layers = launcher.get("fsdp_config", {}).get("fsdp_transformer_layer_cls_to_wrap") or ""
        sharding["fsdp"] = layers.replace(",", " ").split()
    return processes, sharding


def _read_launcher(path: str) -> dict[str, Any]:
    """Return a configuration of `accelerate launch`. Raises InputError if it cannot be read."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: expected a file of `accelerate config`, got an error: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a file of `accelerate config`, got {type(config).__name__}")
    return config


def training_memory(
    config: PreTrainedConfig,
    rows: Rows,
    *,
    optim: OptimizerName = "adamw",
    precision: str = "bf16",
    accumulation: int = 1,
    processes: int = 1,
    zero: Mapping[str, Any] | None = None,
    fsdp: Sequence[str] | None = None,
    gradient_checkpointing: bool = False,
    lora: Lora | None = None,
    load_in_4bit: bool = False,
    encoder_batch_size: int | None = None,
) -> tuple[int, dict[str, int]]:
    """Return P, and the peak of memory on one device in bytes, by use.

    `rows` are the largest micro-batch, `precision` is "no", "bf16" or "fp16", `zero` is the block zero_optimization
    of DeepSpeed's JSON, `fsdp` are the classes of the layers that FSDP2 gathers one by one. "activations" are all
    tensors of forward and backward except gradients, with the copies of the weights in 16 bits. With `lora` the weights
    are frozen, in 16 bits if the precision is "bf16"; with `load_in_4bit` those of linear layers are in 4 bits.
    Activations are left out for models that cannot be simulated, because their operations depend on the content
    (mixtures of experts, LED). "communication" is the copies of weights or gradients that DDP, ZeRO and FSDP make. With
    ZeRO-Offload "host" is the memory of the CPU for this process, which is not on the device.

    Measured on a CPU (Llama, GPT-2, T5 and BART of 21 to 32 million parameters in float32 and bfloat16, AdamW and
    Adafactor, gradient checkpointing), the resident set grew by 1.00 to 1.06 of the estimate. For ZeRO-1, -2 and -3 of
    one of them on two ranks it was 1.07 to 1.12: 70 MB are not tensors. No GPU was measured: its context, allocator and
    kernels need more, and T5's attention may need less. Generation is in `evaluation_memory`.
    """
    is_sharded = zero is not None or fsdp is not None
    is_half = is_sharded and precision != "no"
    with Progress("estimating memory"), FakeTensorMode():
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        frozen_in_16_bits = lora is not None and precision == "bf16"
        trained_in_16_bits = lora is None and OPTIMIZERS[optim].weights == "bfloat16"
        dtype = torch.bfloat16 if is_half or frozen_in_16_bits or trained_in_16_bits else torch.float32
        # With eager a mixture of experts fails without a page of log.
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype, experts_implementation="eager")  # type: ignore[no-untyped-call]
        if model.config._attn_implementation == "sdpa" and not config.is_encoder_decoder:
            model.set_attn_implementation(_WITHOUT_MASK)
        in_4_bits = quantized_layers(model).values() if load_in_4bit else ()
        if lora:
            _add_adapter(model, lora, torch.bfloat16 if is_half else torch.float32)
        total = sum(parameter.numel() for parameter in model.parameters())
        statistics = sum(_quantize(layer) for layer in in_4_bits)
        model.train()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        shapes = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
        trained, states = sum(shape.numel() for shape in shapes), OPTIMIZERS[optim].state_bytes(shapes)
        if fsdp is not None:
            held = _held_by_fsdp(model, fsdp, trained, states, precision, processes)
        elif zero is None:
            weights = statistics + sum(parameter.nbytes for parameter in model.parameters())
            gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
            buckets = {"communication": gradients} if processes > 1 else {}  # DDP's, of all gradients
            held = {"weights": weights, "gradients": gradients, "optimizer": states, **buckets}
        else:
            held = _held_by_zero(total, shapes, states, 2 if is_half else 4, processes, zero)
        # With accumulation the gradients exist throughout. Without it they appear while the activations are freed.
        late_gradients = held["gradients"] if accumulation == 1 and not is_sharded else 0
        autocast = precision != "no" and not is_sharded
        try:
            peak = _simulated_peak(model, rows, autocast, late_gradients > 0, encoder_batch_size)
        except RuntimeError:  # torch's error if the shape of a result depends on the content
            return total, held
    # DeepSpeed's gradients in float32
    in_optimizer_step = 4 * trained // processes if is_half and zero and held["optimizer"] else 0
    return total, held | {"activations": max(peak - late_gradients, in_optimizer_step, 0)}


def evaluation_memory(
    config: PreTrainedConfig,
    rows: Rows,
    *,
    max_new_tokens: int,
    precision: str = "bf16",
    encoder_batch_size: int | None = None,
) -> dict[str, int]:
    """Return the peak of memory on one device in bytes, by use, while a batch of `rows` is answered.

    `rows` are the longest prompts. The cache is that of answers of `max_new_tokens`. A precision of "bf16" has weights
    in 16 bits, others in 32. Only "weights" are known of models that cannot be simulated.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with Progress("estimating memory"), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype, experts_implementation="eager")  # type: ignore[no-untyped-call]
        model.eval()
        weights = {"weights": sum(parameter.nbytes for parameter in model.parameters())}
        try:
            peak, cache = _generation_peak(model, rows, 1, encoder_batch_size)
            _, full_cache = _generation_peak(model, rows, max_new_tokens, encoder_batch_size)
        except RuntimeError:  # as in `training_memory`
            return weights
    return weights | {"cache": full_cache, "activations": peak - cache}


def _generation_peak(
    model: PreTrainedModel, rows: Rows, num_new: int, encoder_batch_size: int | None
) -> tuple[int, int]:
    """Return the peak of memory while prompts and `num_new` tokens are read, and the cache after it, in bytes."""
    tally = _Tally([*model.parameters(), *model.buffers()])
    options: dict[str, Any] = {}
    with tally:
        if model.config.is_encoder_decoder:
            memory, options["attention_mask"] = _fid_memory(model, rows, encoder_batch_size)
            options["encoder_outputs"] = BaseModelOutput(last_hidden_state=memory)
            options["decoder_input_ids"] = torch.zeros(len(rows), num_new, dtype=torch.long)
            del memory
        else:
            length = max(row.num_prompt_tokens for row in rows) + num_new - 1
            options = {"input_ids": torch.zeros(len(rows), length, dtype=torch.long), "logits_to_keep": 1}
        cache = getattr(model(**options, use_cache=True), CACHE)
        options.clear()
    peak, live = tally.peak, tally.live
    del cache  # until here it was live
    return peak, live


class _AdaptedLinear(nn.Module):
    """A layer with a low-rank adapter, as peft computes it; peft's own cannot be built in FakeTensorMode."""

    def __init__(self, layer: nn.Linear | Conv1D, lora: Lora, dtype: torch.dtype) -> None:
        super().__init__()
        rows, columns = layer.weight.shape
        num_in, num_out = (columns, rows) if isinstance(layer, nn.Linear) else (rows, columns)
        self.layer, self.dropout = layer, nn.Dropout(lora.dropout) if lora.dropout else nn.Identity()
        self.a = nn.Linear(num_in, lora.rank, bias=False, dtype=dtype)
        self.b = nn.Linear(lora.rank, num_out, bias=False, dtype=dtype)
        self.scaling = lora.alpha / lora.rank

    @property
    def weight(self) -> Tensor:
        """The weight of the layer: T5 reads its dtype."""
        return self.layer.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of layer and adapter."""
        result: Tensor = self.layer(inputs)
        change = self.b(self.a(self.dropout(inputs.to(self.a.weight.dtype)))) * self.scaling
        total: Tensor = (result + change).to(result.dtype)
        return total


def _add_adapter(model: PreTrainedModel, lora: Lora, dtype: torch.dtype) -> None:
    """Freeze a model, and add adapters of `dtype`."""
    model.requires_grad_(False)
    for name, layer in layers_with_adapters(model, lora).items():
        model.set_submodule(name, _AdaptedLinear(layer, lora, dtype))


class _QuantizedLinear(nn.Linear):
    """A layer in 4 bits: each call makes a copy of its weight. Only the weight is kept for the backward pass."""

    dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        """Return the output of the layer."""
        values: Tensor = _LinearIn4Bits.apply(input.to(self.dtype), self)  # type: ignore[no-untyped-call]
        return (values if self.bias is None else values + self.bias).to(input.dtype)


class _LinearIn4Bits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return inputs @ inputs.new_empty(layer.in_features, layer.out_features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient @ gradient.new_empty(ctx.layer.out_features, ctx.layer.in_features), None


def _quantize(layer: Any) -> int:
    """Replace the weight of a linear layer by one in 4 bits, and return the bytes of its statistics."""
    number = layer.weight.numel()
    layer.__class__, layer.dtype = _QuantizedLinear, layer.weight.dtype
    layer.weight = nn.Parameter(torch.empty(-(-number // 2), 1, dtype=torch.uint8), requires_grad=False)
    return quantized_bytes(number) - int(layer.weight.nbytes)


def _held_by_zero(
    total: int, shapes: Sequence[torch.Size], states: int, size: int, processes: int, zero: Mapping[str, Any]
) -> dict[str, int]:
    """Return the bytes of ZeRO, with weights and gradients of `size`: Rajbhandari et al., 2020, "ZeRO", section 3.

    Of `total` weights those of the `shapes` are trained. The optimizer holds the weights in float32 and its `states`.
    Offloaded parts are not on the device: with the optimizer, the CPU has the gradients too, in float32 and in `size`.
    """
    stage: int = zero["stage"]
    trained = sum(shape.numel() for shape in shapes)
    devices = {part: zero.get(part, {}).get("device") for part in OFFLOADED_PARTS}
    offloaded = {part for part, device in devices.items() if device in ("cpu", "nvme")}
    host = size * total * (devices["offload_param"] == "cpu")
    host += ((8 + size) * trained + states) * (devices["offload_optimizer"] == "cpu")
    if stage == 3:  # the weights of the layers in use
        gathered = size * min(total, int(zero.get("stage3_max_live_parameters", 1_000_000_000)))  # DeepSpeed's default
    else:
        bucket = zero.get("reduce_bucket_size", 500_000_000)  # DeepSpeed's default
        gathered = 2 * size * min(trained, 0 if bucket == "auto" else int(bucket))  # "auto" is one matrix
    no_optimizer = "offload_optimizer" in offloaded
    if no_optimizer and stage < 3:  # one gradient at a time is copied
        largest = size * max(shape.numel() for shape in shapes)
        gathered, host = gathered + largest, host + largest * processes
    return {
        "weights": 0 if "offload_param" in offloaded else size * total // (processes if stage == 3 else 1),
        "gradients": 0 if no_optimizer else size * trained // (processes if stage > 1 else 1),
        "optimizer": 0 if no_optimizer else (4 * trained + states) // processes,
        "communication": gathered,
    } | ({"host": host // processes} if host else {})


def _held_by_fsdp(
    model: PreTrainedModel, layers: Sequence[str], trained: int, states: int, precision: str, processes: int
) -> dict[str, int]:
    """Return the bytes of FSDP2: all is sharded; the layer in use, the next one and all other weights are gathered."""
    size = 4 if precision == "no" else 2
    total = sum(parameter.numel() for parameter in model.parameters())
    blocks = [module for module in model.modules() if type(module).__name__ in layers]
    if not blocks:
        names = ", ".join(sorted(model._no_split_modules or ()))
        raise InputError(
            f"fsdp_transformer_layer_cls_to_wrap: expected the layers of {type(model).__name__} ({names}), "
            f"got {', '.join(layers) or 'none'}. Change the file of accelerate"
        )
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    frozen_size = 2 if precision == "bf16" else 4
    return {
        "weights": (4 * trained + frozen_size * (total - trained)) // processes,
        "gradients": 4 * trained // processes,
        "optimizer": states // processes,
        "communication": size * (total - sum(sizes) + 2 * max(sizes)) if processes > 1 else 0,
    }


def _simulated_peak(
    model: PreTrainedModel, rows: Rows, autocast: bool, keep_gradients: bool, encoder_batch_size: int | None
) -> int:
    """Return the peak of memory of forward and backward in bytes, without the weights. Needs FakeTensorMode."""
    for parameter in () if keep_gradients else model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))  # type: ignore[no-untyped-call]
    tally = _Tally([*model.parameters(), *model.buffers()])
    with tally:
        # The fake tensors are on the CPU; its autocast applies to the same products.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            is_fid = model.config.is_encoder_decoder
            logits = _fid_logits(model, rows, encoder_batch_size) if is_fid else _logits(model, rows)
            targets = logits.new_zeros(len(logits), dtype=torch.long)
            loss = nn.functional.cross_entropy(logits.float(), targets, reduction="none").sum()
            del logits
        loss.backward()  # type: ignore[no-untyped-call]
    return tally.peak


def _logits(model: PreTrainedModel, rows: Rows) -> Tensor:
    """Return (n, V), as `AnswerLM` does for n target tokens; here every row has the same number of them."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)  # (B, L)
    targets = -(-sum(len(row.answer) for row in rows) // len(rows))
    logits: Tensor = model(ids, use_cache=False, logits_to_keep=targets).logits
    return logits[:, -targets:].flatten(0, 1)


def _fid_memory(model: PreTrainedModel, rows: Rows, encoder_batch_size: int | None) -> tuple[Tensor, Tensor]:
    """Return encoder states (B, M, D) and their mask (B, M), as `FusionInDecoder` does."""

    def encoded(ids: Tensor) -> Any:
        return model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    states = []
    for widths in lengths_of_calls(rows, encoder_batch_size):
        ids = torch.zeros(len(widths), widths[0], dtype=torch.long)
        hidden = encoded(ids) if encoder_batch_size is None else checkpoint(encoded, ids, use_reentrant=False)
        states.append(hidden.flatten(0, 1)[: sum(widths)].clone())  # without the padding
    most = max(row.num_prompt_tokens for row in rows)
    values = torch.cat(states)
    memory = nn.functional.pad(values, (0, 0, 0, len(rows) * most - len(values))).view(len(rows), most, -1)
    return memory, torch.ones(len(rows), most, dtype=torch.long)


def _fid_logits(model: PreTrainedModel, rows: Rows, encoder_batch_size: int | None) -> Tensor:
    """Return (B·T, V), as `FusionInDecoder` does."""
    memory, mask = _fid_memory(model, rows, encoder_batch_size)
    logits: Tensor = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory),
        attention_mask=mask,
        decoder_input_ids=torch.zeros(len(rows), max(len(row.answer) for row in rows), dtype=torch.long),
        use_cache=False,
    ).logits
    return logits.flatten(0, 1).clone()  # `FusionInDecoder` copies those of the targets


def lengths_of_calls(rows: Rows, encoder_batch_size: int | None = None) -> list[Sequence[int]]:
    """Return the passage lengths of each encoder call, as `FusionInDecoder` groups them, longest first."""
    widths = sorted((len(prompt) for row in rows for prompt in row.prompts), reverse=True)
    return evenly_divided(widths, encoder_calls(widths, encoder_batch_size))


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the live storages, without those of `uncounted`; `live` is their sum in bytes, `peak` its maximum."""

    def __init__(self, uncounted: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.live = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in uncounted}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]:
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size
