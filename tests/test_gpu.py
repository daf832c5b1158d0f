"""The GPU: numbers, answers and files of the CPU, and less memory where less is promised. Skipped without CUDA.

    make test-gpu

RQA_GPU_TESTS_ON=cpu runs the same code on a CPU, to check the tests themselves. Measured numbers are properties of the
tests: `--junitxml FILE -o junit_family=xunit1` writes them. As a script, this file runs another one with deterministic
kernels.
"""

import copy
import gc
import importlib.util
import json
import os
import runpy
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from closeness import gradients
from plain_loop import (
    GLOBAL_BATCHES,
    MAX_NORM,
    RATE,
    assert_is_plain_loop,
    assert_same,
    deterministic,
    plain_loop,
    steps_of,
)
from sharded_runs import assert_same_run, flags_of, outcome, run_until
from tiny_generation import INPUTS, MAX_NEW_TOKENS, TEMPLATE, generator, language_model
from tiny_models import EOS, PAD, decoder, random_batch, save_decoder
from tiny_seq2seq import random_passages, save_seq2seq, seq2seq
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from world import ACCELERATE_LAUNCH, DEEPSPEED_ON_CPU, ROOT, launch, read_jsonl

from rqa.data.corpus import open_passages
from rqa.distributed.accelerator import make_accelerator
from rqa.distributed.device import bf16_is_fast
from rqa.doctor.memory import training_memory
from rqa.models.auto import load_generator
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.models.lora import Lora, add_adapter
from rqa.models.quantization import dequantized, quantize
from rqa.prompts.collators import EncodedExample
from rqa.retrieval.opening import open_retriever
from rqa.training.optim import make_optimizer

ON = os.environ.get("RQA_GPU_TESTS_ON", "cuda")
DEVICE, CPU = torch.device(ON), torch.device("cpu")
IS_CUDA = ON == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(IS_CUDA and not torch.cuda.is_available(), reason="no CUDA device"),
]
CONFIGS = ROOT / "recipes/configs"


@pytest.fixture(autouse=True)
def _on_the_device(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)


