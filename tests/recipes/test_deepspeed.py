"""DeepSpeed without a GPU: the update of a plain loop, the run without it, and what it must leave alone."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import (
    GLOBAL_BATCHES,
    MAX_NORM,
    NAN,
    POISON,
    Poisonable,
    assert_is_plain_loop,
    assert_same,
    deterministic,
    plain_loop,  # noqa: F401
    poison,
    steps_of,
)
from tiny_models import save_decoder
from world import ROOT, World, hand_over, handed_over, launch, torchrun

from rqa.distributed.accelerator import make_accelerator
from rqa.training.optim import make_optimizer

ON_CPU = str(ROOT / "tests/deepspeed_on_cpu.py")
SLOW = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _on_the_cpu(tmp_path_factory):
    """A build that was killed leaves a lock on which the next would wait: each session has a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        patch.delenv("ACCELERATE_USE_CPU", raising=False)
        yield


def config_of(folder, stage, **more):
    path = folder / f"zero{stage}.json"
    zero = {"stage": stage, "reduce_bucket_size": "auto"} | more
    path.write_text(json.dumps({"zero_optimization": zero, "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}))
    return path


@pytest.mark.parametrize("stage", [pytest.param(1, marks=SLOW), 2, 3])
def test_two_processes_do_what_a_plain_loop_does(plain_loop, tmp_path, stage):  # noqa: F811
    """And skip, on both, the update whose gradient is not finite on one."""
    launch(__file__, {str(config_of(tmp_path, stage)): str(tmp_path)}, by=(*torchrun(2), ON_CPU))
    for rank, found in enumerate(handed_over(tmp_path, 2)):
        *steps, (poisoned, after) = found
        before = steps[-1][1]
        if stage < 3 or rank == 0:  # of sharded weights the first process gathers all
            assert_is_plain_loop(([step for step, _ in steps], None, before), plain_loop, 4, loosely=50)
        assert (poisoned["skipped"], poisoned["suspects"]) == POISON
        assert_same(after, before, rtol=0, atol=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


def flags_of(world, out, **more):
    flags = {
        "--model_name_or_path": world.model,
        "--embedding_model": world.encoder,
        "--embedding_max_num_to_retrieve": "2",
        "--per_device_train_batch_size": "1",
        "--gradient_accumulation_steps": "2",
        "--num_train_epochs": "2",
        "--learning_rate": "1e-3",
        "--max_grad_norm": "0.3",
        "--eval_steps": "3",
        "--save_steps": "3",
        "--bf16": "false",
        "--max_new_tokens": "6",
        "--output_dir": str(out),
        **world.data,
    }
    return flags | {f"--{name}": value for name, value in more.items()}


def train(world, out, processes, environment=(), **more):
    by = (*torchrun(processes), ON_CPU) if processes else (sys.executable, ON_CPU)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment:
            patch.setenv(name, value)
        launch("swr_starling.py", flags_of(world, out, **more), by=by)
    return out


def train_until(world, out, at, **more):
    """Train by two processes, killed when the run touches its folder for the n-th time; return how often it did."""
    by = (*torchrun(2), ON_CPU, str(ROOT / "tests/crash.py"), str(out), str(at))
    printed = launch("swr_starling.py", flags_of(world, out, **more), by=by, expect=None if at else 0)
    return 0 if at else int(re.search(r"touched (\d+) times", printed)[1])


def folder_bytes(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def outcome(out):
    return {name: (out / name).read_bytes() for name in ("metrics.jsonl", "model/model.safetensors")}


@pytest.fixture(scope="module")
def plain_run(world):
    """The same run by two processes without DeepSpeed."""
    return train(world, world.folder / "plain", 2, [("ACCELERATE_USE_CPU", "true")])


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_run(out, plain):
    """Losses, rates and scores, what was retrieved and answered, and every weight."""
    for found, expected in zip(rows(out / "metrics.jsonl"), rows(plain / "metrics.jsonl"), strict=True):
        assert found.pop("evaluation", "") == expected.pop("evaluation", "")
        assert found == pytest.approx(expected, rel=3e-4)
    for found, expected in zip(*(rows(o / "test/predictions.jsonl") for o in (out, plain)), strict=True):
        assert (found["answer"], found["passages"]) == (expected["answer"], expected["passages"])
    trained, expected = (load_file(o / "model/model.safetensors") for o in (out, plain))
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=3e-3, atol=3e-4)


LOCALRQA = {
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_max_lr": "auto"}},
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": "auto"},
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


@pytest.fixture(scope="module")
def zero_2(world, tmp_path_factory):
    """The flags of a run by a file with blocks for the optimizer and the schedule, as LocalRQA's has them; the run."""
    folder = tmp_path_factory.mktemp("zero2")
    (folder / "ds.json").write_text(json.dumps(LOCALRQA))
    more = {"deepspeed": str(folder / "ds.json")}
    return more, folder / "run", train_until(world, folder / "run", 0, **more)


def test_a_run_under_zero_2_is_the_run_without(zero_2, plain_run):
    assert_same_run(zero_2[1], plain_run)


@pytest.mark.parametrize("share", [0.6, *(pytest.param(share, marks=SLOW) for share in (0.1, 0.35, 0.8, 0.97))])
def test_a_run_that_is_killed_under_zero_2_goes_on_as_if_it_had_not_been(world, zero_2, tmp_path, share):
    more, unbroken, touches = zero_2
    train_until(world, tmp_path / "run", int(share * touches), **more)
    assert not (tmp_path / "run/test").exists()
    out = train(world, tmp_path / "run", 2, **more, resume_from_checkpoint="latest")
    assert outcome(out) == outcome(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_under_other_stages_is_the_run_without(world, plain_run, tmp_path, stage):
    """Under ZeRO-3 no process has whole weights: it generates, exports and goes on nevertheless. The retriever, whose
    index is made anew, is not DeepSpeed's.
    """
    more = {"deepspeed": str(config_of(tmp_path, stage)), "full_dataset_index_path": str(tmp_path / "index")}
    encoder = folder_bytes(world.encoder)
    out = train(world, tmp_path / "run", 2, **more)
    assert folder_bytes(world.encoder) == encoder
    assert_same_run(out, plain_run)
    unbroken = outcome(out)
    shutil.rmtree(max((out / "checkpoints").iterdir()))
    train(world, out, 2, **more, resume_from_checkpoint="latest")
    assert outcome(out) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_one_process_without_a_launcher_and_accelerates_environment(world, plain_run, tmp_path, stage):
    environment = [("ACCELERATE_USE_DEEPSPEED", "true"), ("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))]
    out = train(world, tmp_path / "run", 0, environment, gradient_accumulation_steps="4")
    assert_same_run(out, plain_run)


def test_a_conflict_is_told_before_anything_is_loaded(world, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}))
    flags = flags_of(world, tmp_path / "run", deepspeed=str(path), embedding_model="no/such/encoder")
    printed = launch("swr_starling.py", flags, by=(sys.executable, ON_CPU), expect=2)
    assert f"error: --deepspeed {path}: gradient_clipping is 1.0, --max_grad_norm is 0.3" in printed


def under_deepspeed(path, folder):
    """The updates of the plain loop on two processes, and one more, whose gradient is not finite on one of them."""
    flags = {"per_device_train_batch_size": 2, "max_grad_norm": MAX_NORM}
    checkpoint = save_decoder(folder / f"model{os.environ['RANK']}")
    accelerator = make_accelerator(2, bf16=False, deepspeed=path, flags=flags)
    model = Poisonable.from_pretrained(checkpoint)  # under ZeRO-3 it comes in parts
    model, optimizer = accelerator.prepare(model, make_optimizer(model, weight_decay=0.1))
    steps = []
    for step in steps_of(accelerator, model, optimizer, [*GLOBAL_BATCHES, *poison([NAN])]):
        state = {name: tensor.clone() for name, tensor in (accelerator.get_state_dict(model) or {}).items()}
        steps.append((deterministic(step), state))
    hand_over(steps, folder)


if __name__ == "__main__":
    under_deepspeed(sys.argv[1], Path(sys.argv[2]))
