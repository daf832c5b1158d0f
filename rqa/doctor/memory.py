"""What a run reads and takes, known before anything is loaded: rows, updates, positions, and memory on one device.

Weights, gradients and optimizer states are counted by the rules of torch and of DeepSpeed. What forward and backward
take is rehearsed: the model is made in torch's FakeTensorMode, where tensors have shapes and no content, and every
storage that would be live is added up, operation by operation.

B examples, L positions, M positions of all passages of an example, T answer tokens, V vocabulary, P parameters.
"""

import random
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

from rqa.data.passage_selection import GeneratorInput, select_passages
from rqa.data.records import Example, Passage, distinct
from rqa.models.fid import ENCODER_CALLS
from rqa.prompts.collators import EncodedExample
from rqa.training.batching import BatchLayout, num_positions, steps_per_epoch, training_batches
from rqa.training.schedule import OptimizerName

Source = Sequence[Passage] | Literal["gold", "ctxs"]  # of what is read: a corpus, gold passages, ctxs

EXTRA_CANDIDATES = 10  # passages beyond k, which replace gold that is dropped: as many as the recipes retrieve

# As sdpa: for whose causal attention transformers would make a mask, since ids without content might be packed rows.
_WITHOUT_MASK = "rqa_sdpa_without_mask"
AttentionInterface.register(_WITHOUT_MASK, sdpa_attention_forward)

# What ZeRO does unless DeepSpeed's JSON says otherwise, in parameters.
REDUCE_BUCKET = 500_000_000
MAX_LIVE = 1_000_000_000


def readings_of(
    split: str, examples: Sequence[Example], source: Source, *, k: int, seed: int = 0, **mix: Any
) -> list[GeneratorInput]:
    """Return what each example reads in the first epoch, or in evaluation; `mix` is for `select_passages`.

    Random passages of a corpus stand in for what would be retrieved: in training `k` beside the gold, the most there
    can be.
    """
    numbers = random.Random(f"{seed}/{split}/stand-ins")

    def read(example: Example) -> GeneratorInput:
        if source == "gold":
            candidates: list[Passage] = []
        elif source == "ctxs":
            candidates = [*example.contexts[: k + EXTRA_CANDIDATES]]
        else:
            candidates = [source[numbers.randrange(len(source))] for _ in range(k + EXTRA_CANDIDATES)]
        if split == "train":
            return select_passages(example, candidates, k=k, seed=seed, epoch=0, **mix)
        if source == "ctxs":
            return GeneratorInput.from_ranked(example, candidates[:k])
        return GeneratorInput.from_ranked(
            example, distinct([*example.gold_passages, *candidates])[: k if candidates else None]
        )

    return [read(example) for example in examples]


@dataclass(frozen=True)
class Forecast:
    """An epoch: its updates, the tokens and target tokens of all its rows, the positions computed for them.

    `largest` is the micro-batch of most positions.
    """

    updates: int
    tokens: int
    targets: int
    positions: int
    largest: Sequence[EncodedExample]


def forecast(
    rows: Sequence[EncodedExample],
    num_examples: int,
    layout: BatchLayout,
    *,
    group_by_length: bool = True,
    seed: int = 0,
    is_fid: bool = False,
    encoder_batch_size: int | None = None,
) -> Forecast:
    """Return what the first epoch is by the plan of `rqa.training.batching`, for all processes together.

    `rows` are those of all examples in their order, or of a sample; of these an epoch is drawn with replacement.
    """
    numbers = random.Random(f"{seed}/forecast")
    if len(rows) < num_examples:
        rows = [numbers.choice(rows) for _ in range(num_examples)]
    updates = steps_per_epoch(num_examples, layout)

    def encode(_epoch: int, positions: Sequence[int]) -> list[EncodedExample]:
        return [rows[i] for i in positions]

    micro_batches: list[Sequence[EncodedExample]] = []
    for rank in range(layout.processes):
        ours = replace(layout, rank=rank)
        plan = training_batches(num_examples, ours, encode, lambda rows: {"rows": rows}, seed, group_by_length)
        micro_batches += [batch["rows"] for update in islice(plan, updates) for batch in update if batch["rows"]]

    def positions(micro_batch: Sequence[EncodedExample]) -> int:
        if not is_fid:
            return num_positions([len(row) for row in micro_batch])
        calls = encoder_calls(micro_batch, encoder_batch_size)
        return sum(map(num_positions, calls)) + num_positions([len(row.answer) for row in micro_batch])

    return Forecast(
        updates,
        tokens=sum(map(len, rows)),
        targets=sum(len(row.answer) for row in rows),
        positions=sum(map(positions, micro_batches)),
        largest=max(micro_batches, key=positions),
    )