def accelerator_on(precision="no", accumulation=1):
    """Return an accelerator of the device. A CPU has no float16: bfloat16 stands in for it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = precision if IS_CUDA else precision.replace("fp16", "bf16")
    plugin = GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False, adjust_scheduler=False)
    return Accelerator(cpu=not IS_CUDA, mixed_precision=precision, gradient_accumulation_plugin=plugin)


def to(device, batch):
    return {name: tensor.to(device) for name, tensor in batch.items()}


def peak_bytes(function):
    """Return the peak of memory in which a function runs; 0 on a CPU."""
    gc.collect()
    if not IS_CUDA:
        function()
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def distance(found, expected):
    """Return the largest difference of two groups of tensors, divided by the largest value of the group."""
    return max(float((found[name] - e).abs().max() / e.abs().max().clamp(min=1e-9)) for name, e in expected.items())


# Training


FID_BATCHES = [random_passages([[9, 4, 17, 6], [12], [3, 20, 3], [8, 8]], [5, 1, 7, 3], seed=seed) for seed in range(5)]
MODELS = {
    "decoder": (lambda: AnswerLM(decoder()), GLOBAL_BATCHES),
    "fid": (lambda: FusionInDecoder(seq2seq()), FID_BATCHES),
}


def trained(kind, precision="no", accumulation=2, batches=None, **options):
    """Return the steps of `train_steps` on the device, and the weights after them."""
    make, own_batches = MODELS[kind]
    accelerator = accelerator_on(precision, accumulation)
    model = make()
    model, optimizer = accelerator.prepare(model, make_optimizer(model, weight_decay=0.1))
    steps = [deterministic(step) for step in steps_of(accelerator, model, optimizer, batches or own_batches, **options)]
    assert {parameter.device.type for parameter in model.parameters()} == {ON}
    return steps, to(CPU, model.state_dict())


@pytest.mark.parametrize("accumulation", [1, 4])
def test_training_in_float32_equals_a_plain_loop_on_the_cpu(accumulation, record_property):
    steps, weights = trained("decoder", accumulation=accumulation)
    record_property("distance of weights from the CPU", distance(weights, plain_loop()[1]))
    assert_is_plain_loop((steps, None, weights), plain_loop(), accumulation, loosely=10)


def textbook(model, input_ids, attention_mask, before):
    """Return the logits (B, T, V) of fusion-in-decoder as published: encode padded passages, concatenate, decode."""
    rows, passages, length = input_ids.shape
    visible = attention_mask.view(rows * passages, length).clone()
    visible[:, 0] = 1  # a missing passage is encoded as padding and masked in the decoder
    states = model.get_encoder()(input_ids=input_ids.view(-1, length), attention_mask=visible).last_hidden_state
    return model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.view(rows, passages * length, -1)),
        attention_mask=attention_mask.view(rows, -1),
        decoder_input_ids=before,
    ).logits


@cache
def fid_plain_loop():
    """Return the losses, gradient norms and weights of a plain loop on the CPU."""
    model, steps = seq2seq().train(), []
    optimizer = make_optimizer(model, weight_decay=0.1)
    for number, batch in enumerate(FID_BATCHES):
        labels = batch["labels"]
        before = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=PAD).clamp(min=PAD)  # -100 follows all targets
        logits = textbook(model, batch["input_ids"], batch["attention_mask"], before)
        loss = cross_entropy(logits.mT, labels, ignore_index=-100)
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = RATE(number)
        optimizer.step()
        optimizer.zero_grad()
        steps.append((loss.item(), norm.item()))
    return steps, {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_of_fusion_in_decoder_in_float32_equals_a_plain_loop_on_the_cpu(accumulation, record_property):
    steps, weights = trained("fid", accumulation=accumulation)
    expected_steps, expected = fid_plain_loop()
    record_property("distance of weights from the CPU", distance(weights, expected))
    for step, values in zip(steps, expected_steps, strict=True):
        assert (step["loss"], step["gradient_norm"]) == pytest.approx(values, rel=2e-4)
    assert_same(weights, expected, rtol=1e-3, atol=2e-4)  # Adam enlarges the rounding of small gradients


@pytest.mark.parametrize("kind", MODELS)
def test_training_in_bfloat16_is_close_to_float32(kind, record_property):
    """The first loss is of the same weights; later ones are of weights that differ by rounding."""
    found, expected = (trained(kind, precision)[0] for precision in ("bf16", "no"))
    shares = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(found, expected, strict=True)]
    record_property("relative differences of losses, bf16 to fp32", [round(share, 5) for share in shares])
    assert 0 < shares[0] < BF16_FIRST
    assert max(shares) < BF16_LATER
    assert {step["skipped"] for step in found} == {False}


BF16_FIRST, BF16_LATER = 0.005, 0.05


KERNELS = {"sdpa": None, "flash attention 2": "flash_attention_2"}


@pytest.mark.parametrize("kernel", KERNELS)
def test_loss_and_gradient_in_bfloat16_are_those_of_float32_within_rounding(kernel, record_property):
    if KERNELS[kernel] and (not IS_CUDA or importlib.util.find_spec("flash_attn") is None):
        pytest.skip("flash-attn is not installed, or there is no CUDA device")
    results = []
    for precision, attention in (("no", None), ("bf16", KERNELS[kernel])):
        model = AnswerLM(llama(256))
        if attention:
            model.model.set_attn_implementation(attention)
        with accelerator_on(precision).autocast():
            losses = model(**batch_of("decoder"))
        losses.sum().backward()
        results.append((losses.detach(), torch.cat([each.flatten() for each in gradients(model.model).values()])))
    (expected_losses, expected), (losses, found) = results
    loss_share = float((losses / expected_losses - 1).abs().max())
    gradient_share = float((found - expected).norm() / expected.norm())
    record_property(f"{kernel}: relative differences of losses and of the gradient", (loss_share, gradient_share))
    assert 0 < loss_share < BF16_FIRST
    assert gradient_share < 0.05


def test_the_gradient_of_an_adapter_in_float32_is_that_of_the_cpu(record_property):
    model, found = AnswerLM(llama(256)), []
    add_adapter(model.model, Lora(4, 8.0))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for device in (CPU, DEVICE):
        run_once(copy.deepcopy(model).to(device), to(device, batch_of("decoder")), found)()
    assert all(".lora_" in name for name in found[0])
    distances = gradient_distance(to(CPU, found[1]), found[0])
    record_property("largest relative norm of the difference of a gradient", distances)
    assert distances < 1e-3


def test_loss_and_gradient_on_4_bits_are_those_of_the_dequantized_weights_on_the_cpu(record_property):
    accelerator_on()
    model, reference, found = AnswerLM(llama(256)), AnswerLM(llama(256).to(CPU)), []
    quantize(model.model, torch.float32)
    reference.load_state_dict({name: value.to(CPU) for name, value in dequantized(model, model.state_dict()).items()})
    add_adapter(model.model, Lora(4, 8.0))
    add_adapter(reference.model, Lora(4, 8.0))
    with torch.no_grad():
        for own, other in zip(trainable(model), trainable(reference), strict=True):
            own.copy_(other.normal_(std=0.1))
    for each, device in ((reference, CPU), (model, DEVICE)):
        run_once(each, to(device, batch_of("decoder")), found)()
    distances = gradient_distance(to(CPU, found[1]), found[0])
    record_property("4 bits: largest relative norm of the difference of a gradient", distances)
    assert distances < 1e-3


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_weights_in_4_bits_are_those_of_the_cpu():
    values = []
    for on in (CPU, DEVICE):
        weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0)).to(on)
        values.append(dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True)).to(CPU))
    largest = values[0].view(-1, 64).abs().amax(1, keepdim=True)
    differs = ((values[0] - values[1]).view(-1, 64) / largest).abs() > 1e-3
    assert differs.float().mean() < 1e-3  # a weight in the middle of two values is rounded to either


@pytest.mark.parametrize(("optim", "tolerance"), [("adamw", 1e-5), ("adamw_8bit", 0.05), ("adamw_bf16", 2**-7)])
def test_the_steps_of_an_optimizer_are_those_of_the_cpu(optim, tolerance):
    """Relative to the change: states in 8 bits are rounded; weights in bfloat16 are rounded at random."""
    dtype = torch.bfloat16 if optim == "adamw_bf16" else torch.float32
    start = torch.randn(128, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    results = []
    for on in (CPU, DEVICE):
        layer = torch.nn.Linear(64, 128, bias=False, device=on, dtype=dtype)
        layer.weight.data.copy_(start)
        optimizer = make_optimizer(layer, optim, weight_decay=0.1)
        optimizer.param_groups[0]["lr"] = 0.01
        for seed in range(5):
            gradient = torch.randn(128, 64, generator=torch.Generator().manual_seed(seed))
            layer.weight.grad = gradient.to(on, dtype)
            optimizer.step()
        results.append(layer.weight.detach().float().to(CPU))
    scale = results[0].abs() if optim == "adamw_bf16" else (results[0] - start.float()).abs().max()
    assert ((results[1] - results[0]).abs() <= 5 * tolerance * scale + 1e-6).all()
    assert not torch.equal(results[0], start.float())


def test_training_in_float16_skips_until_its_scale_fits_and_is_then_close_to_float32(record_property):
    """The scaler begins at 65536; a step whose scaled gradient overflows changes no weight."""
    batches, options = GLOBAL_BATCHES[:1] * 20, {"learning_rate": lambda step: 1e-3}
    found, expected = (trained("decoder", precision, 1, batches, **options)[0] for precision in ("fp16", "no"))
    num_skipped = sum(step["skipped"] for step in found)
    record_property("steps that float16 skipped", num_skipped)
    assert all(step["skipped"] for step in found[:num_skipped])
    assert num_skipped < 18
    for step in found[:num_skipped]:
        assert step["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)
    for step, expected_step in zip(found[num_skipped:], expected, strict=False):
        assert step["loss"] == pytest.approx(expected_step["loss"], rel=0.05)


def test_the_default_precision_is_bfloat16_on_the_device():
    accelerator = make_accelerator()
    assert accelerator.device.type == ON
    assert accelerator.mixed_precision == ("bf16" if IS_CUDA or bf16_is_fast(CPU) else "no")


# Generation


def up_to_end(ids):
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


@cache
def plain_answers():
    """Return the texts of the plain model on the CPU, one by one."""
    lm, texts = language_model(), []
    for item in INPUTS:
        prompt = torch.tensor([TEMPLATE.prompt(item).ids])
        stops = {"eos_token_id": TEMPLATE.stop_ids, "pad_token_id": PAD}
        ids = lm.generate(prompt, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, **stops)
        texts.append(TEMPLATE.tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_answers_in_float32_are_those_of_the_plain_model_on_the_cpu(batch_size):
    generate = generator(language_model(), batch_size, accelerator=accelerator_on())
    answers = generate(INPUTS)
    assert [answer.text for answer in answers] == plain_answers()
    pieces = []
    assert generate.stream(generate.collator.encode(INPUTS[:1])[0], pieces.append) == answers[0]
    assert "".join(pieces) == answers[0].text


def test_answers_in_bfloat16_do_not_depend_on_their_batch_much(record_property):
    """Rounding depends on the shape of a batch: some answers differ."""
    texts = []
    for batch_size in (1, 4):
        generate = generator(language_model(), batch_size, accelerator=accelerator_on("bf16"))
        texts.append([answer.text for answer in generate(INPUTS)])
    for name, other in (("one by one", texts[0]), ("float32", plain_answers())):
        same = sum(a == b for a, b in zip(texts[1], other, strict=True))
        record_property(f"answers of {len(INPUTS)} in bf16, batch 4, equal to {name}", same)
    assert all(len(answers) == len(INPUTS) for answers in texts)


def test_answers_of_fusion_in_decoder_in_float32_are_those_of_the_published_formulation_on_the_cpu():
    model, batch = seq2seq().eval(), dict(FID_BATCHES[0])
    del batch["labels"]
    expected = torch.full((len(batch["input_ids"]), 1), PAD)
    with torch.no_grad():
        for _ in range(8):
            best = textbook(model, **batch, before=expected)[:, -1:].argmax(-1)
            expected = torch.cat([expected, best], 1)
    expected = [up_to_end(row) for row in expected[:, 1:].tolist()]
    assert len({tuple(row) for row in expected}) > 1
    fid = FusionInDecoder(seq2seq().eval().to(DEVICE))
    options = {"max_new_tokens": 8, "eos_token_id": EOS, "pad_token_id": PAD}
    assert [up_to_end(row) for row in fid.generate(**to(DEVICE, batch), **options).tolist()] == expected
    for i, row in enumerate(expected):
        alone = {name: tensor[i : i + 1].to(DEVICE) for name, tensor in batch.items()}
        assert up_to_end(fid.generate(**alone, **options)[0].tolist()) == row


@pytest.mark.parametrize(("kind", "layer"), [("decoder", "model.layers.0"), ("fid", "encoder.block.0")])
def test_answers_with_a_layer_in_cpu_memory_are_those_of_a_whole_model(tmp_path, kind, layer):
    """As with --device_map auto: accelerate copies the layer to the GPU; on another GPU it would move the inputs."""
    folder = save_decoder(tmp_path) if kind == "decoder" else save_seq2seq(tmp_path)
    ids = torch.arange(5, 25).view(2, 10)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if kind == "decoder" else dict(FID_BATCHES[0])
    batch.pop("labels", None)
    whole = load_generator(accelerator_on(), folder, is_fid=kind == "fid")
    leaves = [name for name, part in whole.model.named_modules() if not [*part.children()]]
    device_map = {name: 0 if IS_CUDA else "cpu" for name in leaves if not name.startswith(layer)}
    split = load_generator(
        accelerator_on(),
        folder,
        is_fid=kind == "fid",
        device_map=device_map | {layer: "cpu" if IS_CUDA else "disk"},
    )
    assert any(parameter.is_meta for parameter in split.parameters())
    options = {"max_new_tokens": 8, "eos_token_id": EOS, "pad_token_id": PAD}
    answers = [model.generate(**to(DEVICE, batch), **options) for model in (whole, split)]
    assert answers[0].equal(answers[1])


# Retrieval


@pytest.mark.parametrize(("in_bf16", "tolerance"), [(False, 1e-5), (True, 1e-2)], ids=["float32", "bfloat16"])
def test_retrieval_equals_that_of_the_cpu(world, tmp_path, monkeypatch, record_property, in_bf16, tolerance):
    """Passages are embedded in bfloat16 on a GPU: two passages with close scores may then change places."""
    corpus = open_passages(world.corpus)
    queries = [row["question"] for row in read_jsonl(Path(world.train))]
    retrieved = []
    for device in (CPU, DEVICE):
        fast = in_bf16 and bool(retrieved)
        monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda _, fast=fast: fast)
        retriever = open_retriever(corpus, world.encoder, tmp_path / f"{len(retrieved)}", device=device)
        assert {parameter.device.type for parameter in retriever.encoder.model.parameters()} == {device.type}
        retrieved.append(retriever.retrieve(queries, len(corpus)))
    differences = []
    for expected, found in zip(*retrieved, strict=True):
        score_of = {hit.passage: hit.score for hit in expected}
        for hit, expected_hit in zip(found, expected, strict=True):
            differences += [abs(hit.score - score_of[hit.passage]), abs(score_of[hit.passage] - expected_hit.score)]
    record_property("largest difference of scores", max(differences))
    record_property(
        "equal rankings", sum([h.passage for h in a] == [h.passage for h in b] for a, b in zip(*retrieved, strict=True))
    )
    assert max(differences) < tolerance


# Memory


SMALL = {"layers": 2, "vocabulary": 500, "tokens": 64, "share": 4}
FULL = {"layers": 12, "vocabulary": 32_000, "tokens": 1024, "share": 1}
SIZES = FULL if IS_CUDA else SMALL  # tokens are those of prompt and answer; the share divides the width
LLAMA = {"vocab_size": SIZES["vocabulary"], "num_hidden_layers": SIZES["layers"]}
T5 = {"vocab_size": SIZES["vocabulary"], "num_layers": SIZES["layers"], "dropout_rate": 0.0}


def llama(width):
    """Return a Llama; with a width of 768 it has the size of the smallest GPT-2."""
    width //= SIZES["share"]
    config = LlamaConfig(hidden_size=width, intermediate_size=width * 8 // 3, num_attention_heads=width // 64, **LLAMA)
    return seeded(lambda: LlamaForCausalLM(config))


def t5(width):
    """Return a T5; with a width of 768 it has the size of T5-base."""
    width //= SIZES["share"]
    heads = {"d_kv": 64, "num_heads": width // 64, "decoder_start_token_id": PAD}
    config = T5Config(d_model=width, d_ff=4 * width, **heads, **T5)
    return seeded(lambda: T5ForConditionalGeneration(config))


def seeded(make):
    with DEVICE:
        torch.manual_seed(0)
        return make().train()


def rows_of(kind):
    """Return four encoded examples of a micro-batch."""
    prompts = [SIZES["tokens"] // 5 - 6] * 10 if kind == "fid" else [SIZES["tokens"] - 32]
    return [EncodedExample([[7] * length for length in prompts], [7] * 32) for _ in range(4)]


def batch_of(kind):
    rows = rows_of(kind)
    if kind == "fid":
        batch = random_passages([[len(prompt) for prompt in row.prompts] for row in rows], [32] * 4)
    else:
        batch = random_batch([(len(row.prompts[0]), 32) for row in rows])
    return to(DEVICE, batch)


def gradient_distance(found, expected):
    """Return the largest relative norm of the difference of a gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - e).norm() / e.norm().clamp(min=1e-12)) for name, e in expected.items())


