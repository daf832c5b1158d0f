"""A run that is killed at any moment and resumed writes the same bytes as an unbroken run."""

import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from world import (
    ACCELERATE_LAUNCH,
    CRASH,
    World,
    launch,
    launch_environment,
    read_jsonl,
    recipe_command,
    torchrun,
)

from rqa.training.folder_lock import OWN_NAME, lock_folder

RESUME = {"--resume_from_checkpoint": "latest"}
LAUNCHERS = {1: (sys.executable,), 2: torchrun(2)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World.make(tmp_path_factory.mktemp("world"))
    tiny_models.save_decoder(Path(world.model), tiny_models.decoder(dropout=0.2))
    return world


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def flags_of(world, out, **more):
    flags = {
        "--model_name_or_path": world.model,
        "--embedding_model": world.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--passage_order": "random",
        "--gold_dropout": "0.2",
        "--per_device_train_batch_size": "1",
        "--gradient_accumulation_steps": "2",
        "--num_train_epochs": "2",
        "--learning_rate": "1e-3",
        "--logging_steps": "1",
        "--eval_steps": "2",
        "--save_steps": "3",
        "--metric_for_best_model": "loss",
        "--bf16": "false",
        "--max_new_tokens": "6",
        "--output_dir": str(out),
        **world.data,
    }
    return flags | {f"--{name}": value for name, value in more.items()}


def crashing(processes, out, at):
    """Return the command that kills the run at its n-th touch of the folder; see helpers/crash.py."""
    return (*LAUNCHERS[processes], CRASH, str(out), str(at))


@pytest.fixture(scope="module")
def unbroken(world):
    """A function from the number of processes to the folder of an uninterrupted run, and the names of its touches."""
    runs = {}

    def run_of(processes):
        if processes not in runs:
            out = world.folder / f"unbroken-{processes}"
            printed = launch("swr_starling.py", flags_of(world, out), by=crashing(processes, out, 0))
            runs[processes] = out, re.search(r"touched: (.*)", printed)[1].split()
        return runs[processes]

    return run_of


def outcome(out):
    """Return the files that are equal, byte for byte, when a run is repeated."""
    names = ["metrics.jsonl", "model/model.safetensors", "model/README.md", "test/predictions.jsonl"]
    return {name: (out / name).read_bytes() for name in names}


def assert_resume_is_byte_identical(world, unbroken, processes, out, moments):
    """Kill a run and its resumptions, each at one of `moments`, and compare the end with an unbroken run."""
    flags = flags_of(world, out)
    for at in moments:
        launch("swr_starling.py", flags, by=crashing(processes, out, at), expect=None)
        flags |= RESUME
    launch("swr_starling.py", flags, by=LAUNCHERS[processes])
    assert outcome(out) == outcome(unbroken(processes)[0])
    assert not [path for path in out.rglob(".*partial*") if "model" not in path.name]


@pytest.mark.parametrize(
    "share", [0.55, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.02, 0.3, 0.75, 0.97))]
)
def test_resume_is_byte_identical_after_a_kill(world, unbroken, tmp_path, share):
    """Killed before the first checkpoint, within a save, and after the last step."""
    assert_resume_is_byte_identical(world, unbroken, 1, tmp_path / "run", [1 + int(share * len(unbroken(1)[1]))])


