"""memory: the forecast of an epoch against the batches of training, the estimate of memory against the allocator."""

import gc
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_models import DECODERS, decoder, random_batch, wide_decoder
from tiny_seq2seq import random_passages, seq2seq, wide_t5
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutput
from world import DEEPSPEED_ON_CPU, ROOT, hand_over, handed_over, launch, torchrun

from rqa.data.passage_selection import GeneratorInput, select_passages
from rqa.data.records import Example, Passage
from rqa.distributed.accelerator import make_accelerator
from rqa.distributed.deepspeed_config import read_ds_config
from rqa.distributed.device import bf16_is_fast
from rqa.doctor.memory import (
    EXTRA_CANDIDATES,
    evaluation_memory,
    forecast_epoch,
    lengths_of_calls,
    planned_sharding,
    sample_inputs,
    training_memory,
)
from rqa.errors import InputError
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.models.lora import Lora, add_adapter
from rqa.models.quantization import quantize
from rqa.prompts.collators import EncodedExample
from rqa.training.batching import BatchLayout, training_batches
from rqa.training.loop import train_steps
from rqa.training.optim import OPTIMIZERS, make_optimizer

PASSAGES = [Passage(f"Text {i}.") for i in range(40)]
EXAMPLES = [
    Example(
        f"{i}", f"Question {i}?", (f"Answer {i}.",), tuple(PASSAGES[i : i + 2]), contexts=tuple(PASSAGES[i : i + 9])
    )
    for i in range(0, 30, 3)
]


def row(*prompts, answer=3):
    return EncodedExample([[7] * length for length in prompts], [7] * answer)


DECODER_ROWS = [row(5 * i % 17 + 4, answer=i % 5 + 1) for i in range(29)]
FID_ROWS = [row(*range(3, 3 + i % 4), 5 * i % 17 + 4, answer=i % 5 + 1) for i in range(29)]


# Passages


def test_training_selects_passages_from_the_ctxs():
    options = {"passage_order": "random", "gold_dropout": 0.5}
    expected = [select_passages(e, e.contexts, k=3, seed=5, epoch=0, **options) for e in EXAMPLES]
    assert sample_inputs("train", EXAMPLES, "ctxs", k=3, seed=5, **options) == expected


def test_sft_reads_its_gold():
    expected = [select_passages(e, (), k=0, seed=0, epoch=0) for e in EXAMPLES]
    assert sample_inputs("train", EXAMPLES, "gold", k=3) == expected
    assert sample_inputs("test", EXAMPLES, "gold", k=1) == [
        GeneratorInput.from_ranked(e, e.gold_passages) for e in EXAMPLES
    ]


def test_evaluation_reads_k():
    assert sample_inputs("test", EXAMPLES, "ctxs", k=4) == [
        GeneratorInput.from_ranked(e, e.contexts[:4]) for e in EXAMPLES
    ]
    for example, item in zip(EXAMPLES, sample_inputs("test", EXAMPLES, PASSAGES, k=4), strict=True):
        assert len(item.passages) == 4
        assert item.passages[:2] == example.gold_passages


def test_random_passages_of_the_corpus_are_added_to_the_gold():
    corpus = [Passage(f"Elsewhere {i}.") for i in range(200)]
    inputs = sample_inputs("train", EXAMPLES, corpus, k=4, seed=1)
    for example, item in zip(EXAMPLES, inputs, strict=True):
        assert {*example.gold_passages} < {*item.passages}
        assert {*item.passages} - {*example.gold_passages} < {*corpus}
        assert len(item.passages) == 5
    assert inputs == sample_inputs("train", EXAMPLES, corpus, k=4, seed=1)
    others = sample_inputs("train", EXAMPLES, corpus, k=4, seed=2)
    assert all({*a.passages} != {*b.passages} for a, b in zip(inputs, others, strict=True))
    dropped = sample_inputs("train", EXAMPLES, corpus, k=EXTRA_CANDIDATES - 1, seed=1, gold_dropout=1.0)
    assert {len(item.passages) for item in dropped} == {EXTRA_CANDIDATES}


