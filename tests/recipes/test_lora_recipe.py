"""Training of an adapter: one process, two, sharded, resume, evaluation of the adapter and of the merged model."""

import json
import sys

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from sharded_runs import assert_same_run, flags_of, fsdp_launcher, outcome, run_until, zero_config
from tiny_seq2seq import save_seq2seq
from transformers import AutoModelForCausalLM
from world import DEEPSPEED_ON_CPU, files, launch, read_jsonl, torchrun

RECIPE = "swr_starling.py"
LORA = {"lora_rank": "4", "lora_alpha": "16", "learning_rate": "3e-2"}
ADAPTER_FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def lora_flags(world, out, **more):
    return flags_of(world, out, **LORA | more)


@pytest.fixture(scope="module")
def one(world):
    """A run of one process."""
    out = world.folder / "lora"
    launch(RECIPE, lora_flags(world, out, gradient_accumulation_steps="4", merge_adapter="true"))
    return out


def test_a_run_writes_an_adapter_and_the_merged_model_and_changes_no_base(world, one):
    base = load_file(f"{world.model}/model.safetensors")
    assert files(one / "model") == ADAPTER_FILES | TOKENIZER_FILES
    adapter = load_file(one / "model/adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    merged = load_file(one / "merged/model.safetensors")
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.model), str(one / "model"))
    expected = theirs.merge_and_unload().state_dict()
    assert merged.keys() == base.keys()
    changed = {name for name in base if not base[name].equal(merged[name])}
    assert changed == {name for name in base if "_proj" in name}
    for name in base:
        torch.testing.assert_close(merged[name], expected[name])
    assert AutoModelForCausalLM.from_pretrained(one / "merged").dtype == torch.float32


def test_a_checkpoint_holds_the_adapter_and_its_optimizer_alone(world, one):
    newest = max((one / "checkpoints").iterdir())
    weights = load_file(newest / "model.safetensors")
    assert weights
    assert all(".lora_" in name for name in weights)
    moments = torch.load(newest / "optimizer.bin")["state"].values()
    assert sorted(state["exp_avg"].numel() for state in moments) == sorted(t.numel() for t in weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["model", "merged"])
def test_evaluation_of_the_export_equals_the_test_of_the_run(world, one, tmp_path, folder):
    flags = {
        "--model_name_or_path": str(one / folder),
        "--embedding_model": world.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--full_dataset_file_path": world.corpus,
        "--full_dataset_index_path": str(world.folder / "index"),
        "--test_file": world.test,
        "--max_new_tokens": "6",
        "--bf16": "false",
        "--output_dir": str(tmp_path / "out"),
    }
    launch("evaluate.py", flags)
    answers, expected = (
        [row["answer"] for row in read_jsonl(out / "predictions.jsonl")] for out in (tmp_path / "out", one / "test")
    )
    assert answers == expected
    assert len(set(answers)) > 1
    scores = [json.loads((out / "score.json").read_text())["metrics"] for out in (tmp_path / "out", one / "test")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(world, one, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch(RECIPE, lora_flags(world, tmp_path / "two"), by=torchrun(2))
    assert_same_run(tmp_path / "two", one)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed_on_cpu")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_equals_one_process(world, one, tmp_path, stage):
    flags = lora_flags(world, tmp_path / "run", deepspeed=str(zero_config(tmp_path, stage)))
    launch(RECIPE, flags, by=(*torchrun(2), DEEPSPEED_ON_CPU))
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
def test_fsdp2_equals_one_process(world, one, tmp_path):
    launch(RECIPE, lora_flags(world, tmp_path / "run"), by=fsdp_launcher(tmp_path, "LlamaDecoderLayer"))
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
def test_resume_is_byte_identical_after_a_kill(world, tmp_path):
    """With dropout before the adapters."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    touches = run_until(RECIPE, lora_flags(world, unbroken, lora_dropout="0.3"), (sys.executable,))
    flags = lora_flags(world, broken, lora_dropout="0.3")
    run_until(RECIPE, flags, (sys.executable,), int(0.6 * touches))
    assert not (broken / "test").exists()
    launch(RECIPE, flags | {"--resume_from_checkpoint": "latest"})
    assert outcome(broken) == outcome(unbroken)


@pytest.mark.slow
def test_another_base_of_the_same_size_is_refused_on_resume(world, one, tmp_path):
    """Checkpoints lack the frozen weights."""
    other = tiny_models.save_decoder(tmp_path / "other", tiny_models.decoder(seed=7))
    flags = lora_flags(world, tmp_path / "run", gradient_accumulation_steps="4", model_name_or_path=other)
    printed = launch(RECIPE, flags | {"--resume_from_checkpoint": str(one)}, expect=2)
    assert "frozen weights: expected" in printed


@pytest.mark.slow
def test_an_adapter_of_fusion_in_decoder_is_trained(world, tmp_path):
    model = save_seq2seq(tmp_path / "seq2seq")
    launch("fid_flan_t5.py", lora_flags(world, tmp_path / "run", model_name_or_path=model))
    adapter = load_file(tmp_path / "run/model/adapter_model.safetensors")
    assert {part for name in adapter for part in ("encoder", "decoder") if f".{part}." in name} == {
        "encoder",
        "decoder",
    }
    assert all(tensor.any() for tensor in adapter.values())