def run_once(model, batch, into):
    def run():
        model.zero_grad()
        model(**batch).sum().backward()
        into.append(gradients(model.model))

    return run


@pytest.mark.parametrize("kind", MODELS)
def test_gradient_checkpointing_changes_no_gradient_and_takes_less_memory(kind, record_property):
    model = AnswerLM(llama(512)) if kind == "decoder" else FusionInDecoder(t5(512))
    batch, found = batch_of(kind), []
    run_once(model, batch, [])()  # with buffers that stay
    peaks = [peak_bytes(run_once(model, batch, found))]
    if kind == "fid":
        model.encoder_batch_size = 2
        peaks.append(peak_bytes(run_once(model, batch, found)))
        model.encoder_batch_size = None
    model.model.gradient_checkpointing_enable({"use_reentrant": False})
    peaks.append(peak_bytes(run_once(model, batch, found)))
    record_property("GiB without and with checkpointing", [round(peak / 2**30, 3) for peak in peaks])
    distances = [gradient_distance(other, found[0]) for other in found[1:]]
    record_property("relative norms of the differences of gradients", distances)
    assert max(distances) < 1e-2  # of encoder calls with other padding: 2.5e-3 on an H200
    if IS_CUDA:
        assert max(peaks[1:]) < 0.7 * peaks[0]


