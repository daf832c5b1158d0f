"""Low-rank adapters: a hand-written reference, peft's own loader, and adapters that do not fit."""

import json
import re
from pathlib import Path

import peft
import pytest
import tiny_models
import tiny_seq2seq
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from rqa.distributed.hub import base_model
from rqa.errors import InputError
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder
from rqa.models.loading import load_model
from rqa.models.lora import Lora, add_adapter, has_adapter, merged_state, save_adapter

IDS = torch.arange(5, 25).view(2, 10)
LABELS = IDS.clone()
LABELS[:, :4] = -100
EVERY_LAYER = Lora(rank=3, alpha=5.0)


def adapted(family="llama", lora=EVERY_LAYER):
    """Return a decoder with an adapter whose B is not zero."""
    model = tiny_models.decoder(family)
    model.name_or_path = "base"
    add_adapter(model, lora)
    randomize(model)
    return model


def randomize(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)


def dense(model, family="llama"):
    """Return the plain model with W + (alpha / rank) · B·A in place of W, written out by hand; and A, B by layer."""
    plain, state = tiny_models.decoder(family), model.state_dict()
    pairs = {
        name.removesuffix(".lora_A.default.weight"): (state[name], state[name.replace("lora_A", "lora_B")])
        for name in state
        if ".lora_A." in name
    }
    with torch.no_grad():
        for name, (a, b) in pairs.items():
            weight = plain.get_parameter(f"{name}.weight")
            change = 5.0 / 3 * torch.einsum("or,ri->oi", b, a)
            weight += change.T if family == "gpt2" else change
    return plain, pairs


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_loss_and_gradients_are_those_of_a_dense_reference(family):
    """With G the gradient of W: that of A is (alpha / rank) Bᵀ·G, that of B is (alpha / rank) G·Aᵀ."""
    model = adapted(family)
    reference, pairs = dense(model, family)
    losses = []
    for lm in (model, reference):
        losses.append(AnswerLM(lm)(IDS, LABELS))
        losses[-1].sum().backward()
    torch.testing.assert_close(*losses)
    assert len(pairs) == {"llama": 14, "gemma2": 14, "gpt2": 8}[family]
    for name, (a, b) in pairs.items():
        gradient = reference.get_parameter(f"{name}.weight").grad
        gradient = gradient.T if family == "gpt2" else gradient
        got_a, got_b = (model.get_parameter(f"{name}.lora_{part}.default.weight").grad for part in "AB")
        torch.testing.assert_close(got_a, 5.0 / 3 * b.T @ gradient, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(got_b, 5.0 / 3 * gradient @ a.T, rtol=1e-3, atol=1e-4)


def test_only_adapters_are_trained_and_the_first_output_is_that_of_the_base():
    model = tiny_models.decoder()
    add_adapter(model, EVERY_LAYER)
    assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert torch.equal(model(IDS).logits, tiny_models.decoder()(IDS).logits)
    assert has_adapter(model)
    assert not has_adapter(tiny_models.decoder())


def test_adapters_are_the_same_for_the_same_seed_and_leave_the_random_numbers():
    torch.manual_seed(5)
    models = [tiny_models.decoder(), tiny_models.decoder(), tiny_models.decoder()]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        add_adapter(model, EVERY_LAYER, seed)
    after = torch.rand(1)
    first, second, other = (dict(model.named_parameters()) for model in models)
    name = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def save_base(folder):
    return tiny_models.save_decoder(folder / "base")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_saved_adapter_is_that_of_peft(tmp_path, precision):
    base = save_base(tmp_path)
    model = load_model(AutoModelForCausalLM, base, "decoder", lora=EVERY_LAYER, precision=precision)
    randomize(model)
    dtype = {"no": torch.float32, "bf16": torch.bfloat16}[precision]
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {dtype}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    (tmp_path / "adapter").mkdir()
    save_adapter(model, model.state_dict(), tmp_path / "adapter")
    assert base_model(str(tmp_path / "adapter")) == base
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    ours = load_model(AutoModelForCausalLM, str(tmp_path / "adapter"), "decoder", precision=precision)
    with torch.no_grad():
        expected = model(IDS).logits
        assert not torch.equal(expected, tiny_models.decoder().to(dtype)(IDS).logits)
        assert torch.equal(ours(IDS).logits, expected)
        assert torch.equal(theirs(IDS).logits, expected)
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    theirs.save_pretrained(str(tmp_path / "theirs"))
    written = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "theirs")]
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(tensor.float(), written[1][name].float()) for name, tensor in written[0].items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
def test_the_merged_state_is_that_of_peft(family):
    model = adapted(family)
    ours = merged_state(model, model.state_dict())
    plain, _ = dense(model, family)
    assert ours.keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, msg=name)