def training_memory(
    config: PreTrainedConfig,
    rows: Sequence[EncodedExample],
    *,
    optim: OptimizerName = "adamw",
    precision: str = "bf16",
    accumulation: int = 1,
    processes: int = 1,
    zero: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    encoder_batch_size: int | None = None,
) -> tuple[int, dict[str, int]]:
    """Return P, and the bytes on one device at the worst moment of an update, by what holds them.

    `rows` are the largest micro-batch, `precision` is "no", "bf16" or "fp16", `zero` the block zero_optimization of
    DeepSpeed's JSON; None is a run without it. "activations" are all that forward and backward make but the gradients,
    the copies of the weights in 16 bits among it; they are left out where a model computes by what it reads, and cannot
    be rehearsed (a mixture of experts, LED). "communication" is what DDP and ZeRO copy weights or gradients to.

    Real updates on a CPU (Llama, GPT-2, T5 and BART of 21 to 32 million parameters in float32 and bfloat16, AdamW and
    Adafactor, gradient checkpointing) grew the resident set by 1.00 to 1.06 of it; ZeRO-1, -2 and -3 of one of them, on
    two processes, by 1.07 to 1.12: 70 MB that are no tensors. No GPU was measured: its context, allocator and kernels
    come on top, and T5's attention may keep less. Generation, whose cache grows with its batch, is not counted.
    """
    is_half = zero is not None and precision != "no"
    with FakeTensorMode():
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        dtype = torch.bfloat16 if is_half else torch.float32
        # Of experts eager is the one that fails without a page of log.
        model: PreTrainedModel = auto_class.from_config(config, dtype=dtype, experts_implementation="eager")  # type: ignore[no-untyped-call]
        if model.config._attn_implementation == "sdpa" and not config.is_encoder_decoder:
            model.set_attn_implementation(_WITHOUT_MASK)
        model.train()
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        parameters = [*model.parameters()]
        total = sum(parameter.numel() for parameter in parameters)
        if zero is None:
            held = _held(parameters, total, optim, processes)
        else:
            held = _held_by_zero(total, 2 if is_half else 4, processes, zero)
        # Gradients of earlier micro-batches are there throughout; those of a single one come as the activations go.
        comes_late = held["gradients"] if accumulation == 1 and zero is None else 0
        is_autocast = precision != "no" and zero is None
        try:
            peak = _rehearsed(model, rows, is_autocast, comes_late > 0, encoder_batch_size)
        except RuntimeError:  # torch's, of an operation whose result has no shape without content
            return total, held
    in_update = 4 * total // processes if is_half else 0  # gradients in float32
    return total, held | {"activations": max(peak - comes_late, in_update, 0)}


def _held(parameters: Sequence[Tensor], total: int, optim: OptimizerName, processes: int) -> dict[str, int]:
    """Return the bytes of a run without DeepSpeed, in float32: every process holds everything."""
    states = 2 * total
    if optim == "adafactor":  # of a matrix a mean for each row and each column; torch keeps no momentum
        states = sum(p[..., 0].numel() + p[..., 0, :].numel() if p.ndim > 1 else p.numel() for p in parameters)
    held = {"weights": 4 * total, "gradients": 4 * total, "optimizer": 4 * states}
    return held | ({"communication": 4 * total} if processes > 1 else {})  # DDP's buckets, of all gradients