def test_logits_of_answers_alone_give_the_same_gradients_in_less_memory(record_property):
    lm, batch, found = llama(256), batch_of("decoder"), []

    class WholeLogits(AnswerLM):
        def forward(self, input_ids, labels):
            logits = self.model(input_ids, use_cache=False).logits[:, :-1].float()
            return cross_entropy(logits.mT, labels[:, 1:], reduction="none", ignore_index=-100).sum(-1)

    run_once(AnswerLM(lm), batch, [])()
    peaks = [peak_bytes(run_once(make(lm), batch, found)) for make in (AnswerLM, WholeLogits)]
    record_property("GiB with logits of answers, with all logits", [round(peak / 2**30, 3) for peak in peaks])
    assert gradient_distance(found[0], found[1]) < 1e-3
    if IS_CUDA:
        assert peaks[0] < 0.8 * peaks[1]


ESTIMATES = {
    "Llama of 134 million, bf16": ("decoder", "bf16", False),
    "Llama of 134 million, bf16, checkpointing": ("decoder", "bf16", True),
    "Llama of 134 million, fp32": ("decoder", "no", False),
    "T5-base, bf16": ("fid", "bf16", False),
    "T5-base, bf16, checkpointing": ("fid", "bf16", True),
    "T5-base, fp32": ("fid", "no", False),
    "Llama of 134 million, bf16, adapter": ("decoder", "bf16", True, Lora(16, 32.0)),
    "Llama of 134 million, bf16, adapter on 4 bits": ("decoder", "bf16", True, Lora(16, 32.0), True),
}


