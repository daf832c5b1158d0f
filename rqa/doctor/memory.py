"""Estimates before a training run: sampled rows, steps, positions, and memory on one device.

Weights, gradients and optimizer states are counted by the rules of torch and of DeepSpeed. Forward and backward are
simulated in torch's FakeTensorMode, without content; after every operation the sizes of live storages are added up.

B examples, L positions, M positions of all passages of an example, T answer tokens, V vocabulary, P parameters.
"""

import random
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any, Literal

import torch
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
from rqa.distributed.deepspeed_config import config_precision, read_ds_config, resolve_config
from rqa.models.fid import ENCODER_CALLS
from rqa.models.lora import Lora, layers_with_adapters
from rqa.prompts.collators import EncodedExample
from rqa.terminal import Progress, track
from rqa.training.batching import BatchLayout, num_positions, steps_per_epoch, training_batches
from rqa.training.optim import OPTIMIZERS, OptimizerName

Rows = Sequence[EncodedExample]
Source = Sequence[Passage] | Literal["gold", "ctxs"]  # of the passages that are read; a sequence is a corpus

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
        calls = encoder_calls(micro_batch, encoder_batch_size)
        return sum(map(num_positions, calls)) + num_positions([len(row.answer) for row in micro_batch])

    counts = {"tokens": sum(map(len, rows)), "targets": sum(len(row.answer) for row in rows)}
    epoch = {"steps": steps, **counts, "positions": sum(map(positions, micro_batches))}
    return epoch, max(micro_batches, key=positions)


def estimate_training(
    rows: Rows,
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
    **memory_options: Any,
) -> dict[str, Any]:
    """Return the estimates of an epoch and of memory, as printed and written; `memory_options`: see `training_memory`.

    `rows` are those of some or all examples. `num_steps` returns the steps of the run, given those of an epoch.
    """
    is_fid = config.is_encoder_decoder
    epoch, largest = forecast_epoch(rows, num_examples, layout, group_by_length, seed, is_fid, encoder_batch_size)
    longest_prompt = max(len(row.prompts) for row in rows) * max_passage_length if is_fid else max_prompt_length
    memory_options |= {"precision": precision, "encoder_batch_size": encoder_batch_size}
    memory_options |= {"accumulation": layout.accumulation, "processes": layout.processes}
    parameters, memory = training_memory(config, largest, **memory_options)
    return {
        "epoch": {**epoch, "padded": num_examples * (longest_prompt + max_answer_length)},
        "steps": num_steps(epoch["steps"]),
        "micro_batch": f"at most {len(largest)} rows, {sum(map(len, largest))} tokens together",
        "precision": precision,
        "parameters": parameters,
        "bytes": memory,
    }


def planned_sharding(
    accumulation: int, *, bf16: bool | None, fp16: bool, deepspeed: str, flags: Mapping[str, Any], processes: int
) -> tuple[str, Mapping[str, Any] | None]:
    """Return the precision, by default bf16, and DeepSpeed's zero_optimization, for options of `make_accelerator`."""
    precision = "fp16" if fp16 else {True: "bf16", False: "no", None: None}[bf16]
    if not deepspeed:
        return precision or "bf16", None
    config, source = read_ds_config(deepspeed), f"--deepspeed {deepspeed}"
    precision = precision or config_precision(config) or "bf16"
    flags = {"gradient_accumulation_steps": accumulation, **flags}
    resolved = resolve_config(config, source, flags, processes=processes, precision=precision)
    return precision, resolved["zero_optimization"]