def _held_by_zero(total: int, size: int, processes: int, zero: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of ZeRO, whose weights and gradients are of `size`: Rajbhandari et al., 2020, "ZeRO", section 3.

    The optimizer's are weights, mean and variance in float32. What is offloaded is not on the device.
    """
    stage: int = zero["stage"]
    offloaded = {
        part for part in ("param", "optimizer") if zero.get(f"offload_{part}", {}).get("device") in ("cpu", "nvme")
    }
    if stage == 3:  # the weights of the layers at work
        gathered = size * min(total, int(zero.get("stage3_max_live_parameters", MAX_LIVE)))
    else:
        bucket = zero.get("reduce_bucket_size", REDUCE_BUCKET)
        gathered = 2 * size * min(total, 0 if bucket == "auto" else int(bucket))  # auto: of one matrix
    return {
        "weights": 0 if "param" in offloaded else size * total // (processes if stage == 3 else 1),
        "gradients": size * total // (processes if stage > 1 else 1),
        "optimizer": 0 if "optimizer" in offloaded else 12 * total // processes,
        "communication": gathered,
    }


def _rehearsed(
    model: PreTrainedModel,
    rows: Sequence[EncodedExample],
    autocast: bool,
    keep_gradients: bool,
    encoder_batch_size: int | None,
) -> int:
    """Return the most bytes that forward and backward hold at a time beside the weights; in FakeTensorMode."""
    if not keep_gradients:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda of: setattr(of, "grad", None))  # type: ignore[no-untyped-call]
    tally = _Tally([*model.parameters(), *model.buffers()])
    with tally:
        # Of a CPU because the fake tensors are; it lowers the precision of the same products.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            is_fid = model.config.is_encoder_decoder
            logits = _fid_logits(model, rows, encoder_batch_size) if is_fid else _logits(model, rows)
            targets = logits.new_zeros(len(logits), dtype=torch.long)
            loss = nn.functional.cross_entropy(logits.float(), targets, reduction="none").sum()
            del logits
        loss.backward()  # type: ignore[no-untyped-call]
    return tally.peak


def _logits(model: PreTrainedModel, rows: Sequence[EncodedExample]) -> Tensor:
    """Return (n, V), as `AnswerLM` computes them: of the n target tokens, here the same number in each row."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)  # (B, L)
    targets = -(-sum(len(row.answer) for row in rows) // len(rows))
    logits: Tensor = model(ids, use_cache=False, logits_to_keep=targets).logits
    return logits[:, -targets:].flatten(0, 1)


def _fid_logits(model: PreTrainedModel, rows: Sequence[EncodedExample], encoder_batch_size: int | None) -> Tensor:
    """Return (B·T, V), as `FusionInDecoder` computes them."""

    def encoded(ids: Tensor) -> Tensor:
        hidden: Tensor = model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden

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
    return logits.flatten(0, 1).clone()  # those of targets are copied


def encoder_calls(rows: Sequence[EncodedExample], encoder_batch_size: int | None = None) -> list[list[int]]:
    """Return the tokens of each passage in each call of the encoder, as `FusionInDecoder` deals them; longest first."""
    widths = sorted((len(prompt) for row in rows for prompt in row.prompts), reverse=True)
    calls = min(ENCODER_CALLS, len(widths)) if encoder_batch_size is None else -(-len(widths) // encoder_batch_size)
    return [widths[a:b] for a, b in pairwise(len(widths) * call // calls for call in range(calls + 1))]


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are live, but for those of `uncounted`; `peak` is the most bytes at a time."""

    def __init__(self, uncounted: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._live = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in uncounted}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self._live += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._live)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size