@pytest.mark.parametrize("case", ESTIMATES)
def test_the_estimate_of_memory_is_near_the_measured_peak(case, record_property):
    kind, precision, checkpointing, *more = ESTIMATES[case]
    lora, in_4_bits = more[0] if more else None, len(more) > 1
    accelerator, configs = accelerator_on(precision, 2), []

    def train():
        model = AnswerLM(llama(768)) if kind == "decoder" else FusionInDecoder(t5(768))
        configs.append(model.config)
        if lora:
            model.model.to(torch.bfloat16)
            if in_4_bits:
                quantize(model.model, torch.bfloat16)
            add_adapter(model.model, lora)
        if checkpointing:
            model.model.gradient_checkpointing_enable({"use_reentrant": False})
        model, optimizer = accelerator.prepare(model, make_optimizer(model))
        batch = batch_of(kind)
        doubled = {name: tensor.repeat_interleave(2, 0) for name, tensor in batch.items()}  # both micro-batches
        steps = steps_of(accelerator, model, optimizer, [doubled] * 2)
        assert [step.skipped for step in steps] == [False, False]

    peak = peak_bytes(train)
    options = {"precision": precision, "accumulation": 2, "gradient_checkpointing": checkpointing}
    adapter = {"lora": lora, "load_in_4bit": in_4_bits}
    number, held = training_memory(configs[0], rows_of(kind), **options, **adapter)
    estimate = sum(held.values())
    sizes = {name: round(size / 2**30, 3) for name, size in held.items()}
    record_property(case, f"measured {peak / 2**30:.3f} GiB, {peak / estimate:.3f} of the estimate {sizes}")
    assert number > 10**6
    if IS_CUDA:
        assert 0.5 < peak / estimate < 1.5


