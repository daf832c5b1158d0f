"""Training of an adapter on weights in 4 bits with AdamW in 8 bits, and of weights in bfloat16: export, resume."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from sharded_runs import assert_same_run, flags_of, outcome, run_until
from tiny_models import save_decoder, wide_decoder
from world import launch, read_jsonl, torchrun

RECIPE = "swr_starling.py"
# AdamW has states in 8 bits for at least 4,096 values: rank 64 of a layer with 64 inputs.
QLORA = {
    "lora_rank": "64",
    "lora_alpha": "16",
    "learning_rate": "1e-2",
    "load_in_4bit": "true",
    "optim": "adamw_8bit",
    "lora_dropout": "0.3",
}


@pytest.fixture(scope="module", autouse=True)
def base(world):
    return save_decoder(world.folder / "wide", wide_decoder())


def qlora_flags(world, out, **more):
    return flags_of(world, out, model_name_or_path=str(world.folder / "wide"), **QLORA | more)


@pytest.fixture(scope="module")
def unbroken(world):
    """A run without interruption, and its number of touches of the output folder."""
    out = world.folder / "qlora"
    return out, run_until(RECIPE, qlora_flags(world, out, merge_adapter="true"), (sys.executable,))


@pytest.mark.slow
def test_a_run_on_4_bits_resumes_byte_identically_after_a_kill(world, unbroken, tmp_path):
    out, touches = unbroken
    flags = qlora_flags(world, tmp_path / "broken", merge_adapter="true")
    run_until(RECIPE, flags, (sys.executable,), int(0.6 * touches))
    assert not (tmp_path / "broken/test").exists()
    launch(RECIPE, flags | {"--resume_from_checkpoint": "latest"})
    assert outcome(tmp_path / "broken") == outcome(out)


def test_its_checkpoint_has_the_adapter_and_states_in_8_bits(unbroken):
    newest = max((unbroken[0] / "checkpoints").iterdir())
    weights = load_file(newest / "model.safetensors")
    assert weights
    assert all(".lora_" in name for name in weights)
    states = torch.load(newest / "optimizer.bin")["state"].values()
    sizes = {
        tensor.nbytes
        for state in states
        for values in state.values()
        if isinstance(values, dict)
        for name, tensor in values.items()
        if name == "state1" and tensor.dtype == torch.uint8
    }
    assert sizes
    assert sizes <= {tensor.numel() for tensor in weights.values()}


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "load_in_4bit"), [("model", "true"), ("merged", "false")])
def test_evaluation_in_4_bits_and_of_the_merged_model_equals_the_test_of_the_run(
    world, unbroken, tmp_path, folder, load_in_4bit
):
    out, _ = unbroken
    flags = {
        "--model_name_or_path": str(out / folder),
        "--load_in_4bit": load_in_4bit,
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
    results = [[row["answer"] for row in read_jsonl(o / "predictions.jsonl")] for o in (tmp_path / "out", out / "test")]
    assert results[0] == results[1]
    scores = [json.loads((o / "score.json").read_text())["metrics"] for o in (tmp_path / "out", out / "test")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_on_4_bits_equal_one(world, tmp_path, monkeypatch):
    more = {"lora_rank": "4", "lora_dropout": "0"}
    launch(RECIPE, qlora_flags(world, tmp_path / "one", gradient_accumulation_steps="4", **more))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch(RECIPE, qlora_flags(world, tmp_path / "two", **more), by=torchrun(2))
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_a_run_on_weights_in_bfloat16_resumes_byte_identically_after_a_kill(world, tmp_path):
    more = {"optim": "adamw_bf16", "bf16": "true"}
    touches = run_until(RECIPE, flags_of(world, tmp_path / "unbroken", **more), (sys.executable,))
    flags = flags_of(world, tmp_path / "broken", **more)
    run_until(RECIPE, flags, (sys.executable,), int(0.6 * touches))
    assert not (tmp_path / "broken/test").exists()
    launch(RECIPE, flags | {"--resume_from_checkpoint": "latest"})
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")
    newest = max((tmp_path / "broken/checkpoints").iterdir())
    assert {tensor.dtype for tensor in load_file(newest / "model.safetensors").values()} == {torch.bfloat16}