def test_an_adapter_of_fusion_in_decoder_is_trained_and_read_again(tmp_path):
    plain = tiny_seq2seq.t5()
    plain.save_pretrained(tmp_path / "base")
    fid = FusionInDecoder.from_pretrained(str(tmp_path / "base"), lora=EVERY_LAYER)
    ids, mask = torch.arange(3, 27).view(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.long)
    fid(ids, mask, torch.tensor([[4, 5, 1], [6, 1, -100]])).sum().backward()
    without = [n for n, p in fid.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    randomize(fid.model)
    (tmp_path / "adapter").mkdir()
    save_adapter(fid.model, fid.model.state_dict(), tmp_path / "adapter")
    again = load_model(AutoModelForSeq2SeqLM, str(tmp_path / "adapter"), "encoder-decoder")
    inputs = {"input_ids": ids[:, 0], "decoder_input_ids": ids[:, 1]}
    assert torch.equal(again(**inputs).logits, fid.model(**inputs).logits)


def harmed(folder, *, config=None, weights=None):
    model = adapted()
    model.name_or_path = save_base(folder)
    model.peft_config["default"].base_model_name_or_path = model.name_or_path
    path = folder / "adapter"
    path.mkdir()
    save_adapter(model, model.state_dict(), path)
    if config is not None:
        settings = json.loads((path / "adapter_config.json").read_text()) | config
        (path / "adapter_config.json").write_text(json.dumps(settings))
    if weights is not None:
        save_file(weights(load_file(path / "adapter_model.safetensors")), path / "adapter_model.safetensors")
    return str(path)


HARMS = {
    "another kind": ({"peft_type": "IA3"}, None, r"adapter_config\.json: .*LORA.*IA3"),
    "another product": ({"use_dora": True}, None, r"adapter_config\.json: .*use_dora"),
    "no base": ({"base_model_name_or_path": None}, None, r"base_model_name_or_path, got None"),
    "another rank": ({"r": 2}, None, r"adapter_model\.safetensors: .*size mismatch"),
    "a missing weight": (None, lambda w: dict(list(w.items())[1:]), r"adapter_model\.safetensors: .*1 missing.* 0 unk"),
    "an unknown weight": (None, lambda w: w | {"base_model.model.x.lora_A.weight": w[min(w)].clone()}, "1 unknown"),
    "an embedding": ({"target_modules": ["embed_tokens"]}, None, "adapter"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("device_map", [None, "meta"])
def test_an_adapter_that_does_not_fit_is_one_line(tmp_path, harm, device_map):
    config, weights, message = HARMS[harm]
    with pytest.raises(InputError, match=message) as raised:
        load_model(
            AutoModelForCausalLM, harmed(tmp_path, config=config, weights=weights), "decoder", device_map=device_map
        )
    assert "\n" not in str(raised.value)


def test_a_cut_adapter_and_an_adapter_of_an_adapter_are_refused(tmp_path):
    folder = Path(harmed(tmp_path))
    chained = harmed_base(tmp_path, str(folder))
    with pytest.raises(InputError, match="expected a whole checkpoint"):
        load_model(AutoModelForCausalLM, chained, "decoder")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_model(AutoModelForCausalLM, str(folder), "decoder")


def harmed_base(tmp_path, base):
    (tmp_path / "second").mkdir()
    return harmed(tmp_path / "second", config={"base_model_name_or_path": base})


def test_unknown_layers_are_an_error_that_lists_the_known_ones():
    with pytest.raises(InputError, match=r"--lora_target_modules: .*down_proj.*q_proj.*, got query"):
        add_adapter(tiny_models.decoder(), Lora(2, 4.0, 0.0, ("query",)))
    with pytest.raises(InputError, match="linear layers"):
        add_adapter(tiny_models.decoder(), Lora(2, 4.0, 0.0, ("embed_tokens",)))


def test_named_layers_alone_have_adapters():
    model = adapted(lora=Lora(2, 4.0, 0.0, ("q_proj", "v_proj")))
    assert {n.split(".")[-4] for n, p in model.named_parameters() if p.requires_grad} == {"q_proj", "v_proj"}


def test_an_adapter_and_a_rank_are_refused(tmp_path):
    with pytest.raises(InputError, match="--lora_rank"):
        load_model(AutoModelForCausalLM, harmed(tmp_path), "decoder", lora=EVERY_LAYER)