# Speed


PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362}  # dense, bfloat16, by the vendor


def test_tokens_per_second_and_the_share_of_the_peak_are_recorded(record_property):
    model, batch, found = AnswerLM(llama(768)), batch_of("decoder"), []
    with accelerator_on("bf16").autocast():
        step = run_once(model, batch, found)
        step()
        start = time.perf_counter()
        for _ in range(5):
            step()
        float(found[-1]["lm_head.weight"].sum())  # waits for the device
    tokens = 5 * batch["input_ids"].numel() / (time.perf_counter() - start)
    record_property("tokens/s", round(tokens))
    name = torch.cuda.get_device_name() if IS_CUDA else "CPU"
    for card, peak in PEAK_TFLOPS.items():
        if card in name:
            number = sum(parameter.numel() for parameter in model.parameters())
            record_property(f"share of the peak of {name}", round(6 * number * tokens / (peak * 1e12), 3))
    assert len(found) == 6


# Recipes


ONE_GPU = (*ACCELERATE_LAUNCH, "--config_file", str(CONFIGS / "accelerate_one_gpu.yaml"))
DETERMINISTIC = (*ONE_GPU, __file__)  # this file as a script
RECIPES = {"decoder": "swr_starling.py", "fid": "fid_flan_t5.py"}


@pytest.fixture(scope="module")
def unbroken(world):
    """A function from kind and launcher to the flags of an uninterrupted run, its folder, and its number of touches."""
    save_decoder(world.folder / "decoder", decoder(dropout=0.2))
    save_seq2seq(world.folder / "fid", seq2seq(dropout=0.2))

    @cache
    def run_of(kind, by):
        def flags(out):
            name = {"model_name_or_path": str(world.folder / kind), "bf16": "true", "per_device_eval_batch_size": "3"}
            return flags_of(world, out, **name)

        out = world.folder / f"{kind}-{len(by)}"
        return flags, out, run_until(RECIPES[kind], flags(out), by)

    return run_of


