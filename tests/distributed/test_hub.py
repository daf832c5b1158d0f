"""Names of checkpoints: a folder, a model of the hub, or one line at once."""

import socket
import subprocess
import sys

import pytest
from huggingface_hub import constants
from world import launch_environment

from rqa.distributed import hub
from rqa.distributed.hub import check_checkpoint_name
from rqa.errors import InputError


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path):
    """No offline mode, an empty cache, and nothing known about the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    forget = hub._hub_is_reachable.cache_clear
    forget()
    yield
    forget()


@pytest.fixture
def closed(monkeypatch):
    """An endpoint that refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        yield constants.ENDPOINT


@pytest.mark.parametrize("name", ["./model", "/no/such", "~/model", "a/b/c", "a//b", "a b", "model/"])
def test_a_path_without_a_folder_needs_no_network(name, monkeypatch):
    monkeypatch.setattr(hub, "_hub_is_reachable", lambda: pytest.fail("the network is used"))
    with pytest.raises(InputError, match=f"^{name}: expected a checkpoint folder or a hub name, got neither$"):
        check_checkpoint_name(name)


def test_a_folder_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_hub_is_reachable", lambda: pytest.fail("the network is used"))
    check_checkpoint_name(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_one_error_and_is_not_tried_again(closed, monkeypatch):
    with pytest.raises(InputError, match=f"^org/model: .* cache lacks this model, and {closed} cannot be reached$"):
        check_checkpoint_name("org/model")
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(hub.httpx, "head", lambda *_, **__: pytest.fail("the hub is tried again"))
    with pytest.raises(InputError, match=r"^org/other: "):
        check_checkpoint_name("org/other")


def test_a_model_in_the_cache_is_used_if_the_hub_cannot_be_reached(closed, tmp_path, caplog):
    (tmp_path / "cache/models--org--model").mkdir(parents=True)
    check_checkpoint_name("org/model")
    check_checkpoint_name("org/model")
    assert constants.HF_HUB_OFFLINE
    assert [record.getMessage() for record in caplog.records] == [
        f"{closed} cannot be reached: models are read from its cache alone"
    ]


def test_a_hub_that_answers_is_asked_by_the_libraries(monkeypatch):
    monkeypatch.setattr(hub.httpx, "head", lambda *_, **__: None)
    check_checkpoint_name("org/model")
    assert not constants.HF_HUB_OFFLINE


def test_offline_mode_is_named(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_hub_is_reachable", lambda: pytest.fail("the network is used"))
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        check_checkpoint_name("org/model")


def test_every_loader_ends_in_one_line_and_at_once(closed, tmp_path):
    """The libraries alone repeat each request for 23 seconds."""
    code = """
import sys, torch
from huggingface_hub import constants
from rqa.errors import InputError
from rqa.models.loading import load_config
from rqa.prompts.decoder_prompt import load_tokenizer
from rqa.retrieval.encoder import Encoder

for load in (
    lambda: load_config("org/model", "generator"),
    lambda: load_tokenizer("org/model"),
    lambda: Encoder("org/model", device=torch.device("cpu")),
):
    constants.HF_HUB_OFFLINE = False
    try:
        load()
    except InputError as error:
        print(error)
"""
    environment = launch_environment(HF_HUB_OFFLINE="0", HF_ENDPOINT=closed, HF_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr[-2000:]
    assert all(line.startswith("org/model: ") and f"{closed} cannot be reached" in line for line in lines)
    assert "thrown" not in done.stderr
