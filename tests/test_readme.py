"""The README: its commands are launched, its loop is run, its list of files is the tree."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from tiny_seq2seq import save_seq2seq
from world import ROOT, World, files, launch

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


COMMANDS = [block for block in blocks("bash") if "accelerate launch" in block]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.findall(r"recipes/(\w+)|$", command)[0])
def test_documented_commands_run(command, world, tmp_path, monkeypatch):
    """With its flags as they stand, but for what this machine lacks: the files, the models, a GPU, a network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    _, _, recipe, *words = shlex.split(command.replace("\\\n", " "))
    documented = dict(zip(words[::2], words[1::2], strict=True))
    is_fid = "fid" in recipe or "--qa_is_fid" in documented
    model = save_seq2seq(tmp_path / "seq2seq") if is_fid else world.model
    here = {
        **world.data,
        "--use_flash_attention": "false",
        "--bf16": "false",
        "--model_name_or_path": model,
        "--qa_model_name_or_path": model,
        "--embedding_model": world.encoder,
        "--eval_embedding_model": world.encoder,
        "--embedding_model_name_or_path": world.encoder,
        "--document_path": world.corpus,
        "--index_path": str(tmp_path / "index"),
        "--full_dataset_index_path": str(tmp_path / "index"),
        "--eval_data_path": world.test,
        "--output_dir": str(tmp_path / "out"),
    }
    flags = {flag: here.get(flag, value) for flag, value in documented.items()}
    on_cpu = (sys.executable, str(ROOT / "tests/deepspeed_on_cpu.py"))
    launch(recipe.removeprefix("recipes/"), {**flags, "--max_new_tokens": "8"}, by=on_cpu)
    test = tmp_path / "out" if "evaluate" in recipe else tmp_path / "out/test"
    assert {"score.json", "predictions.jsonl"} <= files(test)
    if "--run_group" in flags:
        assert list((tmp_path / "out/wandb").glob("offline-run-*"))
    config = json.loads((tmp_path / "out/config.json").read_text())
    for flag, value in flags.items():
        assert str(config[flag[2:]]).lower() == value.lower() or float(config[flag[2:]]) == float(value)


def test_the_loop_runs(world, tmp_path):
    [loop] = blocks("python")
    assert len([line for line in loop.splitlines() if line and not line.startswith("from ")]) <= 22
    (tmp_path / "loop.py").write_text(loop.replace('"path/to/model"', repr(world.model)), encoding="utf-8")
    (tmp_path / "train.jsonl").write_bytes((world.folder / "train.jsonl").read_bytes())
    done = subprocess.run(
        [sys.executable, "loop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    losses = [float(loss) for loss in re.findall(r"^\d+ (\S+)$", done.stdout, flags=re.MULTILINE)]
    assert len(losses) == 20
    assert losses[-1] < losses[0]
    assert "model.safetensors" in files(tmp_path / "trained")


def test_the_list_of_files_is_the_tree():
    [tree] = [block for block in blocks("") if "rqa/errors.py" in block]
    named = set(re.findall(r"^(rqa/\w+\.py)", tree, flags=re.MULTILINE))
    assert named == {f"rqa/{path.name}" for path in (ROOT / "rqa").glob("*.py")} - {"rqa/__init__.py"}
