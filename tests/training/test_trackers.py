"""trackers: a resumed run stays the same run, and an error of a tracker does not stop it."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

from rqa.cli.parser import parse_args
from rqa.cli.training_args import RunArgs
from rqa.errors import InputError
from rqa.training.trackers import Tracker, check_tracker

CONFIG = {"seed": 3, "chat": None, "name": "水"}
SECRET = "sk-do-not-tell"


@pytest.fixture
def log(caplog):
    caplog.set_level("INFO", "rqa")
    return caplog


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    values = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return values, events.Tags()["tensors"]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    first = Tracker("tensorboard", tmp_path, CONFIG)
    for step in (1, 2, 3):
        first.log({"train/loss": 10.0 + step}, step)
    second = Tracker("tensorboard", tmp_path, CONFIG, first_step=2)
    second.log({"train/loss": 20.0, "train/rate": 0.5}, 3)
    values, texts = scalars(tmp_path)
    assert values == {"train/loss": [(1, 11.0), (2, 12.0), (3, 20.0)], "train/rate": [(3, 0.5)]}
    assert texts == ["config/text_summary"]


def test_a_resumed_run_is_the_same_wandb_run_and_sends_only_config_and_numbers(tmp_path, monkeypatch):
    """Offline: the file of the run contains all that would be sent."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.setattr(sys, "argv", ["recipe.py", f"--key={SECRET}"])
    import wandb

    for first_step in (0, 2):
        Tracker("wandb", tmp_path, CONFIG, group="a-group", first_step=first_step).log({"train/loss": 12.5}, 3)
        wandb.finish()
        time.sleep(1)  # wandb names a folder by the second
    id = json.loads((tmp_path / "tracker.json").read_text())["id"]
    runs = sorted((tmp_path / "wandb").glob(f"offline-run-*-{id}/run-{id}.wandb"))
    assert len(runs) == 2
    for path in runs:
        sent = path.read_bytes()
        for expected in (b"a-group", b"train/loss", b"12.5", b"seed", "水".encode(), tmp_path.name.encode()):
            assert expected in sent or expected.decode().encode("unicode_escape") in sent, expected
    for path in (tmp_path / "wandb").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


def test_no_tracker_writes_nothing(tmp_path):
    Tracker("none", tmp_path, CONFIG).log({"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["init", "log"])
def test_a_failing_tracker_is_logged_once_and_does_not_stop_the_run(tmp_path, monkeypatch, log, failing):
    calls = []

    def call(name):
        calls.append(name)
        if name == failing:
            raise KeyError("the service is gone")

    run = SimpleNamespace(log=lambda values, step: call("log"))
    fake = SimpleNamespace(init=lambda **options: call("init") or run, Settings=lambda **options: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = Tracker("wandb", tmp_path, CONFIG)
    for step in (1, 2):
        tracker.log({"loss": 1.0}, step)
    assert calls == (["init"] if failing == "init" else ["init", "log"])
    [message] = log.messages
    assert "KeyError: 'the service is gone'" in message


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_missing_package_is_an_error_that_names_it(monkeypatch, name):
    check_tracker(name)
    check_tracker("none")
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"pip install {name}"):
        check_tracker(name)
    check_tracker("none")


@pytest.mark.parametrize(
    ("flags", "tracker"),
    [
        ([], "none"),
        (["--run_group", "g"], "wandb"),
        (["--report_to", "wandb"], "wandb"),
        (["--report_to", "tensorboard"], "tensorboard"),
        (["--report_to", "none"], "none"),
    ],
)
def test_a_group_selects_wandb(flags, tracker):
    [run] = parse_args(RunArgs(output_dir="out"), argv=flags)
    assert run.tracker == tracker


@pytest.mark.parametrize("other", ["tensorboard", "none"])
def test_a_group_with_another_tracker_is_refused(other):
    with pytest.raises(InputError, match=f"--run_group: .*--report_to wandb.*--report_to {other}"):
        parse_args(RunArgs(output_dir="out"), argv=["--run_group", "g", "--report_to", other])
