"""Weights in 4 bits: NF4 by hand, a dense reference of loss and gradients, the state, the merged weights."""

import hashlib

import bitsandbytes
import pytest
import tiny_models
import tiny_seq2seq
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import AutoModelForCausalLM

from rqa.distributed.weights import quantization_tensors
from rqa.errors import InputError
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.models.loading import load_model
from rqa.models.lora import Lora, add_adapter, merged_state
from rqa.models.quantization import dequantized, quantize, quantized_bytes, quantized_layers

IDS = torch.arange(5, 25).view(2, 10)
LABELS = IDS.clone()
LABELS[:, :4] = -100
EVERY_LAYER = Lora(rank=3, alpha=5.0)
NF4 = torch.tensor(  # appendix E of the paper
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)


def quantized():
    """Return a decoder in 4 bits, with an adapter whose B is not zero."""
    model = tiny_models.wide_decoder()
    model.name_or_path = "base"
    quantize(model, torch.float32)
    add_adapter(model, EVERY_LAYER)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def in_4_bits(model):
    return {name: p for name, p in model.named_parameters() if isinstance(p, bitsandbytes.nn.Params4bit)}


def frozen_hash(model):
    digest = hashlib.sha256()
    for parameter in model.parameters():
        for tensor in (parameter.data, *quantization_tensors(parameter)) if not parameter.requires_grad else ():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_weights_are_the_nearest_values_of_the_paper_by_blocks():
    plain, model = tiny_models.wide_decoder(), quantized()
    weights = in_4_bits(model)
    assert len(weights) == 14
    for name, parameter in weights.items():
        blocks = plain.get_parameter(name.replace(".base_layer", "")).detach().view(-1, 64)
        maxima = blocks.abs().amax(1, keepdim=True)
        expected = NF4[(blocks[..., None] / maxima[..., None] - NF4).abs().argmin(-1)] * maxima
        got = dequantize_4bit(parameter.data, parameter.quant_state).view(-1, 64)
        torch.testing.assert_close(got, expected, rtol=0.04, atol=0.0)  # the maxima are in 8 bits
        assert (got / got.abs().amax(1, keepdim=True) - expected / maxima).abs().max() < 1e-6


def test_loss_and_gradients_are_those_of_the_dequantized_weights():
    """With G the gradient of W: that of A is (alpha / rank) Bᵀ·G, that of B is (alpha / rank) G·Aᵀ."""
    model, reference = quantized(), tiny_models.wide_decoder()
    state = model.state_dict()
    pairs = {
        name: [state[f"{name}.lora_{part}.default.weight"] for part in "AB"] for name in quantized_layers(reference)
    }
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            base = model.get_parameter(f"{name}.base_layer.weight")
            reference.get_parameter(f"{name}.weight").copy_(
                dequantize_4bit(base.data, base.quant_state) + 5.0 / 3 * torch.einsum("or,ri->oi", b, a)
            )
    losses = []
    for lm in (model, reference):
        losses.append(AnswerLM(lm)(IDS, LABELS))
        losses[-1].sum().backward()
    torch.testing.assert_close(*losses)
    assert not torch.allclose(losses[0], AnswerLM(tiny_models.wide_decoder())(IDS, LABELS), rtol=1e-2)
    for name, (a, b) in pairs.items():
        gradient = reference.get_parameter(f"{name}.weight").grad
        got_a, got_b = (model.get_parameter(f"{name}.lora_{part}.default.weight").grad for part in "AB")
        torch.testing.assert_close(got_a, 5.0 / 3 * b.T @ gradient, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(got_b, 5.0 / 3 * gradient @ a.T, rtol=1e-3, atol=1e-4)


def test_the_merged_state_computes_what_the_model_in_4_bits_computes():
    model = quantized()
    merged = tiny_models.wide_decoder()
    state = merged_state(model, dequantized(model, model.state_dict()))
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in merged.state_dict().items()
    }
    merged.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_and_evaluation_change_no_weight_of_the_base(tmp_path, monkeypatch, precision):
    """Also on a CPU for which bitsandbytes packs the weights of a model in evaluation anew."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    base = tiny_models.save_decoder(tmp_path / "base", tiny_models.wide_decoder())
    options = {"lora": EVERY_LAYER, "load_in_4bit": True, "precision": precision}
    model = AnswerLM(load_model(AutoModelForCausalLM, base, "decoder", **options))
    before, losses = frozen_hash(model), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(10):
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(IDS, LABELS).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        model.eval()
        model.generate(IDS, torch.ones_like(IDS), max_new_tokens=2, do_sample=False)
    assert losses[-1] < 0.7 * losses[0]
    assert frozen_hash(model) == before
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_an_encoder_decoder_reads_passages_with_weights_in_4_bits():
    """T5 keeps "wo", whose dtype it reads."""
    plain = tiny_seq2seq.wide_t5()
    plain.name_or_path = "base"
    quantize(plain, torch.float32)
    add_adapter(plain, EVERY_LAYER)
    fid = FusionInDecoder(plain)
    ids, mask = torch.arange(3, 27).view(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.long)
    fid(ids, mask, torch.tensor([[4, 5, 1], [6, 1, -100]])).sum().backward()
    assert [name for name, p in fid.named_parameters() if p.requires_grad and p.grad is None] == []
    layers = {name.split(".")[-3] for name in in_4_bits(plain)}
    assert {"q", "k", "v", "o", "wi"} <= layers or {"q", "k", "v", "o", "wi_0", "wi_1"} <= layers
    assert "wo" not in layers
    assert fid.generate(ids, mask, max_new_tokens=3).shape[0] == 2


def test_a_state_has_no_statistics_and_bytes_are_counted():
    model = quantized()
    assert not [name for name in model.state_dict() if ".weight." in name]
    for parameter in in_4_bits(model).values():
        statistics = parameter.quant_state
        tables = (statistics.code, statistics.state2.code)
        tensors = (parameter, *quantization_tensors(parameter), *tables)
        assert quantized_bytes(statistics.shape.numel()) == sum(tensor.nbytes for tensor in tensors)


def test_a_model_that_is_trained_or_has_no_linear_layers_is_refused(tmp_path):
    base = tiny_models.save_decoder(tmp_path / "base")
    with pytest.raises(InputError, match=r"--load_in_4bit: .*--lora_rank"):
        load_model(AutoModelForCausalLM, base, "decoder", load_in_4bit=True)
    for model in (tiny_models.decoder("gpt2"), tiny_models.decoder()):  # other layers, and layers with 32 or 48 inputs
        with pytest.raises(InputError, match="--load_in_4bit: expected linear layers with multiples of 64 inputs"):
            quantize(model, torch.float32)
