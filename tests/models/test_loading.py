"""loading: damaged, foreign and untrusted checkpoints are one error each, before any weight is read."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import VOCABULARY, decoder, random_batch, save_decoder, tokenizer
from tiny_seq2seq import random_passages, save_seq2seq, seq2seq
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, LlamaForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import rqa.models.loading
from rqa.errors import InputError
from rqa.models.auto import export_dtype, load_collator
from rqa.models.decoder import AnswerLM, check_context_length
from rqa.models.families import UNSUPPORTED_MODELS
from rqa.models.fid import FusionInDecoder
from rqa.models.loading import load_config, load_model, num_embeddings


def change(folder, name="config.json", **values):
    path = Path(folder, name)
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def refused(path, message, *, is_fid=False):
    """Assert that `load_collator`, which every recipe calls, raises InputError in one line that names the path."""
    with pytest.raises(InputError, match=message) as caught:
        load_collator(path, is_fid=is_fid)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


# config.json


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"initializer_range": None}, "initializer_range"),
        ({"hidden_size": 32.0}, "hidden_size"),
        ({"num_attention_heads": 5}, "(heads|attention)"),
        ({"num_attention_heads": 0}, "no decoder can be loaded"),
        ({"vocab_size": -1}, "no decoder can be loaded"),
        ({"rope_parameters": {"rope_type": "unknown"}}, "unknown"),
        ({"hidden_act": "unknown"}, "unknown"),
        ({"pad_token_id": "x"}, "pad_token_id"),
        ({"model_type": "unknown"}, "unknown"),
    ],
)
def test_a_value_that_transformers_rejects_is_an_error(tmp_path, values, message):
    path = save_decoder(tmp_path)
    change(path, **values)
    refused(path, f": no decoder can be loaded: .*{message}|{message}")


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_local_experts"])
def test_a_number_of_layers_that_would_take_all_memory_is_an_error(tmp_path, key):
    path = save_decoder(tmp_path)
    change(path, text_config={key: 10**15})
    refused(path, f"config.json: expected 0 to 10000 in text_config.{key}, got {10**15}")


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "encoder_layers"])
def test_a_negative_number_of_layers_is_an_error(tmp_path, key):
    path = save_decoder(tmp_path)
    change(path, text_config={key: -1}, vision_feature_layer=-2)  # the second counts from the end
    refused(path, f"config.json: expected 0 to 10000 in text_config.{key}, got -1")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_an_error(tmp_path, value):
    path = save_decoder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"expected finite weights, got 1 values in model\.norm\.weight"):
        AnswerLM.from_pretrained(path)
    weights["model.norm.weight"][2:4] = torch.finfo(torch.float32).max  # their sum overflows
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    AnswerLM.from_pretrained(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_of_a_checkpoint_is_that_of_its_config_or_else_of_its_weights(tmp_path, dtype):
    path = save_decoder(tmp_path, decoder().to(dtype))
    assert export_dtype(path) == dtype
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if "dtype" not in k}))
    assert export_dtype(path) == dtype
    assert export_dtype(path, "float16") == torch.float16
    pickled(tmp_path)
    assert export_dtype(path) == dtype


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    path = save_decoder(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(path, "model.safetensors is a pointer of Git LFS, not its content")


@pytest.mark.parametrize("text", ['{"model_type": "llama"', "[]", "", "null"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_settings_that_are_not_a_json_object_are_an_error(tmp_path, name, text):
    path = save_decoder(tmp_path)
    (tmp_path / name).write_text(text)
    refused(path, rf"{name}: expected (a )?JSON")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_key_that_runs_code_is_an_error(tmp_path, name):
    path = save_decoder(tmp_path)
    change(path, name, _attn_implementation="someone/kernel")
    refused(path, f'{name}: expected settings that run no code, got _attn_implementation "someone/kernel"')


@pytest.mark.parametrize("value", ["eager", "flash_attention_2", "flex_attention"])
def test_the_attention_of_config_json_is_ignored(tmp_path, value):
    path = save_decoder(tmp_path)
    change(path, _attn_implementation=value, _experts_implementation="sonicmoe")
    assert load_config(path, "decoder")._attn_implementation is None
    config = AnswerLM.from_pretrained(path).model.config
    assert config._attn_implementation == "sdpa"
    assert config._experts_implementation != "sonicmoe"
    assert AnswerLM.from_pretrained(path, attention="eager").model.config._attn_implementation == "eager"


def test_outputs_are_objects_although_config_json_asks_for_tuples(tmp_path):
    path, batch = save_decoder(tmp_path), random_batch([(5, 3)])
    expected = AnswerLM.from_pretrained(path)(**batch)
    change(path, return_dict=False, output_hidden_states=True)
    assert AnswerLM.from_pretrained(path)(**batch).equal(expected)


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "config_groups": {}},
    ],
    ids=lambda value: value["quant_method"],
)
def test_a_quantized_checkpoint_is_an_error(tmp_path, quantization):
    path = save_decoder(tmp_path)
    change(path, quantization_config=quantization)
    refused(path, rf"expected weights of 16 or 32 bits, got quantized ones \({quantization['quant_method']}\)")


# Kinds


def test_an_encoder_is_not_a_decoder(tmp_path):
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertConfig(**sizes, intermediate_size=8).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    refused(str(tmp_path), r"expected a decoder, got an encoder \(bert\)")  # not: no chat template
    change(tmp_path, is_decoder=True)
    load_config(str(tmp_path), "decoder")


@pytest.mark.parametrize("name", ["distilbert", "electra", "camembert", "roberta", "rembert"])
def test_encoders_of_other_families_are_not_decoders(tmp_path, name):
    AutoConfig.for_model(name).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"expected a decoder, got an encoder \({name}\)"):
        load_config(str(tmp_path), "decoder")


@pytest.mark.parametrize("name", ["mistral3", "qwen2_5_vl", "llava"])
def test_a_model_of_images_and_text_is_an_error_that_names_its_kind(tmp_path, name):
    AutoConfig.for_model(name).save_pretrained(tmp_path)
    for kind in ("decoder", "encoder-decoder"):
        with pytest.raises(InputError, match=rf"expected an? {kind}.*, got a model of images and text \({name}\)"):
            load_config(str(tmp_path), kind)


def test_a_speech_model_is_not_an_encoder_decoder(tmp_path):
    AutoConfig.for_model("voxtral").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"expected an encoder-decoder.*got another kind of model \(voxtral\)"):
        load_config(str(tmp_path), "encoder-decoder")


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_MODELS.keys() & MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()))
def test_an_unsupported_family_is_an_error_with_the_reason(tmp_path, name):
    config = AutoConfig.for_model(name)
    for value in ("is_decoder", "is_encoder_decoder"):
        if hasattr(config, value):
            setattr(config, value, value == "is_decoder")
    config.save_pretrained(tmp_path)
    reason = re.escape(UNSUPPORTED_MODELS[name])
    with pytest.raises(InputError, match=f"models of type {name} are not supported: {reason}"):
        load_config(str(tmp_path), "decoder")


# Files


def test_a_folder_without_config_json_is_an_error(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    refused(str(tmp_path), r"expected a checkpoint folder, got no config\.json in it")


def test_an_adapter_without_its_base_model_is_an_error(tmp_path):
    path = save_decoder(tmp_path)
    settings = tmp_path / "adapter_config.json"
    settings.write_text('{"base_model_name_or_path": "no/model"}')
    with pytest.raises(InputError, match=r"^no/model: expected a checkpoint folder or a hub name"):
        load_collator(path)
    settings.write_text('{"base_model_name_or_path": ""}')
    refused(path, r"adapter_config\.json: expected the base model's name")


def test_an_adapter_of_an_adapter_is_an_error(tmp_path):
    base, path = save_decoder(tmp_path / "base"), save_decoder(tmp_path / "adapter")
    change(base, "adapter_config.json", base_model_name_or_path="no/model")
    change(path, "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(InputError, match="^" + re.escape(base) + ": expected a whole checkpoint .*, got an adapter"):
        load_collator(path)


def pickled(folder, **options):
    """Replace the safetensors files of a checkpoint by pickles with the same names; return the files."""
    for path in sorted(folder.glob("*.safetensors")):
        torch.save(load_file(path), folder / f"{path.stem.replace('model', 'pytorch_model')}.bin", **options)
        path.unlink()
    for index in folder.glob("model.safetensors.index.json"):
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    return sorted(folder.glob("pytorch_model*.bin"))


class Hostile:
    """A pickle that creates a folder when it is read as Python reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_weights_are_those_of_the_safetensors_files(tmp_path, caplog, is_sharded, is_zip):
    path = (sharded if is_sharded else save_decoder)(tmp_path)
    expected = AnswerLM.from_pretrained(path).state_dict()
    pickled(tmp_path, _use_new_zipfile_serialization=is_zip)
    load_collator(path)
    caplog.clear()
    with caplog.at_level("INFO", "rqa"):
        weights = AnswerLM.from_pretrained(path).state_dict()
    assert caplog.text.count("weights in the pickle format") == 1
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)
    assert not [warning for warning in caplog.messages if "MISSING" in warning]


