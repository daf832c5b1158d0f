"""evaluate.py with --qa_endpoint: the scores of the local model, and a kill in the middle repeats no answered call."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from generator_server import GeneratorServer
from tiny_models import tokenizer
from transformers import AutoModelForCausalLM
from world import ROOT, files, launch, launch_environment, read_jsonl, recipe_command

from rqa.generation.answers import ANSWERS_FILE

KEY = "sk-sentinel-7a6b5c4d3e2f"


def flags_of(world, out, **more):
    flags = {"model_name_or_path": world.model, "test_file": world.test, "max_new_tokens": "6", "bf16": "false"}
    return {f"--{name}": value for name, value in (flags | {"output_dir": str(out)} | more).items() if value}


@pytest.fixture
def server(world):
    with GeneratorServer(AutoModelForCausalLM.from_pretrained(world.model), tokenizer()) as server:
        yield server


def test_evaluation_by_token_ids_equals_the_local_one(world, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    launch("evaluate.py", flags_of(world, tmp_path / "local"))
    printed = launch("evaluate.py", flags_of(world, tmp_path / "served", qa_endpoint=server.url, bf16=""))
    ours, local = ([*read_jsonl(tmp_path / name / "predictions.jsonl")] for name in ("served", "local"))
    for row in local:
        del row["reference_nll"], row["reference_tokens"]
    assert ours == local
    ours, local = (json.loads((tmp_path / name / "score.json").read_text()) for name in ("served", "local"))
    del local["metrics"]["loss"]
    assert ours["metrics"] == local["metrics"]
    assert ours["runtime"]["endpoint"]["api"] == "completions"
    assert ours["runtime"]["endpoint"]["model"] == "tiny-at-server"
    assert "server" in ours["runtime"]["endpoint"]["latencies"]
    assert files(tmp_path / "served") == files(tmp_path / "local")
    for path in (tmp_path / "served").iterdir():
        assert KEY.encode() not in path.read_bytes()
    assert KEY not in printed
    command = [sys.executable, "recipes/compare.py", str(tmp_path / "local"), str(tmp_path / "served")]
    done = subprocess.run(command, cwd=ROOT, env=launch_environment(), capture_output=True, text=True, check=True)
    assert "BLEU" in done.stdout


@pytest.mark.slow
def test_killed_evaluation_repeats_no_answered_call(world, server, tmp_path):
    options = {"qa_endpoint": server.url, "qa_api": "chat", "qa_concurrency": "1", "bf16": ""}
    launch("evaluate.py", flags_of(world, tmp_path / "whole", **options))
    total = len(server.received)
    server.received.clear()
    server.seconds = 0.5
    flags = flags_of(world, tmp_path / "killed", **options)
    process = subprocess.Popen(recipe_command("evaluate.py", flags), env=launch_environment(), cwd=ROOT)
    stored = tmp_path / "killed" / ANSWERS_FILE
    deadline = time.monotonic() + 120
    while not (stored.exists() and stored.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    answered = stored.read_bytes().count(b"\n")
    assert 2 <= answered < total
    server.seconds = 0.0
    before = len(server.received)
    launch("evaluate.py", flags)
    assert len(server.received) - before == total - answered
    both = [(tmp_path / name / "predictions.jsonl").read_bytes() for name in ("whole", "killed")]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("attribution", "leave_one_out"), ("qa_is_fid", "true"), ("load_in_4bit", "true"), ("batch_size", "4")],
)
def test_flags_of_a_local_model_are_refused(world, tmp_path, flag, value):
    options = {"qa_endpoint": "http://127.0.0.1:1/v1", "bf16": "", flag: value}
    printed = launch("evaluate.py", flags_of(world, tmp_path / "out", **options), expect=None)
    assert f"--{flag}" in printed.replace("per_device_eval_batch_size", "batch_size")
    assert "Traceback" not in printed


@pytest.mark.slow
def test_transformers_serve_answers_in_chat(world, tmp_path):
    """It takes no token ids: --qa_api auto is chat, whose template writes the prompt of the local decoder."""
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    serve = Path(sys.executable).with_name("transformers")
    command = [serve, "serve", world.model, "--host", "127.0.0.1", "--port", port, "--device", "cpu"]
    environment = launch_environment() | {"HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--dtype", "float32"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.2)
        assert process.poll() is None, (tmp_path / "log").read_text()
        url = f"http://127.0.0.1:{port}/v1"
        launch("evaluate.py", flags_of(world, tmp_path / "served", qa_endpoint=url, bf16=""))
    finally:
        process.kill()
        process.wait()
    launch("evaluate.py", flags_of(world, tmp_path / "local"))
    ours, local = ([*read_jsonl(tmp_path / name / "predictions.jsonl")] for name in ("served", "local"))
    assert json.loads((tmp_path / "served" / "score.json").read_text())["runtime"]["endpoint"]["api"] == "chat"
    assert [row["answer"] for row in ours] == [row["answer"] for row in local]
