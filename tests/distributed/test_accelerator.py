"""accelerator: one precision, processes that see each other, and DeepSpeed as flags and launcher agree upon."""

import json
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

from rqa.cli.parser import parse_configs
from rqa.cli.training_args import Optimization
from rqa.distributed.accelerator import asked_deepspeed, make_accelerator
from rqa.errors import InputError

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "DS_ACCELERATOR")


@pytest.fixture(autouse=True)
def _launched_by_nobody(monkeypatch):
    before = dict(os.environ)  # a launch writes into it, and so does accelerate
    for name in before:
        if name.startswith(("ACCELERATE_", "MASTER_")) or name in LAUNCHERS:
            del os.environ[name]
    monkeypatch.setattr("rqa.distributed.accelerator.bf16_is_fast", lambda device: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    os.environ.clear()
    os.environ.update(before)


SAID = [(None, {"bf16": True}, "bf16"), (None, {"bf16": False}, "no")]
LAUNCHED = [("no", {"bf16": True}, "bf16"), ("bf16", {}, "bf16"), ("bf16", {"bf16": True}, "bf16")]
UNSAID = [(None, {}, None), ("no", {}, None)]


@pytest.mark.parametrize(("launched", "flags", "said"), [*SAID, *LAUNCHED, *UNSAID])
@pytest.mark.parametrize("fast", [True, False])
def test_the_precision_is_what_is_said_or_else_bfloat16_where_that_is_fast(monkeypatch, launched, flags, said, fast):
    monkeypatch.setattr("rqa.distributed.accelerator.bf16_is_fast", lambda device: fast and device.type == "cpu")
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
    monkeypatch.setattr("rqa.distributed.accelerator.os.sched_getaffinity", lambda process: set(range(6)))
    set_to = []
    monkeypatch.setattr("rqa.distributed.accelerator.torch.set_num_threads", set_to.append)
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
    assert set(map(str, raw.get("fsdp_config", {}).values())) - {"True", "2"} <= set(environment.values())


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_by_accelerates_configuration_is_that_of_its_file(monkeypatch, launched_by, stage):
    monkeypatch.chdir(ROOT)
    launched_by(f"recipes/configs/accelerate_zero{stage}.yaml")
    config, where = asked_deepspeed("")
    assert config["zero_optimization"]["stage"] == stage
    assert where.startswith("accelerate's deepspeed_config_file recipes/configs/ds_")


def yaml_of(folder, **deepspeed):
    """What `accelerate config` writes for DeepSpeed where the user answers with the return key alone, and changes."""
    answers = {
        "gradient_accumulation_steps": 1,
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": False,
        "zero_stage": 2,
    }
    content = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": answers | deepspeed,
        "mixed_precision": "no",
        "num_machines": 1,
        "num_processes": 1,
        "use_cpu": False,
    }
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(content))
    return folder / "accelerate.yaml"


def file_of(folder, config):
    (folder / "ds.json").write_text(json.dumps(config))
    return str(folder / "ds.json")


def test_what_accelerate_config_writes_unasked_is_not_said(launched_by, tmp_path):
    launched_by(yaml_of(tmp_path))
    assert asked_deepspeed("") == ({"zero_optimization": {"stage": 2}}, "accelerate's deepspeed_config")


def test_what_accelerates_configuration_says_is_a_configuration(launched_by, tmp_path):
    said = {"zero_stage": 3, "offload_optimizer_device": "cpu", "zero3_save_16bit_model": True}
    launched_by(yaml_of(tmp_path, **said, gradient_clipping=0.3, gradient_accumulation_steps=4))
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "stage3_gather_16bit_weights_on_model_save": True}
    expected = {"zero_optimization": zero, "gradient_clipping": 0.3, "gradient_accumulation_steps": 4}
    assert asked_deepspeed("") == (expected, "accelerate's deepspeed_config")
    with pytest.raises(InputError, match=r"deepspeed_config: gradient_clipping is 0\.3, --max_grad_norm is 1\.0"):
        make_accelerator(4, flags={"max_grad_norm": 1.0})
    with pytest.raises(InputError, match="gradient_accumulation_steps is 4, --gradient_accumulation_steps is 2"):
        make_accelerator(2, flags={"max_grad_norm": 0.3})


def test_a_launcher_that_only_says_deepspeed_leaves_all_to_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    path = file_of(tmp_path, {"zero_optimization": {"stage": 3}})
    assert asked_deepspeed(path) == ({"zero_optimization": {"stage": 3}}, f"--deepspeed {path}")
    assert asked_deepspeed("") == ({"zero_optimization": {"stage": 2}}, "accelerate's deepspeed_config")