def test_resume_of_two_processes_is_byte_identical_after_a_kill(world, unbroken, tmp_path):
    assert_resume_is_byte_identical(world, unbroken, 2, tmp_path / "run", [int(0.6 * len(unbroken(2)[1]))])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("processes", "name"),
    [
        pytest.param(1, "metrics.jsonl", marks=SLOW),  # the evaluation is not recorded yet
        pytest.param(1, "predictions.jsonl", marks=SLOW),  # it is in the log
        pytest.param(1, ".manifest.json.partial", marks=SLOW),  # it is being added to the checkpoint
        pytest.param(2, "metrics.jsonl", marks=SLOW),
    ],
)
def test_resume_is_byte_identical_after_a_kill_in_an_evaluation(world, unbroken, tmp_path, processes, name):
    """A step with a checkpoint and an evaluation: the checkpoint comes first, and may end while it is evaluated."""
    touched = unbroken(processes)[1]
    evaluated = touched.index("eval-000006")
    assert touched.index(".step-00000006.partial") < evaluated
    if name == "metrics.jsonl":
        moment = evaluated - touched[evaluated::-1].index(name) + 1
    else:
        moment = 1 + touched.index(name, evaluated)
    assert_resume_is_byte_identical(world, unbroken, processes, tmp_path / "run", [moment])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_byte_identical_after_fifty_random_kills(world, unbroken, tmp_path, processes):
    """Resumed runs are killed as well, up to four times in a row."""
    rng, kills = random.Random(processes), 0
    while kills < 50 // processes:
        moments = [rng.randint(1, len(unbroken(processes)[1])) for _ in range(rng.randint(1, 4))]
        assert_resume_is_byte_identical(world, unbroken, processes, tmp_path / f"{kills}", moments)
        kills += len(moments)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_compiled_run_is_that_without_a_compiler(world, unbroken, tmp_path, monkeypatch, processes):
    """The backend "eager" of torch.compile changes no number."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    launch("swr_starling.py", flags_of(world, tmp_path / "run"), by=LAUNCHERS[processes])
    assert outcome(tmp_path / "run") == outcome(unbroken(processes)[0])


# Signals


def reset_signals():
    """Undo the ignoring of signals that a shell's background job inherits; ignore SIGUSR1, as launchers should."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def start(world, out, by, **more):
    return subprocess.Popen(
        recipe_command("swr_starling.py", flags_of(world, out, **more), by),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=reset_signals,
        env=launch_environment(),
    )


def read_until(process, text):
    printed = ""
    for line in process.stdout:
        printed += line
        if text in line:
            return printed
    raise AssertionError(f"{text!r} was not printed:\n{printed}")


MANY = {"num_train_epochs": "40", "eval_steps": "1000", "save_steps": "1000"}


def workers(launcher):
    """Return the process ids of the ranks."""
    return [child.pid for child in psutil.Process(launcher.pid).children()]


def itself(launcher):
    return [launcher.pid]


def one_worker(launcher):
    return workers(launcher)[-1:]


def all_processes(launcher):
    """Return the process ids of a step of a batch system."""
    return [*itself(launcher), *workers(launcher)]


@pytest.mark.parametrize(
    ("by", "number", "to", "status"),
    [
        (LAUNCHERS[1], signal.SIGTERM, itself, 0),
        pytest.param(*(LAUNCHERS[1], signal.SIGINT, itself, 0), marks=pytest.mark.slow),
        pytest.param(*(LAUNCHERS[1], signal.SIGHUP, itself, 0), marks=pytest.mark.slow),
        (LAUNCHERS[2], signal.SIGTERM, one_worker, 0),  # the other rank stops too
        pytest.param(*(LAUNCHERS[2], signal.SIGTERM, itself, 1), marks=pytest.mark.slow),  # torchrun's own status
        (ACCELERATE_LAUNCH, signal.SIGTERM, itself, -signal.SIGTERM),  # passes no signal on: its end is the request
        pytest.param(*(LAUNCHERS[1], signal.SIGXCPU, itself, 0), marks=pytest.mark.slow),
        (ACCELERATE_LAUNCH, signal.SIGUSR1, all_processes, 0),
    ],
    ids=[
        *(
            "SIGTERM",
            "SIGINT",
            "SIGHUP",
            "SIGTERM to one of two",
            "SIGTERM to torchrun",
            "SIGTERM to accelerate launch",
        ),
        *("SIGXCPU", "SIGUSR1 to all"),
    ],
)
def test_a_signal_stops_all_ranks_after_the_same_step(world, tmp_path, by, number, to, status):
    process = start(world, tmp_path / "run", by, **MANY, stop_signals="SIGUSR1")
    read_until(process, "step 5/")
    for pid in to(process):
        os.kill(pid, number)
    printed = read_until(process, "stopped after ") + process.stdout.read()
    assert process.wait(timeout=60) == status
    stopped = int(re.search(r"stopped after \w+ (\d+)", printed)[1])
    [checkpoint] = (tmp_path / "run/checkpoints").iterdir()
    assert checkpoint.name == f"step-{stopped:08d}"
    assert stopped < 100


