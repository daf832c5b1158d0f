"""Upload to the hub: exactly the listed files, whole; faults are one line without the token."""

import socket
import subprocess
import sys

import pytest
from hub_server import SIGNATURE, TOKEN, HubServer
from huggingface_hub import constants
from safetensors.torch import load_file
from shared_runs import OTHERS, SECRET, add_other_files, make_run
from world import launch_environment, recipe_command

from rqa.cli.parser import parse_args
from rqa.cli.training_args import RunArgs
from rqa.errors import InputError
from rqa.sharing.hub import check_push, files_to_upload

REPO = "me/lamps"
SHARED = {"README.md", ".README.md.partial", "card.json"}  # written by the recipe
MODEL_FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
TOKENIZER_FILES = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run"))
    add_other_files(folder)
    return folder


@pytest.fixture
def logged_in(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def share(hub, run, home, expect=0, **flags):
    """Run the recipe beside a hub; return its output."""
    words = {"--run": str(run)} | {f"--{name}": value for name, value in flags.items()}
    done = subprocess.run(
        recipe_command("share.py", words),
        env=launch_environment(**hub.environment(home)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout, done.stderr


# Before training


@pytest.mark.parametrize("name", ["model", "a/b/c", "/a/b", "a b/c", "a/b.git", "a/../b", "me/<b>", "me/", "--/x"])
def test_a_name_of_another_form_is_an_error(name, logged_in):
    with pytest.raises(InputError, match="expected owner/name"):
        check_push(name)


def test_a_missing_token_and_offline_mode_are_errors_of_the_flags(monkeypatch, tmp_path, logged_in):
    argv = ["--output_dir", "out", "--push_to_hub", REPO]
    [args] = parse_args(RunArgs(), argv=argv)
    assert args.sharing_options == {"push_to_hub": REPO, "hub_private": True, "push_report": False}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        parse_args(RunArgs(), argv=argv)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match=r"expected a token, got none.*HF_TOKEN"):
        parse_args(RunArgs(), argv=argv)
    (tmp_path / "token").write_text(TOKEN)
    parse_args(RunArgs(), argv=argv)


def test_a_report_without_an_upload_is_an_error():
    with pytest.raises(InputError, match="--push_report true: no effect without --push_to_hub"):
        parse_args(RunArgs(), argv=["--output_dir", "out", "--push_report", "true"])


# The files


def test_only_files_of_the_model_are_listed_and_others_are_named(run, caplog):
    files = files_to_upload(run)
    assert files.keys() | {"README.md"} == MODEL_FILES | TOKENIZER_FILES
    assert not [name for name, path in files.items() if path.read_bytes() == SECRET]
    beside = [name for name in OTHERS if name.startswith("model/")]
    assert len(caplog.records) == len(beside)
    assert all(name.removeprefix("model/") in caplog.text for name in beside)
    assert files_to_upload(run, push_report=True).keys() - files.keys() == {"report/report.html"}


def test_a_report_that_is_missing_is_an_error(tmp_path):
    make_run(tmp_path)
    (tmp_path / "report.html").unlink()
    with pytest.raises(InputError, match=r"--push_report true: expected .*report\.html"):
        files_to_upload(tmp_path, push_report=True)


# The upload


def test_uploaded_files_are_those_of_the_run_and_download_again(run, tmp_path):
    with HubServer() as hub:
        listed, _ = share(hub, run, tmp_path, dry_run="true")
        assert not hub.requests
        names = {line.split()[1] for line in listed.splitlines()[:-1]}
        assert names == MODEL_FILES | TOKENIZER_FILES
        share(hub, run, tmp_path, push_to_hub=REPO)
        assert hub.private == {REPO: True}
        assert hub.files[REPO] == {name: (run / "model" / name).read_bytes() for name in names}
        assert not [content for content in hub.objects.values() if SECRET in content]
        script = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained({REPO!r}).save_pretrained({str(tmp_path / "again")!r})
AutoTokenizer.from_pretrained({REPO!r})
"""
        environment = launch_environment(**hub.environment(tmp_path))
        subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120, capture_output=True)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run / "model", tmp_path / "again"))
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_the_report_is_uploaded_only_if_asked_and_a_public_repository_too(run, tmp_path):
    with HubServer(private={REPO: False}, files={REPO: {"old.txt": b"old"}}) as hub:
        _, errors = share(hub, run, tmp_path, expect=1, push_to_hub=REPO, push_report="true")
        assert "expected a private repository, got a public one" in errors
        assert hub.files == {REPO: {"old.txt": b"old"}}
        assert not hub.objects
        _, errors = share(hub, run, tmp_path, push_to_hub=REPO, push_report="true", hub_private="false")
        assert "were there before and stay: old.txt" in errors
        assert hub.files[REPO]["report/report.html"] == (run / "report.html").read_bytes()


@pytest.mark.slow
def test_an_adapter_names_no_folder_of_this_machine(tmp_path):
    run = make_run(tmp_path / "run")
    settings = '{"base_model_name_or_path": "%s", "r": 4}'
    (run / "model/adapter_config.json").write_text(settings % (tmp_path / "run"))
    (run / "model/adapter_model.safetensors").write_bytes(b"weights")
    with HubServer() as hub:
        share(hub, run, tmp_path, push_to_hub=REPO)
        assert b'"base_model_name_or_path": "run"' in hub.files[REPO]["adapter_config.json"]
        assert not [name for name, content in hub.files[REPO].items() if str(tmp_path).encode() in content]


@pytest.mark.parametrize(
    ("fault", "at", "words"),
    [
        (401, "/api/repos/create", "401"),
        pytest.param(403, "/commit/", "403", marks=pytest.mark.slow),
        pytest.param(500, "/api/models/me/lamps", "500", marks=pytest.mark.slow),
        pytest.param(500, "/lfs/", "model.safetensors", marks=pytest.mark.slow),  # the client tries for 25 seconds
        (0, "", "ConnectError"),
    ],
)
def test_a_failed_upload_is_one_warning_with_the_command_to_repeat_it(run, tmp_path, fault, at, words):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in SHARED}
    with HubServer(fault, at) as hub:
        if not fault:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                hub.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        output, errors = share(hub, run, tmp_path, expect=1, push_to_hub=REPO)
    assert f"{REPO}: the upload failed, the run is complete." in errors
    assert words in errors
    assert f"python recipes/share.py --run {run} --push_to_hub {REPO}" in errors
    assert "Traceback" not in errors
    assert TOKEN not in output + errors
    assert SIGNATURE not in output + errors
    assert not any(hub.files.values())
    assert before == {path: path.read_bytes() for path in before}
