"""untrusted: keys of a checkpoint's JSON files that run code are errors; plain values are not."""

import json

import pytest

from rqa.distributed.untrusted import check_untrusted_folder, check_untrusted_keys
from rqa.errors import InputError

REFUSED = [
    ({"_attn_implementation": "someone/kernel"}, '_attn_implementation "someone/kernel"'),
    ({"text_config": {"attn_implementation": "someone/kernel@main:forward"}}, "text_config.attn_implementation"),
    ({"attn_implementation": {"": "sdpa", "vision_config": "paged|a/b"}}, "attn_implementation .*a/b"),
    ({"model_kwargs": {"experts_implementation": "a/b"}}, 'model_kwargs.experts_implementation "a/b"'),
    ({"use_kernels": True}, "use_kernels true"),
    ({"model_args": {"allow_all_kernels": 1}}, "model_args.allow_all_kernels 1"),
    ({"kernel_config": {"RMSNorm": "a/b:RMSNorm"}}, "kernel_config"),
    ({"model_kwargs": {"weights_only": False}}, "model_kwargs.weights_only false: unpickled"),
    ({"activation_function": "os.system"}, 'activation_function "os.system": the class'),
    ({"tokenizer_class": "module.Tokenizer"}, 'tokenizer_class "module.Tokenizer"'),
    ([{"idx": 0, "path": "", "type": "modeling_own.Pooling"}], '0.type "modeling_own.Pooling"'),
    ({"types": {"0": "own.Module"}, "structure": {}}, "types .*own.Module"),
    ({"model_type": "new", "auto_map": {"AutoConfig": "own.Config"}}, "auto_map .*own.Config.*newer version"),
]
ALLOWED = [
    {"_attn_implementation": "flash_attention_2", "experts_implementation": "eager", "use_kernels": False},
    {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling_llama.Llama"}},
    {"activation_function": "gelu_new", "tokenizer_class": "LlamaTokenizer", "rope_scaling": {"type": "linear-1.0"}},
    {"activation_function": "torch.nn.modules.activation.Tanh", "model_kwargs": {"weights_only": True}},
    [{"idx": 0, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}],
    "text",
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_a_key_that_runs_code_is_an_error(config, message):
    with pytest.raises(InputError, match=f"^a/config.json: expected settings that run no code, got {message}"):
        check_untrusted_keys(config, "a/config.json")


@pytest.mark.parametrize("config", ALLOWED)
def test_plain_values_are_allowed(config):
    check_untrusted_keys(config, "config.json")


def test_every_settings_file_in_a_folder_is_checked(tmp_path):
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "config.json").write_text("{}")
    check_untrusted_folder(tmp_path)
    for name in ("0_Transformer/sentence_bert_config.json", "modules.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps([{"use_kernels": True}]))
        with pytest.raises(InputError, match=f"{name}: .* 0.use_kernels true"):
            check_untrusted_folder(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config.json: expected a whole checkpoint, got an adapter"):
        check_untrusted_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, b"\xff"])
def test_a_settings_file_that_is_not_json_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"config.json: expected JSON, got"):
        check_untrusted_folder(tmp_path)
