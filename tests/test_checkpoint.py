"""rqa.checkpoint: the plain model and its tokenizer, whole or not at all."""

import pytest
import torch
from accelerate import Accelerator
from tiny_models import DECODERS, decoder, llama, random_batch, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import files

from rqa.checkpoint import export
from rqa.decoder import AnswerLM

MODELS = {family: lambda family=family: decoder(family) for family in DECODERS} | {"tied": lambda: llama(tied=True)}


def exported(lm, path):
    accelerator = Accelerator(cpu=True)
    export(accelerator, accelerator.prepare(AnswerLM(lm)), tokenizer(), path)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_plain_class_loads_what_was_trained(make, tmp_path):
    lm = make()
    exported(lm, tmp_path / "model")
    loaded, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(loaded) is type(lm)
    assert not any(loading.values())
    for name, tensor in lm.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name
    ids = random_batch([(9, 4)])["input_ids"]
    torch.testing.assert_close(loaded(ids).logits, lm.eval()(ids).logits, rtol=1e-5, atol=1e-5)


def test_the_tokenizer_is_there_with_its_template(tmp_path):
    exported(decoder(), tmp_path / "model")
    ours, theirs = tokenizer(), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs("<|user|>Who?</s> 水").input_ids == ours("<|user|>Who?</s> 水").input_ids
    assert theirs.chat_template == ours.chat_template


@pytest.mark.parametrize("failing", [0, 1], ids=["model", "tokenizer"])
def test_a_failure_leaves_no_model(tmp_path, monkeypatch, failing):
    def fail(folder, **options):
        folder.mkdir(exist_ok=True)
        (folder / "half").write_text("written")
        raise OSError("disk full")

    lm, broken = decoder(), tokenizer()
    monkeypatch.setattr((lm, broken)[failing], "save_pretrained", fail)
    accelerator = Accelerator(cpu=True)
    with pytest.raises(OSError, match="disk full"):
        export(accelerator, accelerator.prepare(AnswerLM(lm)), broken, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    exported(decoder(), tmp_path / "model")  # and is in nobody's way
    assert "model.safetensors" in files(tmp_path / "model")


def test_the_model_appears_under_its_name_when_all_is_written(tmp_path, monkeypatch):
    seen, lm = [], decoder()
    plain = lm.save_pretrained
    monkeypatch.setattr(
        lm, "save_pretrained", lambda *a, **b: plain(*a, **b) or seen.append((tmp_path / "model").exists())
    )
    exported(lm, tmp_path / "model")
    assert seen == [False]
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
