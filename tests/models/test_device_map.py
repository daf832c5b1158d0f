"""Models that are split over devices: the answers of the whole model, where their states are, adapters, errors."""

import logging
import runpy
import sys
from types import SimpleNamespace

import accelerate.hooks
import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file
from tiny_models import decoder, save_decoder
from tiny_seq2seq import save_seq2seq, seq2seq
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_outputs import BaseModelOutput
from world import ROOT

from rqa.cli.data_args import GeneratorArgs
from rqa.errors import InputError
from rqa.models.decoder import AnswerLM
from rqa.models.loading import _split
from rqa.models.lora import Lora, add_adapter, save_adapter

IDS = torch.arange(5, 25).view(2, 10)
ON_DISK = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "disk"}
ON_DISK |= {"model.rotary_emb": "cpu", "lm_head": "disk"}
LAYERS_IN_MEMORY = ON_DISK | {"model.layers.0": "cpu"}


@pytest.fixture
def little_memory(monkeypatch):
    """Hooks of accelerate run as on GPUs: the CPU has memory for a part of the model, the rest is on disk."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=90_000))


def evaluate(world, monkeypatch, out, model, **more):
    """Run recipes/evaluate.py in this process, and return its predictions."""
    flags = {
        "model_name_or_path": model,
        "embedding_model": world.encoder,
        "embedding_max_num_to_retrieve": "2",
        "full_dataset_file_path": world.corpus,
        "full_dataset_index_path": str(world.folder / "index"),
        "test_file": world.test,
        "attribution": "leave_one_out",
        "bf16": "false",
        "max_new_tokens": "6",
        "output_dir": str(out),
        **more,
    }
    argv = [word for name, value in flags.items() for word in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *argv])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "recipes/evaluate.py"), run_name="__main__")
    assert not end.value.code
    return (out / "predictions.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["decoder", "fid"])
def test_a_split_model_has_the_answers_losses_and_evidence_of_the_whole(
    world, monkeypatch, tmp_path, little_memory, caplog, kind
):
    model = save_decoder(tmp_path / "m") if kind == "decoder" else save_seq2seq(tmp_path / "m")
    more = {"qa_is_fid": str(kind == "fid").lower()}
    whole = evaluate(world, monkeypatch, tmp_path / "whole", model, **more)
    with caplog.at_level(logging.INFO, "rqa"):
        split = evaluate(world, monkeypatch, tmp_path / "split", model, device_map="auto", **more)
    assert split == whole
    assert " on cpu, " in caplog.text
    assert " on CPU or disk" in caplog.text


def test_a_model_that_fits_is_not_split(world, monkeypatch, tmp_path):
    whole = evaluate(world, monkeypatch, tmp_path / "whole", world.model)
    assert evaluate(world, monkeypatch, tmp_path / "auto", world.model, device_map="auto") == whole


# Where the states are. In FakeTensorMode "meta" is a second device: a product of tensors of two devices is an error.


@pytest.fixture
def placed(monkeypatch):
    """Return a model without content, split by a map. Accelerate's way to place a weight needs content."""

    def place(module, name, device, **_):
        path, _, leaf = name.rpartition(".")
        part = module.get_submodule(path)
        tensors = part._parameters if leaf in part._parameters else part._buffers
        tensor = tensors[leaf].detach().to(device)
        tensors[leaf] = nn.Parameter(tensor, requires_grad=False) if tensors is part._parameters else tensor

    def split(model, device_map):
        for module in model.modules():
            for name, weight in module._parameters.items():
                module._parameters[name] = weight if weight is None else nn.Parameter(torch.empty(weight.shape), False)
            for name, buffer in module._buffers.items():
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        model.tie_weights()
        dispatch_model(model, device_map, main_device="cpu", skip_keys=model._skip_keys_device_placement)
        _split(model)
        return model

    monkeypatch.setattr(accelerate.hooks, "set_module_tensor_to_device", place)
    return split


@pytest.fixture
def without_content():
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def test_states_of_a_decoder_return_to_the_device_of_the_masks(placed, without_content):
    model = placed(decoder(), {name: "cpu" if "0" in name or "emb" in name else "meta" for name in ON_DISK})
    ids = torch.zeros(2, 9, dtype=torch.long)
    assert model.lm_head.weight.device.type == "meta"
    assert model.base_model(ids).last_hidden_state.device.type == "cpu"
    assert AnswerLM(model).model(ids, logits_to_keep=3).logits.device.type == "cpu"


def test_states_of_an_encoder_return_to_the_device_of_the_masks(placed, without_content):
    shared = dict.fromkeys(["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"], "cpu")
    first = dict.fromkeys(["encoder.block.0", "decoder.block.1"], "cpu")
    names = ["encoder.block.1", "decoder.block.0", *(f"{p}.final_layer_norm" for p in ("encoder", "decoder"))]
    model = placed(seq2seq(), shared | first | dict.fromkeys(names, "meta"))
    ids = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.ones_like(ids)
    states = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    assert states.device.type == "cpu"
    encoded = BaseModelOutput(last_hidden_state=states)
    assert model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=ids).logits.device.type == "cpu"


# Adapters and errors


@pytest.fixture
def adapter(tmp_path):
    """A folder with an adapter whose B is not zero."""
    model = AnswerLM.from_pretrained(save_decoder(tmp_path / "base")).model
    add_adapter(model, Lora(3, 6.0))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.3)
    (tmp_path / "adapter").mkdir()
    save_adapter(model, model.state_dict(), tmp_path / "adapter")
    return str(tmp_path / "adapter")


def test_an_adapter_is_added_to_a_split_model(adapter):
    whole = AnswerLM.from_pretrained(adapter, is_trained=False)
    split = AnswerLM.from_pretrained(adapter, is_trained=False, device_map=LAYERS_IN_MEMORY)
    assert split.model.lm_head.weight.is_meta
    assert split.model(IDS).logits.equal(whole.model(IDS).logits)


def test_an_adapter_of_weights_on_disk_is_an_error(adapter):
    with pytest.raises(InputError, match=r"--device_map: expected GPUs .*merge_adapter true"):
        AnswerLM.from_pretrained(adapter, is_trained=False, device_map=ON_DISK)


def test_a_weight_on_disk_that_is_not_finite_is_an_error(tmp_path):
    path = save_decoder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"expected finite weights, got 1 values in model\.norm\.weight"):
        AnswerLM.from_pretrained(path, is_trained=False, device_map=ON_DISK)


def test_several_processes_are_an_error_before_any_file_is_read(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    GeneratorArgs().check()
    with pytest.raises(InputError, match=r"--device_map auto: expected one process.* got 4\. Launch with `python "):
        GeneratorArgs(device_map="auto").check()


def test_the_options_of_the_flags():
    assert GeneratorArgs(qa_is_fid=True, encoder_batch_size=2, device_map="auto").load_options == {
        "is_fid": True,
        "encoder_batch_size": 2,
        "device_map": "auto",
        "load_in_4bit": False,
    }
    assert GeneratorArgs().load_options["device_map"] is None