def test_safetensors_files_are_preferred_to_pickles(tmp_path):
    path = save_decoder(tmp_path)
    torch.save(Hostile(tmp_path / "created"), tmp_path / "pytorch_model.bin")
    load_collator(path)
    AnswerLM.from_pretrained(path)
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_hostile_pickle_is_an_error_and_runs_nothing(tmp_path, is_zip):
    path = save_decoder(tmp_path)
    [file] = pickled(tmp_path)
    torch.save({**torch.load(file), "more": Hostile(tmp_path / "created")}, file, _use_new_zipfile_serialization=is_zip)
    refused(path, r"pytorch_model\.bin: expected weights, got a pickle that calls posix\.mkdir")
    with pytest.raises(InputError, match="a pickle that calls"):
        AnswerLM.from_pretrained(path)
    assert not (tmp_path / "created").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "created").exists()


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("size", [0, 4, 200, -1])
def test_a_cut_pickle_is_an_error_that_names_it(tmp_path, size, is_zip):
    path = sharded(tmp_path)
    shard = pickled(tmp_path, _use_new_zipfile_serialization=is_zip)[1]
    shard.write_bytes(shard.read_bytes()[:size])
    refused(path, rf"{shard.name}: expected weights, got a .*damaged")
    shard.unlink()
    refused(path, shard.name)