def has_ended(pid):
    """Return True if a process has ended, also if no parent waits for it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.slow
def test_a_run_is_resumed_only_after_the_last_process_of_a_killed_launcher(world, unbroken, tmp_path):
    """One of its two ranks hangs, and the other waits for it."""
    flags = flags_of(world, tmp_path / "run")
    process = start(world, tmp_path / "run", LAUNCHERS[2])
    read_until(process, "step 2/")
    ranks = workers(process)
    os.kill(ranks[0], signal.SIGSTOP)
    process.kill()
    process.wait()
    refused = launch("swr_starling.py", flags | RESUME, expect=2)
    [pid] = re.findall(rf"--output_dir {tmp_path}/run: .* process (\d+) on {os.uname().nodename}, started 20", refused)
    assert int(pid) in ranks
    os.kill(ranks[0], signal.SIGCONT)  # the end of the launcher has requested a stop
    while not all(map(has_ended, ranks)):
        time.sleep(0.1)
    process.stdout.close()
    launch("swr_starling.py", flags | RESUME, by=LAUNCHERS[2])
    assert outcome(tmp_path / "run") == outcome(unbroken(2)[0])


def test_an_evaluation_is_refused_in_a_folder_that_is_in_use(world, tmp_path):
    lock_folder(tmp_path)
    flags = {"--model_name_or_path": world.model, "--test_file": world.test, "--output_dir": str(tmp_path)}
    refused = launch("evaluate.py", flags, expect=2)
    assert re.search(rf"--output_dir {tmp_path}: .*process {os.getpid()} on {os.uname().nodename}, started 20", refused)
    assert {path.name for path in tmp_path.iterdir()} == {OWN_NAME}


@pytest.mark.slow
def test_the_printed_command_resumes_the_run(world, unbroken, tmp_path):
    process = start(world, tmp_path / "run", LAUNCHERS[1])
    read_until(process, "step 2/")
    process.terminate()
    command = read_until(process, "--resume_from_checkpoint").splitlines()[-1]
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    [argv] = re.fullmatch(r"accelerate launch (.*)", command).groups()
    subprocess.run([sys.executable, *shlex.split(argv)], timeout=120, check=True, env=launch_environment())
    assert outcome(tmp_path / "run") == outcome(unbroken(1)[0])


@pytest.mark.slow
def test_the_same_signal_again_stops_at_once(world, tmp_path):
    process = start(world, tmp_path / "run", LAUNCHERS[1], **{**MANY, "eval_steps": "1", "max_new_tokens": "1900"})
    read_until(process, "step 1/")
    time.sleep(0.5)  # the evaluation takes minutes
    process.send_signal(signal.SIGINT)
    read_until(process, "SIGINT: stopping after")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    process.stdout.close()


# Full disks


def limited(size):
    """Return a function that limits files to `size` bytes, as a full disk would."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(("save_steps", "status"), [pytest.param("7", 0, marks=pytest.mark.slow), ("2", 1)])
def test_on_a_full_disk_training_continues_until_three_checkpoints_fail(world, tmp_path, save_steps, status):
    """The optimizer's file is twice as large as the model's: only the model fits."""
    weights = (Path(world.model) / "model.safetensors").stat().st_size
    flags = flags_of(world, tmp_path / "run", save_steps=save_steps, metric_for_best_model="", eval_file="")
    done = subprocess.run(
        recipe_command("swr_starling.py", flags),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limited(int(1.5 * weights)),
        env=launch_environment(),
    )
    assert done.returncode == status, done.stderr[-2000:]
    assert "checkpoint" in done.stderr
    assert "not be written" in done.stderr
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert (tmp_path / "run/model").exists() == (status == 0)
    if status:
        assert "3 checkpoints in a row" in done.stderr