# An epoch


def batches_of(rows, layout, group_by_length, seed, steps):
    order = {"seed": seed, "group_by_length": group_by_length}
    plan = training_batches(len(rows), layout, lambda _, at: [rows[i] for i in at], lambda b: {"b": b}, **order)
    return [batch["b"] for step in islice(plan, steps) for batch in step if batch["b"]]


@pytest.mark.parametrize("group_by_length", [True, False])
@pytest.mark.parametrize(
    ("layout", "steps"), [(BatchLayout(3, 2, 2), 3), (BatchLayout(4), 8), (BatchLayout(1, 1, 40), 1)]
)
def test_a_forecast_epoch_is_that_of_training(layout, steps, group_by_length):
    epoch, largest = forecast_epoch(DECODER_ROWS, len(DECODER_ROWS), layout, group_by_length=group_by_length, seed=3)
    padded = [
        len(batch) * max(map(len, batch))
        for rank in range(layout.processes)
        for batch in batches_of(DECODER_ROWS, replace(layout, rank=rank), group_by_length, 3, steps)
    ]
    assert epoch == {
        "steps": steps,
        "tokens": sum(len(row.prompts[0]) + len(row.answer) for row in DECODER_ROWS),
        "targets": sum(len(row.answer) for row in DECODER_ROWS),
        "positions": sum(padded),
    }
    assert len(largest) * max(map(len, largest)) == max(padded)


def test_an_epoch_of_many_examples_is_drawn_from_the_sample():
    epoch, _ = forecast_epoch([row(10, answer=2), row(20, answer=4)], 1000, BatchLayout(5, 2))
    assert epoch["steps"] == 100
    assert epoch["targets"] == 2 * 1000 + 2 * (epoch["tokens"] - 12_000) // 12
    assert 17_000 < epoch["tokens"] < 19_000
    assert epoch["positions"] < 1.02 * epoch["tokens"]  # rows of equal length share a batch


def fid_batch(rows):
    return random_passages([list(map(len, row.prompts)) for row in rows], [len(row.answer) for row in rows])


@pytest.mark.parametrize("encoder_batch_size", [None, 3])
def test_forecast_positions_of_fusion_in_decoder_are_those_of_its_encoder_and_decoder(encoder_batch_size):
    model = FusionInDecoder(seq2seq(), encoder_batch_size=encoder_batch_size)
    seen = []

    def count(_module, _args, options):
        seen.append(options["input_ids"].shape)

    model.model.get_encoder().register_forward_pre_hook(count, with_kwargs=True)
    model.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    layout = BatchLayout(4)
    with torch.no_grad():
        for batch in batches_of(FID_ROWS, layout, True, 0, 8):
            before = len(seen)
            model(**fid_batch(batch))
            calls = lengths_of_calls(batch, encoder_batch_size)
            assert [(len(call), max(call)) for call in calls] == seen[before:-1]
    epoch, _ = forecast_epoch(FID_ROWS, len(FID_ROWS), layout, is_fid=True, encoder_batch_size=encoder_batch_size)
    assert epoch["positions"] == sum(shape.numel() for shape in seen)


# Memory


