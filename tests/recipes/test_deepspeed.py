"""DeepSpeed without a GPU: equal to a plain loop, to DDP, and unchanged by a kill and a resume."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from plain_loop import (
    GLOBAL_BATCHES,
    MAX_NORM,
    NAN,
    POISON,
    Poisonable,
    assert_is_plain_loop,
    assert_same,
    deterministic,
    plain_loop,
    poison,
    steps_of,
)
from sharded_runs import assert_same_run, flags_of, outcome, run_until, zero_config
from tiny_models import save_decoder
from world import DEEPSPEED_ON_CPU, ROOT, hand_over, handed_over, launch, torchrun

from rqa.distributed.accelerator import make_accelerator
from rqa.training.optim import make_optimizer

pytestmark = pytest.mark.usefixtures("deepspeed_on_cpu")
SLOW = pytest.mark.slow
RECIPE = "swr_starling.py"
TWO = (*torchrun(2), DEEPSPEED_ON_CPU)
ONE = (sys.executable, DEEPSPEED_ON_CPU)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_equal_a_plain_loop(tmp_path, stage):
    """Both skip the step whose gradient is not finite on one of them."""
    launch(__file__, {str(zero_config(tmp_path, stage)): str(tmp_path)}, by=TWO)
    for rank, results in enumerate(handed_over(tmp_path, 2)):
        *steps, (poisoned, after) = results
        before = steps[-1][1]
        if stage < 3 or rank == 0:  # rank 0 gathers sharded weights
            assert_is_plain_loop(([step for step, _ in steps], None, before), plain_loop(), 4, loosely=50)
        assert (poisoned["skipped"], poisoned["non_finite_examples"]) == POISON
        assert_same(after, before, rtol=0, atol=0)


def train(world, out, by=TWO, **more):
    launch(RECIPE, flags_of(world, out, **more), by=by)
    return out


def folder_bytes(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def plain_run(world):
    """The run of two DDP processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        return train(world, world.folder / "plain")


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
    """A run with a DeepSpeed file like LocalRQA's: its extra flags, its folder, its number of touches."""
    folder = tmp_path_factory.mktemp("zero2")
    (folder / "ds.json").write_text(json.dumps(LOCALRQA))
    more = {"deepspeed": str(folder / "ds.json")}
    return more, folder / "run", run_until(RECIPE, flags_of(world, folder / "run", **more), TWO)


def test_zero_2_equals_ddp(zero_2, plain_run):
    assert_same_run(zero_2[1], plain_run)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.6, *(pytest.param(share, marks=SLOW) for share in (0.1, 0.35, 0.8, 0.9))])
def test_zero_2_resume_is_byte_identical_after_a_kill(world, zero_2, tmp_path, share):
    more, unbroken, touches = zero_2
    run_until(RECIPE, flags_of(world, tmp_path / "run", **more), TWO, int(share * touches))
    assert not (tmp_path / "run/test").exists()
    out = train(world, tmp_path / "run", **more, resume_from_checkpoint="latest")
    assert outcome(out) == outcome(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3, "ds_zero2_offload", "ds_zero3_offload"])
def test_other_zero_stages_equal_ddp(world, plain_run, tmp_path, stage):
    """Under ZeRO-3 no rank has whole weights; it generates, exports and resumes. The retriever stays whole."""
    path = ROOT / f"recipes/configs/{stage}.json" if isinstance(stage, str) else zero_config(tmp_path, stage)
    more = {"deepspeed": str(path), "full_dataset_index_path": str(tmp_path / "index")}
    encoder = folder_bytes(world.encoder)
    out = train(world, tmp_path / "run", **more)
    assert folder_bytes(world.encoder) == encoder
    assert_same_run(out, plain_run)
    unbroken = outcome(out)
    shutil.rmtree(max((out / "checkpoints").iterdir()))
    train(world, out, **more, resume_from_checkpoint="latest")
    assert outcome(out) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_one_process_with_deepspeed_from_the_environment_equals_ddp(world, plain_run, tmp_path, monkeypatch, stage):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
    out = train(world, tmp_path / "run", ONE, gradient_accumulation_steps="4")
    assert_same_run(out, plain_run)


def test_a_conflict_of_file_and_flag_is_an_error_before_loading(world, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}))
    flags = flags_of(world, tmp_path / "run", deepspeed=str(path), embedding_model="no/such/encoder")
    printed = launch(RECIPE, flags, by=ONE, expect=2)
    error = printed.splitlines()[-1]
    for part in (str(path), "gradient_clipping", "1.0", "--max_grad_norm", "0.3"):
        assert part in error


def under_deepspeed(path, folder):
    """Hand over the steps of the plain loop, and one more step, whose gradient is not finite on one rank."""
    flags = {"per_device_train_batch_size": 2, "max_grad_norm": MAX_NORM}
    checkpoint = save_decoder(folder / f"model{os.environ['RANK']}")
    accelerator = make_accelerator(2, bf16=False, deepspeed=path, flags=flags)
    model = Poisonable.from_pretrained(checkpoint)  # sharded under ZeRO-3
    model, optimizer = accelerator.prepare(model, make_optimizer(model, weight_decay=0.1))
    steps = []
    for step in steps_of(accelerator, model, optimizer, [*GLOBAL_BATCHES, *poison([NAN])]):
        state = {name: tensor.clone() for name, tensor in (accelerator.get_state_dict(model) or {}).items()}
        steps.append((deterministic(step), state))
    hand_over(steps, folder)


if __name__ == "__main__":
    under_deepspeed(sys.argv[1], Path(sys.argv[2]))
