"""FSDP2 without a GPU, by the shipped configuration: equal to DDP, and unchanged by a kill and a resume."""

import pytest
from sharded_runs import assert_same_run, flags_of, fsdp_launcher, outcome, run_until
from tiny_models import llama, save_decoder
from world import launch, torchrun

RECIPE = "swr_starling.py"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    return fsdp_launcher(tmp_path_factory.mktemp("fsdp"), "LlamaDecoderLayer")


@pytest.fixture(scope="module")
def sharded(world, launcher):
    """A run, and its number of touches."""
    out = world.folder / "fsdp"
    return out, run_until(RECIPE, flags_of(world, out), launcher)


def train_with_ddp(world, out, **more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        launch(RECIPE, flags_of(world, out, **more), by=torchrun(2))
    return out


@pytest.mark.slow
def test_fsdp2_equals_ddp(world, sharded, tmp_path):
    assert_same_run(sharded[0], train_with_ddp(world, tmp_path / "plain"))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_fsdp2_resume_is_byte_identical_after_a_kill(world, launcher, sharded, tmp_path, share):
    unbroken, touches = sharded
    out = tmp_path / "run"
    run_until(RECIPE, flags_of(world, out), launcher, int(share * touches))
    assert not (out / "test").exists()
    launch(RECIPE, flags_of(world, out, resume_from_checkpoint="latest"), by=launcher)
    assert outcome(out) == outcome(unbroken)


@pytest.mark.slow
def test_tied_weights_stay_tied_under_fsdp2(world, launcher, tmp_path):
    """FSDP2 separates them; trained apart, they would differ."""
    more = {"model_name_or_path": save_decoder(tmp_path / "tied", llama(tied=True))}
    launch(RECIPE, flags_of(world, tmp_path / "sharded", **more), by=launcher)
    assert_same_run(tmp_path / "sharded", train_with_ddp(world, tmp_path / "plain", **more))