def test_a_flag_and_a_launcher_that_agree_are_one_and_the_others_are_refused(launched_by, tmp_path):
    launched_by(yaml_of(tmp_path, gradient_clipping=0.3))
    path = file_of(tmp_path, {"zero_optimization": {"stage": 2}, "steps_per_print": 7})
    config = {"zero_optimization": {"stage": 2}, "steps_per_print": 7, "gradient_clipping": 0.3}
    assert asked_deepspeed(path) == (config, f"--deepspeed {path}")
    for other, message in (
        (
            {"zero_optimization": {"stage": 3}},
            r"zero_optimization\.stage is 3 in --deepspeed .*, and 2 in accelerate's",
        ),
        (
            {"gradient_clipping": 1},
            r"gradient_clipping is 1 in --deepspeed .*ds\.json, and 0\.3 in accelerate's deepsp",
        ),
    ):
        with pytest.raises(InputError, match=message):
            make_accelerator(deepspeed=file_of(tmp_path, other))


def test_two_files_are_refused_where_they_disagree(launched_by, tmp_path):
    (tmp_path / "launcher").mkdir()
    theirs = file_of(tmp_path / "launcher", {"zero_optimization": {"stage": 2}})
    content = yaml.safe_load(yaml_of(tmp_path).read_text()) | {"deepspeed_config": {"deepspeed_config_file": theirs}}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(content))
    launched_by(tmp_path / "accelerate.yaml")
    assert asked_deepspeed(theirs)[0] == asked_deepspeed("")[0] == {"zero_optimization": {"stage": 2}}
    ours = file_of(tmp_path, {"zero_optimization": {"stage": 3}})
    with pytest.raises(
        InputError, match=f"is 3 in --deepspeed {ours}, and 2 in accelerate's deepspeed_config_file {theirs}"
    ):
        make_accelerator(deepspeed=ours)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ACCELERATE_USE_CPU",
            "ACCELERATE_USE_CPU=true turns DeepSpeed off. Without GPUs it runs with `torchrun --nproc",
        ),
        ("ACCELERATE_USE_FSDP", "accelerate's configuration asks for FSDP; leave one of them out"),
    ],
)
def test_what_would_turn_deepspeed_off_without_a_word_is_refused(monkeypatch, tmp_path, name, message):
    path = file_of(tmp_path, {"zero_optimization": {"stage": 2}})
    monkeypatch.setenv(name, "true")
    with pytest.raises(InputError) as refused:
        make_accelerator(deepspeed=path)
    assert str(refused.value).startswith(f"--deepspeed {path}: {message}")


def test_where_nothing_is_trained_the_launchers_deepspeed_has_no_say(launched_by, tmp_path):
    launched_by(yaml_of(tmp_path, zero_stage=3))
    accelerator = make_accelerator(bf16=False, deepspeed=None)
    assert (accelerator.distributed_type.value, accelerator.state.deepspeed_plugin) == ("NO", None)


def test_where_nothing_is_trained_the_launchers_fsdp_has_no_say(launched_by):
    """Nobody would spread the weights, and all but one process would load none."""
    launched_by(ROOT / "recipes/configs/accelerate_fsdp2.yaml")
    accelerator = make_accelerator(bf16=True, deepspeed=None)
    assert accelerator.distributed_type.value == "NO"
    assert "ACCELERATE_USE_FSDP" not in os.environ  # transformers asks it


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("rqa.distributed.accelerator.is_deepspeed_available", lambda: False)
    with pytest.raises(InputError, match=r'DeepSpeed is not installed: `pip install "\.\[deepspeed\]"`'):
        make_accelerator(deepspeed=file_of(tmp_path, {"zero_optimization": {"stage": 2}}))


@pytest.mark.parametrize("older", ["0.19.7", "0.9.20"])
def test_a_deepspeed_that_takes_a_gradient_of_nan_for_a_finite_one_is_refused(monkeypatch, tmp_path, older):
    monkeypatch.setattr("importlib.metadata.version", lambda name: older)
    with pytest.raises(InputError, match=f"DeepSpeed {older} is installed, expected at least 0.19.8: older ones"):
        make_accelerator(deepspeed=file_of(tmp_path, {"zero_optimization": {"stage": 2}}))


def test_a_file_that_is_not_there_is_refused_before_anything_is_read():
    with pytest.raises(InputError, match="--deepspeed no/such/file: no such file"):
        parse_configs(Optimization(), argv=["--deepspeed", "no/such/file"])
