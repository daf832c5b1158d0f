"""A training that pushes: the upload is the run's, the command of its card answers, a failed upload fails alone."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer
from sharded_runs import flags_of
from shared_runs import command_in
from tiny_seq2seq import save_seq2seq
from world import ROOT, launch, launch_environment, read_jsonl, recipe_command, torchrun, write_jsonl

REPO = "me/lamps"


def train(recipe, flags, hub, by=(), expect=0):
    """Run a training recipe beside a hub; return its log."""
    done = subprocess.run(
        recipe_command(recipe, flags, by),
        env=launch_environment(**hub.environment(Path(flags["--output_dir"]).parent), ACCELERATE_USE_CPU="true"),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == expect, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    return done.stderr


def run_command_of(card, *more, **paths):
    """Run the command in a card with paths of this machine; return its standard output."""
    places = {f"path/to/{name}": str(path) for name, path in paths.items()}
    _, *words = (places.get(word, word) for word in command_in(card))
    command = [sys.executable, *words, "--bf16", "false", *more]
    run = {"cwd": ROOT, "env": launch_environment(), "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_pushes_its_adapter_merged_model_and_report(world, tmp_path, processes):
    out = tmp_path / "out"
    more = {"lora_rank": "4", "merge_adapter": "true", "push_to_hub": REPO, "push_report": "true"}
    with HubServer() as hub:
        train("swr_starling.py", flags_of(world, out, **more), hub, by=torchrun(2) if processes == 2 else ())
    assert [request for request in hub.requests if "/commit/" in request] == [f"POST /api/models/{REPO}/commit/main"]
    names = {path.name: path for path in (out / "model").iterdir()}
    names |= {f"merged/{path.name}": path for path in (out / "merged").iterdir()}
    expected = {name: path.read_bytes() for name, path in names.items()}
    expected["report/report.html"] = (out / "report.html").read_bytes()
    settings = json.loads(expected.pop("adapter_config.json"))
    sent = hub.files[REPO] | {}
    assert json.loads(sent.pop("adapter_config.json")) == settings | {"base_model_name_or_path": "model"}
    assert sent == expected
    assert "% interval |" in sent["README.md"].decode()


@pytest.mark.slow
def test_a_failed_upload_leaves_a_whole_run_and_status_1(world, tmp_path):
    out = tmp_path / "out"
    with HubServer(403, "/commit/") as hub:
        log = train("sft_mistral.py", flags_of(world, out, push_to_hub=REPO, num_train_epochs="1"), hub, expect=1)
        assert "the upload failed, the run is complete." in log
        assert {"report.html", "model", "test", "card.json"} <= {path.name for path in out.iterdir()}
        hub.fault = 0
        command = shlex.split(re.search(r"^Repeat the upload: python (.*)$", log, re.MULTILINE)[1])
        environment = launch_environment(**hub.environment(tmp_path))
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True, timeout=120)
    assert hub.files[REPO] == {path.name: path.read_bytes() for path in (out / "model").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["swr_starling.py", "fid_flan_t5.py"])
def test_the_command_of_a_card_answers_as_the_run(world, tmp_path, recipe):
    """With a retriever it asks; the answer is that of the test. Texts of flags keep spaces and quotes."""
    out = tmp_path / "out"
    more = {"user_prefix": "it's `Q` ", "assistant_prefix": "A\n"}
    if recipe == "fid_flan_t5.py":
        more["model_name_or_path"] = save_seq2seq(tmp_path / "seq2seq")
    else:
        more["instruction"] = "Read \"it\" 'so' \\n"
    launch(recipe, flags_of(world, out, **more, num_train_epochs="1"))
    [row, *_] = (row for row in read_jsonl(out / "test/predictions.jsonl") if not row.get("chat_history"))
    paths = {"model": out / "model", "retriever": world.encoder, "corpus.jsonl": world.corpus}
    card = (out / "model/README.md").read_text(encoding="utf-8")
    answered = run_command_of(card, "--question", row["question"], **paths, index=world.folder / "index")
    assert json.loads(answered)["answer"] == row["answer"]


@pytest.mark.slow
def test_the_command_of_a_card_without_a_retriever_evaluates_as_the_run(world, tmp_path):
    rows = read_jsonl(Path(world.train))
    for row in rows:
        row["ctxs"] = [{"title": "", "text": passage["page_content"]} for passage in row["gold_docs"]]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    files = {"train_file": file, "eval_file": "", "test_file": file, "full_dataset_file_path": ""}
    out = tmp_path / "out"
    flags = flags_of(world, out, **files, full_dataset_index_path="", embedding_model="", num_train_epochs="1")
    launch("swr_starling.py", flags)
    card = (out / "model/README.md").read_text(encoding="utf-8")
    run_command_of(card, **{"model": out / "model", "questions.jsonl": file, "evaluation": tmp_path / "evaluation"})
    scores = [json.loads((folder / "score.json").read_text()) for folder in (out / "test", tmp_path / "evaluation")]
    assert scores[0]["metrics"] == pytest.approx(scores[1]["metrics"], rel=1e-6)  # another batch size