def training_memory(
    config: PreTrainedConfig,
    rows: Rows,
    *,
    optim: OptimizerName = "adamw",
    precision: str = "bf16",
    accumulation: int = 1,
    processes: int = 1,
    zero: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    lora: Lora | None = None,
    encoder_batch_size: int | None = None,
) -> tuple[int, dict[str, int]]:
    """Return P, and the peak of memory on one device in bytes, by use.

    `rows` are the largest micro-batch, `precision` is "no", "bf16" or "fp16", `zero` is the block zero_optimization
    of DeepSpeed's JSON. "activations" are all tensors of forward and backward except gradients, with the copies of
    the weights in 16 bits. With `lora` the weights are frozen, in 16 bits if the precision is "bf16". They are left
    out for models that cannot be simulated, because their operations depend on the content (mixtures of experts,
    LED). "communication" is the copies of weights or gradients that DDP and ZeRO make.

    Measured on a CPU (Llama, GPT-2, T5 and BART of 21 to 32 million parameters in float32 and bfloat16, AdamW and
    Adafactor, gradient checkpointing), the resident set grew by 1.00 to 1.06 of the estimate. For ZeRO-1, -2 and -3 of
    one of them on two ranks it was 1.07 to 1.12: 70 MB are not tensors. No GPU was measured: its context, allocator and
    kernels need more, and T5's attention may need less. Generation, whose cache grows with its batch, is not included.
    """
    is_half = zero is not None and precision != "no"
    with Progress("estimating memory"), FakeTensorMode():
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        frozen_in_16_bits = lora is not None and precision == "bf16"
        dtype = torch.bfloat16 if is_half or frozen_in_16_bits else torch.float32
        # With eager a mixture of experts fails without a page of log.
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype, experts_implementation="eager")  # type: ignore[no-untyped-call]
        if model.config._attn_implementation == "sdpa" and not config.is_encoder_decoder:
            model.set_attn_implementation(_WITHOUT_MASK)
        if lora:
            _add_adapter(model, lora, torch.bfloat16 if is_half else torch.float32)
        model.train()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        total = sum(parameter.numel() for parameter in model.parameters())
        shapes = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
        trained, states = sum(shape.numel() for shape in shapes), OPTIMIZERS[optim].state_bytes(shapes)
        if zero is None:
            weights = sum(parameter.nbytes for parameter in model.parameters())
            buckets = {"communication": 4 * trained} if processes > 1 else {}  # DDP's, of all gradients
            held = {"weights": weights, "gradients": 4 * trained, "optimizer": states, **buckets}
        else:
            held = _held_by_zero(total, trained, states, 2 if is_half else 4, processes, zero)
        # With accumulation the gradients exist throughout. Without it they appear while the activations are freed.
        late_gradients = held["gradients"] if accumulation == 1 and zero is None else 0
        autocast = precision != "no" and zero is None
        try:
            peak = _simulated_peak(model, rows, autocast, late_gradients > 0, encoder_batch_size)
        except RuntimeError:  # torch's error if the shape of a result depends on the content
            return total, held
    in_optimizer_step = 4 * trained // processes if is_half else 0  # gradients in float32
    return total, held | {"activations": max(peak - late_gradients, in_optimizer_step, 0)}


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


def _held_by_zero(
    total: int, trained: int, states: int, size: int, processes: int, zero: Mapping[str, Any]
) -> dict[str, int]:
    """Return the bytes of ZeRO, with weights and gradients of `size`: Rajbhandari et al., 2020, "ZeRO", section 3.

    Of `total` weights some are `trained`. The optimizer holds the weights in float32 and its `states`. Offloaded
    parts are not on the device.
    """
    stage: int = zero["stage"]
    devices = {part: zero.get(f"offload_{part}", {}).get("device") for part in ("param", "optimizer")}
    offloaded = {part for part, device in devices.items() if device in ("cpu", "nvme")}
    if stage == 3:  # the weights of the layers in use
        gathered = size * min(total, int(zero.get("stage3_max_live_parameters", 1_000_000_000)))  # DeepSpeed's default
    else:
        bucket = zero.get("reduce_bucket_size", 500_000_000)  # DeepSpeed's default
        gathered = 2 * size * min(trained, 0 if bucket == "auto" else int(bucket))  # "auto" is one matrix
    return {
        "weights": 0 if "param" in offloaded else size * total // (processes if stage == 3 else 1),
        "gradients": size * trained // (processes if stage > 1 else 1),
        "optimizer": 0 if "optimizer" in offloaded else (4 * trained + states) // processes,
        "communication": gathered,
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


def _fid_logits(model: PreTrainedModel, rows: Rows, encoder_batch_size: int | None) -> Tensor:
    """Return (B·T, V), as `FusionInDecoder` does."""

    def encoded(ids: Tensor) -> Any:
        return model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    states = []
    for widths in encoder_calls(rows, encoder_batch_size):
        ids = torch.zeros(len(widths), widths[0], dtype=torch.long)
        hidden = encoded(ids) if encoder_batch_size is None else checkpoint(encoded, ids, use_reentrant=False)
        states.append(hidden.flatten(0, 1)[: sum(widths)].clone())  # without the padding
    most = max(row.num_prompt_tokens for row in rows)
    values = torch.cat(states)
    memory = nn.functional.pad(values, (0, 0, 0, len(rows) * most - len(values))).view(len(rows), most, -1)  # (B, M, D)
    logits: Tensor = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory),
        attention_mask=torch.ones(len(rows), most, dtype=torch.long),
        decoder_input_ids=torch.zeros(len(rows), max(len(row.answer) for row in rows), dtype=torch.long),
        use_cache=False,
    ).logits
    return logits.flatten(0, 1).clone()  # `FusionInDecoder` copies those of the targets


def encoder_calls(rows: Rows, encoder_batch_size: int | None = None) -> list[list[int]]:
    """Return the passage lengths of each encoder call, as `FusionInDecoder` groups them, longest first."""
    widths = sorted((len(prompt) for row in rows for prompt in row.prompts), reverse=True)
    calls = min(ENCODER_CALLS, len(widths)) if encoder_batch_size is None else -(-len(widths) // encoder_batch_size)
    return [widths[a:b] for a, b in pairwise(len(widths) * call // calls for call in range(calls + 1))]


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the live storages, without those of `uncounted`; `peak` is the maximum in bytes."""

    def __init__(self, uncounted: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in uncounted}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]:
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self._live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._live -= size