def test_a_pickle_of_other_values_is_an_error(tmp_path):
    path = save_decoder(tmp_path)
    [file] = pickled(tmp_path)
    weights = torch.load(file)
    missing = "model.layers.1.mlp.up_proj.weight"
    torch.save({name: weights[name] for name in weights if name != missing}, file)
    refused(path, f"the checkpoint lacks 1: {missing}")
    for other in ({"state_dict": weights}, [weights]):
        torch.save(other, file)
        refused(path, r"pytorch_model\.bin: expected weights by name, got other values")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(path, r"pytorch_model\.bin: expected weights, got a pointer of Git LFS")
    weights["model.norm.weight"][3] = torch.nan
    torch.save(weights, file)
    with pytest.raises(InputError, match="expected finite weights"):
        AnswerLM.from_pretrained(path)
    file.rename(tmp_path / "consolidated.00.pth")
    refused(path, r"expected weights in safetensors files or pytorch_model\.bin, got consolidated\.00\.pth")
    (tmp_path / "consolidated.00.pth").unlink()
    refused(path, r"no file named model\.safetensors")


def sharded(folder, is_fid=False):
    """Write a checkpoint in several files; return its path."""
    path = (save_seq2seq if is_fid else save_decoder)(folder)
    (folder / "model.safetensors").unlink()
    (seq2seq() if is_fid else decoder()).save_pretrained(folder, max_shard_size="40KB")
    assert len([*folder.glob("model-*.safetensors")]) > 1
    return path


@pytest.mark.parametrize("is_fid", [False, True])
@pytest.mark.parametrize("size", [0, 4, 200, -1])
def test_a_cut_weights_file_is_an_error_that_names_it(tmp_path, size, is_fid):
    path = sharded(tmp_path, is_fid)
    load_collator(path, is_fid=is_fid)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:size])
    refused(path, rf"no (encoder-)?decoder can be loaded: {shard.name}: ", is_fid=is_fid)
    shard.unlink()
    refused(path, shard.name, is_fid=is_fid)


