"""rqa.launch: one precision, processes that see each other, and DeepSpeed as flags and launcher agree upon."""

import os

import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from world import ROOT

from rqa.errors import InputError
from rqa.launch import launched_deepspeed, make_accelerator


@pytest.fixture(autouse=True)
def _launched_by_nobody(monkeypatch):
    for name in (*os.environ, "OMP_NUM_THREADS"):
        if name.startswith("ACCELERATE_") or name in ("WORLD_SIZE", "OMP_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("rqa.launch.bf16_is_fast", lambda device: False)
    AcceleratorState._reset_state(reset_partial_state=True)


SAID = [(None, {"bf16": True}, "bf16"), (None, {"bf16": False}, "no")]
LAUNCHED = [("no", {"bf16": True}, "bf16"), ("bf16", {}, "bf16"), ("bf16", {"bf16": True}, "bf16")]
UNSAID = [(None, {}, None), ("no", {}, None)]


@pytest.mark.parametrize(("launched", "flags", "said"), [*SAID, *LAUNCHED, *UNSAID])
@pytest.mark.parametrize("fast", [True, False])
def test_the_precision_is_what_is_said_or_else_bfloat16_where_that_is_fast(monkeypatch, launched, flags, said, fast):
    monkeypatch.setattr("rqa.launch.bf16_is_fast", lambda device: fast and device.type == "cpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert make_accelerator(**flags).mixed_precision == (said or ("bf16" if fast else "no"))


@pytest.mark.parametrize(
    ("launched", "flags", "message"),
    [
        (None, {"bf16": True, "fp16": True}, "--bf16 true and --fp16 true exclude each other"),
        ("fp16", {"bf16": True}, "the flags ask for mixed precision 'bf16', accelerate's configuration for 'fp16'"),
        ("bf16", {"fp16": True}, "the flags ask for mixed precision 'fp16', accelerate's configuration for 'bf16'"),
        (None, {"fp16": True}, "mixed precision fp16 needs a GPU: on a CPU give --bf16 true, or neither"),
        ("bf16", {"bf16": False}, "the flags ask for mixed precision 'no', accelerate's configuration for 'bf16'"),
    ],
)
def test_precisions_that_contradict_each_other_are_refused(monkeypatch, launched, flags, message):
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(InputError) as refused:
        make_accelerator(**flags)
    assert str(refused.value) == message


def test_the_accumulation_is_the_one_asked_for_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    accelerator = make_accelerator(3, bf16=False)
    model, synced = accelerator.prepare(torch.nn.Linear(1, 1)), []
    for _ in range(6):
        with accelerator.accumulate(model):
            synced.append(accelerator.sync_gradients)
    assert (accelerator.gradient_accumulation_steps, synced) == (3, [False, False, True] * 2)


def test_processes_that_do_not_see_each_other_are_refused_with_the_right_command(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 RECIPE"):
        make_accelerator(bf16=False)


@pytest.mark.parametrize(("launcher", "threads"), [(True, "1"), (True, "2"), (False, "1")])
def test_a_launcher_that_gives_one_thread_does_not_prevail(monkeypatch, launcher, threads):
    monkeypatch.setattr("rqa.launch.os.sched_getaffinity", lambda process: set(range(6)))
    set_to = []
    monkeypatch.setattr("rqa.launch.torch.set_num_threads", set_to.append)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    make_accelerator(bf16=False)
    assert set_to == ([6] if launcher and threads == "1" else [])


# DeepSpeed, as asked for; tests/test_deepspeed.py runs it

CONFIGS = sorted((ROOT / "recipes/configs").glob("accelerate_*.yaml"))


ENVIRONMENTS = {
    "deepspeed_launcher": prepare_deepspeed_cmd_env,
    "multi_gpu_launcher": lambda args: (None, prepare_multi_gpu_env(args)),
    "simple_launcher": prepare_simple_launcher_cmd_env,
}


@pytest.fixture
def launched_by(monkeypatch):
    """Return the environment that `accelerate launch` would start a process with, and put it into ours."""

    def launch_by(path, *argv):
        made = {}
        for name, environment in ENVIRONMENTS.items():
            monkeypatch.setattr(launch, name, lambda args, e=environment: made.update(e(args)[1]))
        launch.launch_command(launch.launch_command_parser().parse_args(["--config_file", str(path), *argv, "r.py"]))
        for name in {name for name in made if name.startswith("ACCELERATE_")}:
            monkeypatch.setenv(name, made[name])
        return made

    return launch_by


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_our_configurations_are_accelerates(launched_by, path):
    raw = yaml.safe_load(path.read_text())
    config = load_config_from_file(str(path))  # raises for unknown keys
    assert config.num_processes == raw["num_processes"]
    assert config.num_machines == (2 if "two_machines" in path.name else 1)
    environment = launched_by(path)
    assert environment.get("ACCELERATE_USE_FSDP", "false") == str("fsdp" in path.name).lower()
    assert environment.get("ACCELERATE_USE_DEEPSPEED", "false") == str("zero" in path.name).lower()


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_by_accelerates_configuration_is_that_of_its_file(monkeypatch, launched_by, stage):
    monkeypatch.chdir(ROOT)
    launched_by(f"recipes/configs/accelerate_zero{stage}.yaml")
    config, where = launched_deepspeed()
    assert config["zero_optimization"]["stage"] == stage
    assert where.startswith("accelerate's deepspeed_config_file recipes/configs/ds_")


def test_deepspeed_by_accelerates_flags_is_a_configuration_too(launched_by, tmp_path):
    flags = "--use_deepspeed --zero_stage 3 --offload_optimizer_device cpu --gradient_clipping 0.3".split()
    (tmp_path / "empty.yaml").write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\n")
    launched_by(tmp_path / "empty.yaml", *flags)
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    assert launched_deepspeed() == (
        {"zero_optimization": zero, "gradient_clipping": 0.3},
        "accelerate's deepspeed_config",
    )
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 2}}')
    with pytest.raises(InputError, match=f"--deepspeed {path} and accelerate's deepspeed_config ask for different"):
        make_accelerator(deepspeed=str(path))


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="deepspeed is not installed: `pip install deepspeed`"):
        make_accelerator(deepspeed=str(tmp_path / "ds.json"))
