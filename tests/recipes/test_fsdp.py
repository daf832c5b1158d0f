"""FSDP2 without a GPU: the run without it, by the configuration that is shipped, killed and gone on with."""

import re

import pytest
import yaml
from test_deepspeed import assert_same_run, flags_of, outcome, plain_run, world  # noqa: F401
from tiny_models import llama, save_decoder
from world import ACCELERATE_LAUNCH, ROOT, launch, torchrun

CONFIG = yaml.safe_load((ROOT / "recipes/configs/accelerate_fsdp2.yaml").read_text())


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    """Our configuration, for two processes of the tiny model in float32."""
    config = CONFIG | {"num_processes": 2, "mixed_precision": "no"}
    config["fsdp_config"] |= {"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}
    path = tmp_path_factory.mktemp("fsdp") / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config))
    return *ACCELERATE_LAUNCH, "--config_file", str(path), str(ROOT / "tests/fsdp_on_cpu.py")


@pytest.fixture(scope="module")
def sharded(world, launcher):  # noqa: F811
    """A run, and how often it touched its folder."""
    out = world.folder / "fsdp"
    by = (*launcher, str(ROOT / "tests/crash.py"), str(out), "0")
    printed = launch("swr_starling.py", flags_of(world, out), by=by)
    return out, int(re.search(r"touched (\d+) times", printed)[1])


def test_a_run_under_fsdp2_is_the_run_without(sharded, plain_run):  # noqa: F811
    assert_same_run(sharded[0], plain_run)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_run_that_is_killed_under_fsdp2_goes_on_as_if_it_had_not_been(world, launcher, sharded, tmp_path, share):  # noqa: F811
    unbroken, touches = sharded
    out = tmp_path / "run"
    by = (*launcher, str(ROOT / "tests/crash.py"), str(out), str(int(share * touches)))
    launch("swr_starling.py", flags_of(world, out), by=by, expect=None)
    assert not (out / "test").exists()
    launch("swr_starling.py", flags_of(world, out, resume_from_checkpoint="latest"), by=launcher)
    assert outcome(out) == outcome(unbroken)


@pytest.mark.slow
def test_tied_weights_stay_tied_under_fsdp2(world, launcher, tmp_path, monkeypatch):  # noqa: F811
    """FSDP2 takes them apart; trained apart, they would be two."""
    flags = {"model_name_or_path": save_decoder(tmp_path / "tied", llama(tied=True))}
    launch("swr_starling.py", flags_of(world, tmp_path / "sharded", **flags), by=launcher)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    launch("swr_starling.py", flags_of(world, tmp_path / "plain", **flags), by=torchrun(2))
    assert_same_run(tmp_path / "sharded", tmp_path / "plain")