def grouped(*values):
    """Return parameters; each runs in its own process of `--dist loadgroup`."""
    return [pytest.param(*value, marks=pytest.mark.xdist_group("-".join(map(str, value)))) for value in values]


@pytest.mark.parametrize(("kind", "kernels"), grouped(*((kind, "default") for kind in RECIPES)))
def test_evaluation_of_the_saved_model_equals_the_test_of_the_run(world, unbroken, tmp_path, kind, kernels):
    _, run, _ = unbroken(kind, ONE_GPU)
    flags = {
        "--qa_model_name_or_path": str(run / "model"),
        "--qa_is_fid": str(kind == "fid").lower(),
        "--embedding_model_name_or_path": world.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--document_path": world.corpus,
        "--index_path": str(world.folder / "index"),
        "--eval_data_path": world.test,
        "--batch_size": "3",
        "--max_new_tokens": "6",
        "--bf16": "true",
        "--output_dir": str(tmp_path / "out"),
    }
    launch("evaluate.py", flags, by=ONE_GPU)
    scores = [json.loads((out / "score.json").read_text()) for out in (tmp_path / "out", run / "test")]
    assert scores[0]["metrics"] == pytest.approx(scores[1]["metrics"], rel=1e-5)
    assert scores[0]["runtime"]["stages"].keys() == {"embed", "search", "prompt", "prefill", "decode"}
    if IS_CUDA:
        assert scores[0]["runtime"]["device"] == torch.cuda.get_device_name()
    answers = [
        [row["answer"] for row in read_jsonl(out / "predictions.jsonl")] for out in (tmp_path / "out", run / "test")
    ]
    assert answers[0] == answers[1]
    steps = [row for row in read_jsonl(run / "metrics.jsonl") if "step" in row]
    assert len(steps) == 14
    assert not any(row.get("skipped") for row in steps)