# Starts


def test_a_checkpoint_of_another_run_is_refused(world, unbroken):
    out = unbroken(1)[0]
    before = outcome(out)
    printed = launch("swr_starling.py", flags_of(world, out, seed="7", train_file=world.test) | RESUME, expect=2)
    assert re.search(r"^ *--seed: .*\b0\b.*\b7$", printed, re.MULTILINE)
    assert re.search(r"^ *--train_file: .*'\w+'.*'\w+'$", printed, re.MULTILINE)
    assert "--optim" not in printed
    refused = launch("swr_starling.py", flags_of(world, out), expect=2)
    assert "--resume_from_checkpoint latest" in refused
    assert outcome(out) == before


@pytest.mark.slow
def test_a_run_resumes_after_its_files_moved(world, unbroken, tmp_path):
    """Every input file and the run itself are in other folders."""
    for path in (world.train, world.test, world.eval, world.corpus):
        shutil.copy(path, tmp_path)
    shutil.copytree(world.model, tmp_path / "model")
    shutil.copytree(unbroken(1)[0] / "checkpoints", tmp_path / "run/checkpoints")
    moved = {
        name: str(tmp_path / Path(world.data[f"--{name}"]).name)
        for name in ("train_file", "eval_file", "test_file", "full_dataset_file_path")
    }
    flags = flags_of(world, tmp_path / "run", **moved, model_name_or_path=str(tmp_path / "model"))
    launch("swr_starling.py", flags | RESUME)
    assert outcome(tmp_path / "run") == outcome(unbroken(1)[0])


@pytest.mark.slow
def test_early_stopping_exports_the_best_model(world, tmp_path):
    """The learning rate is harmful: the first evaluation stays the best."""
    out = tmp_path / "run"
    flags = flags_of(world, out, learning_rate="1", early_stopping_patience="2", eval_steps="1", warmup_ratio="0")
    launch("swr_starling.py", flags)
    losses = {row["evaluation"]: row["loss"] for row in read_jsonl(out / "metrics.jsonl") if "evaluation" in row}
    del losses["test"]
    best = min(losses, key=losses.get)
    assert int(max(losses).split("-")[1]) == int(best.split("-")[1]) + 2
    before = outcome(out)
    launch("swr_starling.py", flags | RESUME)
    assert outcome(out) == before


# The dtype of the exported model


@pytest.mark.slow
def test_the_test_scores_are_those_of_the_exported_weights_in_the_dtype_of_the_checkpoint(world, tmp_path):
    tiny_models.save_decoder(tmp_path / "bfloat16", tiny_models.decoder().to(torch.bfloat16))
    flags = flags_of(world, tmp_path / "run", max_steps="3", model_name_or_path=str(tmp_path / "bfloat16"))
    launch("swr_starling.py", flags)
    assert {tensor.dtype for tensor in load_file(tmp_path / "run/model/model.safetensors").values()} == {torch.bfloat16}
    names = ("embedding_model", "embedding_max_num_to_retrieve", "max_new_tokens", "bf16", "test_file")
    again = {f"--{name}": flags[f"--{name}"] for name in (*names, "full_dataset_file_path", "full_dataset_index_path")}
    again |= {"--model_name_or_path": str(tmp_path / "run/model"), "--output_dir": str(tmp_path / "again")}
    launch("evaluate.py", again | {"--per_device_eval_batch_size": "2"})
    scores, expected = (json.loads((tmp_path / name / "score.json").read_text()) for name in ("again", "run/test"))
    assert scores["metrics"] == expected["metrics"]
    assert read_jsonl(tmp_path / "again/predictions.jsonl") == read_jsonl(tmp_path / "run/test/predictions.jsonl")