def test_missing_weights_are_an_error_before_any_weight_is_read(tmp_path):
    path = save_decoder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = "model.layers.1.mlp.up_proj.weight"
    save_file(
        {name: t for name, t in tensors.items() if name != missing}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    refused(path, f"expected every weight of LlamaForCausalLM, the checkpoint lacks 1: {missing}")
    save_file({f"_orig_mod.{name}": t for name, t in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    refused(path, f"expected every weight of LlamaForCausalLM, the checkpoint lacks {len(tensors)}: ")


def test_the_check_reads_no_weight(tmp_path, monkeypatch):
    path, found = save_decoder(tmp_path), []
    plain = LlamaForCausalLM.from_pretrained.__func__
    monkeypatch.setattr(
        LlamaForCausalLM,
        "from_pretrained",
        classmethod(lambda cls, *a, **k: found.append(plain(cls, *a, **k)) or found[-1]),
    )
    assert num_embeddings(AutoModelForCausalLM, path, "decoder") == VOCABULARY
    [(model, _)] = found
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_check_shows_no_warning_and_loading_does(tmp_path, caplog, capfd):
    path = save_decoder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"unknown": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    num_embeddings(AutoModelForCausalLM, path, "decoder")
    assert not caplog.text
    assert not capfd.readouterr().err
    load_model(AutoModelForCausalLM, path, "decoder")
    assert "unknown" in caplog.text


@pytest.mark.parametrize("error", [OSError, ImportError("bitsandbytes"), RuntimeError])
def test_a_hub_name_is_checked_by_its_configuration_alone(tmp_path, monkeypatch, error):
    config = decoder().config
    monkeypatch.setattr(rqa.models.loading, "load_config", lambda name, kind: config)
    assert num_embeddings(AutoModelForCausalLM, "someone/model", "decoder") == VOCABULARY
    monkeypatch.setattr(rqa.models.loading, "load_config", lambda name, kind: (_ for _ in ()).throw(error))
    with pytest.raises(InputError, match="someone/model: no decoder can be loaded: "):
        num_embeddings(AutoModelForCausalLM, "someone/model", "decoder")


# Tokenizers


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer.json", {"model": None}),
        ("tokenizer.json", {"added_tokens": [{"id": 0}]}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": [], "unk_token": "<unk>"}}),
        ("tokenizer_config.json", {"eos_token": 5}),
        ("tokenizer_config.json", {"tokenizer_class": []}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": 1}}),
        ("tokenizer_config.json", {"auto_map": 5}),
    ],
)
def test_a_damaged_tokenizer_is_an_error(tmp_path, name, values):
    path = save_decoder(tmp_path)
    change(path, name, **values)
    refused(path, ": no tokenizer can be loaded: ")


# Token ids


def test_a_padding_token_without_an_embedding_is_replaced(tmp_path):
    path = save_decoder(tmp_path)
    made = tokenizer()
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.save_pretrained(tmp_path)
    assert made.pad_token_id == VOCABULARY
    collator = load_collator(path)
    assert collator.pad_id == collator.builder.stop_ids[0] < VOCABULARY
    assert load_collator(save_decoder(tmp_path / "plain")).pad_id == tokenizer().pad_token_id


def test_a_padding_token_without_an_embedding_is_replaced_for_passages(tmp_path):
    path = save_seq2seq(tmp_path)
    made = tokenizer()
    made.add_special_tokens({"pad_token": "[PAD]"})
    made.save_pretrained(tmp_path)
    collator = load_collator(path, is_fid=True)
    assert collator.pad_id < VOCABULARY
    batch = random_passages([[3, 4]], [2]) | {"attention_mask": torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 1]]])}
    batch["input_ids"][batch["attention_mask"] == 0] = collator.pad_id
    assert FusionInDecoder.from_pretrained(path)(**batch).isfinite().all()


@pytest.mark.parametrize("role", ["eos_token", "template", "word"])
def test_a_token_of_prompts_without_an_embedding_is_an_error(tmp_path, role):
    path = save_decoder(tmp_path)
    made = tokenizer()
    if role == "word":
        made.add_tokens(["lantern"])
    else:
        made.add_special_tokens(
            {"eos_token": "<|new|>"} if role == "eos_token" else {"additional_special_tokens": ["<|new|>"]}
        )
        made.chat_template = made.chat_template.replace("<|{{ message.role }}|>", "<|new|>{{ message.role }}")
    made.save_pretrained(tmp_path)
    token = "lantern" if role == "word" else "<|new|>"
    refused(
        path, rf"expected token ids below {VOCABULARY}, .* got {VOCABULARY} \({re.escape(token)}\).*resize_token_emb"
    )


def test_a_context_length_is_checked_without_weights(tmp_path):
    path = save_decoder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert check_context_length(path, 10) is None