@pytest.mark.parametrize(
    ("kind", "kernels"), grouped(*((kind, kernels) for kernels in ("default", "deterministic") for kind in RECIPES))
)
def test_a_killed_and_resumed_run_equals_an_unbroken_one(unbroken, tmp_path, record_property, kind, kernels):
    """With deterministic kernels byte by byte; torch's default ones add up gradients in any order."""
    by = DETERMINISTIC if kernels == "deterministic" else ONE_GPU
    flags, run, touches = unbroken(kind, by)
    broken = tmp_path / "run"
    run_until(RECIPES[kind], flags(broken), by, int(0.6 * touches))
    assert [*(broken / "checkpoints").glob("step-*")]
    assert not (broken / "test").exists()
    launch(RECIPES[kind], flags(broken) | {"--resume_from_checkpoint": "latest"}, by=by)
    is_same = outcome(broken) == outcome(run)
    record_property("byte-identical", is_same)
    losses = [[row["loss"] for row in read_jsonl(out / "metrics.jsonl") if "step" in row] for out in (broken, run)]
    record_property("largest difference of losses", max(abs(a / b - 1) for a, b in zip(*losses, strict=True)))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert is_same or kernels == "default"


@pytest.mark.xdist_group("zero")
@pytest.mark.parametrize(("stage", "file"), [(2, "ds_config.json"), (3, "ds_zero3.json")])
def test_zero_on_one_device_equals_a_run_without_it(request, world, tmp_path, record_property, stage, file):
    """On a GPU by NCCL."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    launcher = (
        *ACCELERATE_LAUNCH,
        "--config_file",
        str(CONFIGS / f"accelerate_zero{stage}.yaml"),
        "--num_processes",
        "1",
    )
    zero = {}
    if not IS_CUDA:
        request.getfixturevalue("deepspeed_on_cpu")
        launcher, zero = (sys.executable, DEEPSPEED_ON_CPU), {"deepspeed": str(CONFIGS / file)}
    launch(RECIPES["decoder"], flags_of(world, tmp_path / "plain"), by=ACCELERATE_LAUNCH)
    launch(RECIPES["decoder"], flags_of(world, tmp_path / "zero", **zero), by=launcher)
    assert_same_run(tmp_path / "zero", tmp_path / "plain")
    launch(RECIPES["decoder"], flags_of(world, tmp_path / "bf16", **zero | {"bf16": "true"}), by=launcher)
    losses = [
        [row["loss"] for row in read_jsonl(tmp_path / name / "metrics.jsonl") if "step" in row]
        for name in ("bf16", "plain")
    ]
    record_property(
        f"largest difference of losses, ZeRO-{stage} bf16 to fp32",
        max(abs(a / b - 1) for a, b in zip(*losses, strict=True)),
    )
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.xdist_group("flash")
@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_an_error_that_names_it(world, tmp_path):
    flags = flags_of(world, tmp_path / "run", use_flash_attention="true", bf16="true")
    printed = launch(RECIPES["decoder"], flags, expect=2)
    error = printed.partition("error: ")[2]
    assert "--use_flash_attention" in error
    assert ("pip install flash-attn" if IS_CUDA else "CUDA") in error
    assert "Traceback" not in printed


if __name__ == "__main__":
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # required by deterministic matrix products
    torch.use_deterministic_algorithms(True, warn_only=True)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