def allocated(run):
    """Return the peak of memory of a call in bytes, by torch's own allocator.

    It is read at the end of each operation. So the buffers inside a kernel do not count: their size
    differs between processors.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    changes = []
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            changes.append((event.start_ns(), event.nbytes()))
        elif not event.name().startswith("aten::empty"):  # also a kernel's own buffers
            changes.append((event.end_ns(), 0))
    live = peak = 0
    for _, size in sorted(changes):
        live += size
        if not size:
            peak = max(peak, live)
    return peak


def measured(model, batch, *, bf16, keeps):
    """Return the peak of memory of forward and backward, after a warm-up."""
    for parameter in model.parameters():
        if not keeps and parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(**batch).sum()
        loss.backward()

    model.train()
    run()
    model.zero_grad()
    return allocated(run)


LORA = Lora(3, 6.0, dropout=0.1)
# Gradient checkpointing and adapters in bfloat16 hold copies for a moment that the estimate leaves out.
DECODER_CASES = [
    *((family, False, {}, 0.02) for family in DECODERS if family != "mixtral"),
    ("llama", True, {}, 0.02),
    ("gpt2", True, {}, 0.02),
    ("gemma2", True, {"gradient_checkpointing": True}, 0.03),
    ("qwen2", False, {"gradient_checkpointing": True}, 0.03),
    ("llama", False, {"accumulation": 1}, 0.02),
    ("llama", False, {"lora": LORA}, 0.02),
    ("llama", True, {"lora": LORA}, 0.02),
    ("llama", False, {"lora": LORA, "gradient_checkpointing": True}, 0.05),
    ("gpt2", True, {"lora": LORA}, 0.06),
    ("llama", False, {"lora": LORA, "load_in_4bit": True}, 0.05),
    ("qwen2", True, {"lora": LORA, "load_in_4bit": True, "gradient_checkpointing": True}, 0.1),
    ("llama", True, {"optim": "adamw_bf16"}, 0.02),
]
FID_CASES = [
    *((family, False, {}, 0.02) for family in ("t5", "bart", "two_berts", "t5gemma")),
    ("bart", True, {}, 0.02),
    ("mt5", False, {"encoder_batch_size": 3}, 0.03),
    ("bart", False, {"gradient_checkpointing": True}, 0.15),
    ("t5", False, {"lora": LORA}, 0.04),
    ("t5", False, {"lora": LORA, "load_in_4bit": True}, 0.05),
]


def assert_as_allocated(model, rows, batch, bf16, options, tolerance):
    """Check the estimate without weights and optimizer states."""
    options = {"accumulation": 2} | options
    number, held = training_memory(model.config, rows, precision="bf16" if bf16 else "no", **options)
    if lora := options.get("lora"):
        model.model.to(torch.bfloat16 if bf16 else torch.float32)
        if options.get("load_in_4bit"):
            quantize(model.model, torch.bfloat16 if bf16 else torch.float32)
        add_adapter(model.model, lora)
        trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        assert (held["gradients"], held["optimizer"]) == (trained, 2 * trained)
    if options.get("optim") == "adamw_bf16":
        model.model.to(torch.bfloat16)
        assert (held["gradients"], held["optimizer"]) == (2 * number, 4 * number)
    states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
    statistics = [t for s in states for t in (s.absmax, s.offset, s.code, s.state2.absmax, s.state2.code)]
    in_4_bits = sum(p.numel() for p in model.parameters() if hasattr(p, "quant_state"))
    assert number == sum(parameter.numel() for parameter in model.parameters()) + in_4_bits
    assert held["weights"] == sum(tensor.nbytes for tensor in [*model.parameters(), *statistics])
    if options.get("gradient_checkpointing"):
        model.model.gradient_checkpointing_enable({"use_reentrant": False})
    keeps = options["accumulation"] == 1
    peak = measured(model, batch, bf16=bf16, keeps=keeps)
    assert held["activations"] + (held["gradients"] if keeps else 0) == pytest.approx(peak, rel=tolerance)


@pytest.mark.parametrize(("family", "bf16", "options", "tolerance"), DECODER_CASES)
def test_activations_of_a_decoder_are_as_allocated(family, bf16, options, tolerance):
    sizes = [(40, 9), (31, 9), (33, 9)]
    rows = [row(prompt, answer=answer) for prompt, answer in sizes]
    make = wide_decoder if options.get("load_in_4bit") else decoder
    assert_as_allocated(AnswerLM(make(family)), rows, random_batch(sizes), bf16, options, tolerance)


@pytest.mark.parametrize(("family", "bf16", "options", "tolerance"), FID_CASES)
def test_activations_of_fusion_in_decoder_are_as_allocated(family, bf16, options, tolerance):
    rows = [row(40, 31, 22, 33, answer=9), row(39, 12, 32, 8, answer=9)]
    plain = wide_t5() if options.get("load_in_4bit") else seq2seq(family)
    model = FusionInDecoder(plain, encoder_batch_size=options.get("encoder_batch_size"))
    assert_as_allocated(model, rows, fid_batch(rows), bf16, options, tolerance)


def test_a_mixture_of_experts_has_no_estimate_of_activations(caplog):
    _, held = training_memory(decoder("mixtral").config, [row(9)])
    assert held.keys() == {"weights", "gradients", "optimizer"}
    assert not caplog.records


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_states_are_those_of_the_optimizer(optim):
    model = AnswerLM(decoder().to(getattr(torch, OPTIMIZERS[optim].weights)))
    optimizer = make_optimizer(model, optim)
    model(**random_batch([(9, 3)])).sum().backward()
    optimizer.step()
    states = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and name != "step" and "qmap" not in name
    ]
    _, held = training_memory(model.config, [row(9)], optim=optim)
    assert held["optimizer"] == sum(value.untyped_storage().nbytes() for value in states)
    assert held["gradients"] == sum(parameter.grad.nbytes for parameter in model.parameters())
    assert held["weights"] == sum(parameter.nbytes for parameter in model.parameters())


def test_zero_divides_only_the_states_of_trained_weights():
    number, held = training_memory(decoder().config, [row(9)], lora=LORA, zero={"stage": 2}, processes=4)
    model = decoder()
    add_adapter(model, LORA)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert number == sum(parameter.numel() for parameter in model.parameters())
    assert held["weights"] == 2 * number
    assert held["gradients"] == 2 * trained // 4
    assert held["optimizer"] == 12 * trained // 4


def per_parameter(processes=4, **options):
    number, held = training_memory(decoder().config, [row(9)], processes=processes, accumulation=2, **options)
    return {name: size / number for name, size in held.items() if name != "activations"}


# On one of four devices, by hand: Rajbhandari et al., 2020, figure 1, with gradients in 16 bits.
def test_zero_divides_states_by_the_number_of_ranks():
    assert per_parameter() == {"weights": 4, "gradients": 4, "optimizer": 8, "communication": 4}
    assert "communication" not in per_parameter(processes=1)
    auto = {"reduce_bucket_size": "auto"}
    sizes = {"weights": 2, "gradients": 2, "optimizer": 3, "communication": 0}
    assert per_parameter(zero={"stage": 1, **auto}) == sizes
    assert per_parameter(zero={"stage": 2, **auto}) == sizes | {"gradients": 0.5}
    assert per_parameter(zero={"stage": 3}) == {
        "weights": 0.5,
        "gradients": 0.5,
        "optimizer": 3,
        "communication": 2,
    }
    assert per_parameter(zero={"stage": 2, **auto}, precision="no") == sizes | {"weights": 4, "gradients": 1}
    assert per_parameter(zero={"stage": 2}) == sizes | {
        "gradients": 0.5,
        "communication": 4,
    }  # two buckets of all
    offloaded = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    here = {"offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}}
    assert per_parameter(zero={"stage": 3, **here}) == per_parameter(zero={"stage": 3})
    assert per_parameter(zero={"stage": 3, **offloaded}) == {
        "weights": 0,
        "gradients": 0,
        "optimizer": 0,
        "communication": 2,
        "host": (2 + 12 + 4 + 2) / 4,  # weights, states with weights in 32 bits, gradients in 32 and in 16
    }
    optimizer = {"offload_optimizer": offloaded["offload_optimizer"]}
    number, held = training_memory(decoder().config, [row(9)], zero={"stage": 2, **auto, **optimizer}, processes=4)
    largest = 2 * decoder().lm_head.weight.numel()
    assert (held["gradients"], held["optimizer"], held["communication"]) == (0, 0, largest)
    assert held["host"] == 18 * number // 4 + largest


def test_fsdp_shards_all_and_gathers_two_layers_and_the_rest():
    model = decoder("llama")
    number = sum(parameter.numel() for parameter in model.parameters())
    sizes = {"weights": 1, "gradients": 1, "optimizer": 2}
    assert len(model.model.layers) == 2  # all weights are gathered
    assert per_parameter(fsdp=["LlamaDecoderLayer"]) == {**sizes, "communication": 2}
    assert per_parameter(fsdp=["LlamaDecoderLayer"], precision="no") == {**sizes, "communication": 4}
    model.config.num_hidden_layers = 5
    total, held = training_memory(model.config, [row(9)], fsdp=["LlamaDecoderLayer"], processes=4)
    assert total > number
    assert held["communication"] == 2 * number  # as of two layers
    with pytest.raises(InputError, match=r"fsdp_transformer_layer_cls_to_wrap: expected .*LlamaDecoderLayer.* T5Block"):
        per_parameter(fsdp=["T5Block"])


CONFIGS = ROOT / "recipes/configs"


@pytest.mark.parametrize(
    ("name", "processes", "expected"),
    [
        ("cpu", 1, {}),
        ("many_gpus", 8, {}),
        ("fsdp2", 8, {"fsdp": ["MistralDecoderLayer"]}),
        *((f"zero{stage}{more}", None, f"ds_{file}") for stage, more, file in (
            (2, "", "config"), (3, "", "zero3"), (2, "_offload", "zero2_offload"), (3, "_offload", "zero3_offload")
        )),
    ],
)  # fmt: skip
def test_the_sharding_of_a_launch_is_that_of_its_file(monkeypatch, name, processes, expected):
    monkeypatch.chdir(ROOT)
    options = {"bf16": None, "fp16": False, "deepspeed": "", "flags": {}}
    launcher = {"num_processes": None, "accelerate_config": f"recipes/configs/accelerate_{name}.yaml"}
    number, sharding = planned_sharding(2, **options, **launcher)
    assert sharding.pop("precision") == "bf16"
    if isinstance(expected, str):
        by_flag = planned_sharding(2, **options | {"deepspeed": f"recipes/configs/{expected}.json"}, num_processes=3)
        assert by_flag == (3, {"precision": "bf16", **sharding})
    else:
        assert (number, sharding) == (processes, expected)
    assert planned_sharding(2, **options, **launcher | {"num_processes": 5})[0] == 5


@pytest.mark.parametrize("content", [None, "[]", "a: [", "\x00"])
def test_a_file_that_is_not_of_accelerate_is_an_error(tmp_path, content):
    path = tmp_path / "launch.yaml"
    if content is not None:
        path.write_text(content)
    options = {"bf16": None, "fp16": False, "deepspeed": "", "flags": {}, "num_processes": None}
    with pytest.raises(InputError, match=r"launch.yaml: expected a file of `accelerate config`"):
        planned_sharding(1, **options, accelerate_config=str(path))


@pytest.mark.parametrize(
    ("family", "bf16", "tolerance"),
    [
        ("llama", False, 0.03),
        ("gpt2", False, 0.03),
        (
            "qwen2",
            True,
            0.25 if bf16_is_fast(torch.device("cpu")) else 0.05,
        ),  # attention in bfloat16 has buffers of its own
        ("t5", False, 0.05),
        ("bart", False, 0.05),
    ],
)
def test_memory_of_an_evaluation_is_as_allocated(family, bf16, tolerance):
    """The peak of the prompt, and the cache after the last token."""
    is_fid = family in ("t5", "bart")
    model = (seq2seq(family) if is_fid else decoder(family)).eval().to(torch.bfloat16 if bf16 else torch.float32)
    rows = [row(40, 31, 22, 33), row(39, 12, 32, 8)] if is_fid else [row(40), row(31), row(33)]
    held = evaluation_memory(model.config, rows, max_new_tokens=9, precision="bf16" if bf16 else "no")
    assert held["weights"] == sum(parameter.nbytes for parameter in model.parameters())

    def answer(num_new=1):
        """Return the bytes of the cache after the prompts and new tokens."""
        if is_fid:
            fid, batch = FusionInDecoder(model), fid_batch(rows)
            memory, mask = fid.encode(batch["input_ids"], batch["attention_mask"])
            ids = torch.zeros(len(rows), num_new, dtype=torch.long)
            encoded = {"encoder_outputs": BaseModelOutput(last_hidden_state=memory), "attention_mask": mask}
            cache = model(**encoded, decoder_input_ids=ids, use_cache=True).past_key_values
            parts = (cache.self_attention_cache, cache.cross_attention_cache)
        else:
            ids = torch.zeros(len(rows), 40 + num_new - 1, dtype=torch.long)
            parts = (model(ids, use_cache=True, logits_to_keep=1).past_key_values,)
        return sum(kept.nbytes for part in parts for layer in part.layers for kept in (layer.keys, layer.values))

    with torch.no_grad():
        answer()
        peak = allocated(answer)
        assert held["cache"] == answer(9)
        assert held["activations"] == pytest.approx(peak - answer(), rel=tolerance)


def test_under_zero_the_model_is_in_16_bits():
    sizes = [(40, 9), (31, 9), (33, 9)]
    model = AnswerLM(decoder("llama").to(torch.bfloat16))
    rows = [row(prompt, answer=answer) for prompt, answer in sizes]
    _, held = training_memory(model.config, rows, zero={"stage": 2})
    peak = measured(model, random_batch(sizes), bf16=False, keeps=False)
    assert held["activations"] == pytest.approx(peak, rel=0.04)  # torch 2.7 allocates 3.3 % more


def test_an_optimizer_step_in_16_bits_has_gradients_in_32():
    number, held = training_memory(decoder().config, [row(1, answer=1)], zero={"stage": 2}, processes=1)
    assert held["activations"] == 4 * number


def test_gathered_weights_are_bounded():
    gathered = [
        per_parameter(zero={"stage": 3, "stage3_max_live_parameters": most})["communication"] for most in (0, 1e9)
    ]
    assert gathered == [0, 2]


def test_the_estimate_of_a_model_of_billions_needs_no_memory():
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = LlamaConfig(**sizes, vocab_size=32_000, num_hidden_layers=4)
    with torch.device("meta"):
        expected = sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    before = allocated(lambda: None)
    estimates = []
    peak = allocated(lambda: estimates.append(training_memory(config, [row(900, answer=99)], accumulation=2)))
    assert peak - before < 10**6
    [(number, held)] = estimates
    assert number == expected > 10**9
    assert held["activations"] > 10**9


SMALL = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=3000)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(("stage", "offloads"), [(1, False), (2, False), (3, False), (2, True), (3, True)])
def test_states_under_zero_are_as_allocated(tmp_path, monkeypatch, stage, bf16, offloads):
    """Between two steps, when stages 1 and 2 have freed their gradients, and stage 3 the gathered weights."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    zero = {"stage": stage, "reduce_bucket_size": "auto", "stage3_param_persistence_threshold": 0}
    if offloads:
        zero |= read_ds_config(str(ROOT / f"recipes/configs/ds_zero{stage}_offload.json"))["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = 0
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": "auto"}}))
    by = (*torchrun(2), DEEPSPEED_ON_CPU)
    launch(__file__, {str(path): str(tmp_path), str(bf16): ""}, by=by)
    _, held = training_memory(SMALL, [row(9)], precision="bf16" if bf16 else "no", processes=2, zero=zero)
    expected = held["weights"] + held["optimizer"] + (held["gradients"] if stage == 3 else 0) + held.get("host", 0)
    expected += held["communication"] if offloads and stage == 2 else 0
    assert handed_over(tmp_path, 2) == pytest.approx([expected] * 2, rel=0.05)


def under_zero(path, folder, bf16):
    """Measure the live bytes after two steps."""
    accelerator = make_accelerator(bf16=bf16, deepspeed=path, flags={"per_device_train_batch_size": 2})
    model = AnswerLM(LlamaForCausalLM(SMALL))
    model, optimizer = accelerator.prepare(model, make_optimizer(model))
    batches = iter([[random_batch([(9, 3)])] for _ in range(2)])
    for _ in train_steps(
        accelerator, model, optimizer, batches, learning_rate=lambda _: 1e-4, num_steps=2, max_grad_norm=1.0, seed=0
    ):
        gc.collect()
    live = [tensor for tensor in gc.get_objects() if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in live}
    hand_over(sum(storages.values()), folder)


if __name__ == "__main__":
    under_zero(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "True")
