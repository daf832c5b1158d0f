"""accelerator: precision, communicating processes, and DeepSpeed, from flags and launcher."""

import json
import os
import subprocess

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from accelerate.utils.other import get_free_port
from architectures import tiny_model
from tiny_models import random_batch
from tiny_seq2seq import random_passages
from torch.nn.parallel import DistributedDataParallel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
from world import ROOT

from rqa.cli.parser import parse_args
from rqa.cli.training_args import OptimizationArgs
from rqa.distributed.accelerator import FULL_GRADIENT_MODELS, leave_group, load_deepspeed_config, make_accelerator
from rqa.errors import InputError
from rqa.models.decoder import AnswerLM
from rqa.models.fid import FusionInDecoder

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "DS_ACCELERATOR")


@pytest.fixture(autouse=True)
def _not_launched(monkeypatch):
    before = dict(os.environ)  # a launch and accelerate change it
    for name in before:
        if name.startswith(("ACCELERATE_", "MASTER_")) or name in LAUNCHERS:
            del os.environ[name]
    monkeypatch.setattr("rqa.distributed.accelerator.bf16_is_fast", lambda device: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    os.environ.clear()
    os.environ.update(before)


BY_FLAG = [(None, {"bf16": True}, "bf16"), (None, {"bf16": False}, "no")]
BY_LAUNCHER = [("no", {"bf16": True}, "bf16"), ("bf16", {}, "bf16"), ("bf16", {"bf16": True}, "bf16")]
NOT_SET = [(None, {}, None), ("no", {}, None)]


@pytest.mark.parametrize(("launched", "flags", "expected"), [*BY_FLAG, *BY_LAUNCHER, *NOT_SET])
@pytest.mark.parametrize("fast", [True, False])
def test_the_default_precision_is_bfloat16_if_the_device_is_fast_in_it(monkeypatch, launched, flags, expected, fast):
    monkeypatch.setattr("rqa.distributed.accelerator.bf16_is_fast", lambda device: fast and device.type == "cpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert make_accelerator(**flags).mixed_precision == (expected or ("bf16" if fast else "no"))


@pytest.mark.parametrize(
    ("launched", "flags", "message"),
    [
        (None, {"bf16": True, "fp16": True}, "--bf16, --fp16: "),
        ("fp16", {"bf16": True}, "mixed precision: .* got 'bf16' and 'fp16'"),
        ("bf16", {"fp16": True}, "mixed precision: .* got 'fp16' and 'bf16'"),
        (None, {"fp16": True}, "mixed precision fp16: .* got a CPU"),
        ("bf16", {"bf16": False}, "mixed precision: .* got 'no' and 'bf16'"),
    ],
)
def test_contradicting_precisions_are_an_error(monkeypatch, launched, flags, message):
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(InputError, match=message):
        make_accelerator(**flags)


def test_the_environment_does_not_change_gradient_accumulation(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    accelerator = make_accelerator(3, bf16=False)
    model, synced = accelerator.prepare(torch.nn.Linear(1, 1)), []
    for _ in range(6):
        with accelerator.accumulate(model):
            synced.append(accelerator.sync_gradients)
    assert (accelerator.gradient_accumulation_steps, synced) == (3, [False, False, True] * 2)


@pytest.mark.parametrize("model_type", sorted(FULL_GRADIENT_MODELS))
def test_every_weight_of_the_listed_models_gets_a_gradient_from_one_token(model_type):
    is_fid = model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    model = (FusionInDecoder if is_fid else AnswerLM)(tiny_model(model_type, is_fid)).train()
    assert model.config.model_type == model_type
    model(**(random_passages([[1]], [1]) if is_fid else random_batch([(1, 1)]))).sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.fixture
def group(monkeypatch):
    """Be the only rank of a process group: torchrun's environment, in which Accelerate uses DDP."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(get_free_port()))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield
    leave_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_model_whose_weights_all_get_a_gradient_is_prepared_as_by_accelerate(group):
    """Also after a model with other weights."""

    def settings(accelerator, model_type):
        prepared = accelerator.prepare(AnswerLM(tiny_model(model_type, False)))
        assert isinstance(prepared, DistributedDataParallel)
        simple = (bool, int, float, str)
        return {name: value for name, value in vars(prepared).items() if isinstance(value, simple)}

    accelerator = make_accelerator(bf16=False)
    other, full = settings(accelerator, "gemma3"), settings(accelerator, "llama")
    assert full == settings(Accelerator(), "llama")
    assert other == full | {"find_unused_parameters": True}


def test_processes_that_do_not_communicate_are_an_error_with_the_right_command(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 RECIPE"):
        make_accelerator(bf16=False)


@pytest.fixture
def launcher():
    """A function that starts a process, with changes of the environment, in the place of a launcher."""
    started = []

    def start(*words, **variables):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
        started.append(subprocess.Popen(["sh", "-c", "read line", *words], stdin=subprocess.PIPE, env=environment))
        return started[-1].pid

    yield start
    for process in started:
        process.communicate()


@pytest.mark.parametrize(
    ("words", "variables", "threads", "is_replaced"),
    [
        ([], {}, "1", True),
        ([], {}, "2", False),
        ([], {"OMP_NUM_THREADS": "1"}, "1", False),
        (["--num_cpu_threads_per_process", "1"], {}, "1", False),
        (["--num-cpu-threads-per-process=1"], {}, "1", False),
        (["--num_processes", "1"], {}, "1", True),
        (None, {}, "1", False),  # plain Python
    ],
)
def test_a_single_thread_is_replaced_if_it_is_not_a_setting_of_the_user(
    monkeypatch, launcher, words, variables, threads, is_replaced
):
    """`accelerate launch` sets one thread by default."""
    monkeypatch.setattr("rqa.distributed.accelerator.os.sched_getaffinity", lambda process: set(range(6)))
    set_to = []
    monkeypatch.setattr("rqa.distributed.accelerator.torch.set_num_threads", set_to.append)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    if words is not None:
        parent = launcher(*words, **variables)
        monkeypatch.setattr("rqa.distributed.accelerator.os.getppid", lambda: parent)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    make_accelerator(bf16=False)
    assert set_to == ([6] if is_replaced else [])


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_emulated_bfloat16_is_a_warning_with_the_factor(monkeypatch, caplog, fast, bf16):
    monkeypatch.setattr("rqa.distributed.accelerator.bf16_is_fast", lambda device: fast)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    make_accelerator(bf16=bf16)
    assert ("about 9 times" in caplog.text and "--bf16 false" in caplog.text) == (bf16 and not fast)


# The DeepSpeed configuration; tests/recipes/test_deepspeed.py runs it

CONFIGS = sorted((ROOT / "recipes/configs").glob("accelerate_*.yaml"))


ENVIRONMENTS = {
    "deepspeed_launcher": prepare_deepspeed_cmd_env,
    "multi_gpu_launcher": lambda args: (None, prepare_multi_gpu_env(args)),
    "simple_launcher": prepare_simple_launcher_cmd_env,
}


@pytest.fixture
def launched_by(monkeypatch):
    """Return the environment of a process of `accelerate launch`, after setting it here."""

    def launch_by(path, *argv):
        made = {}
        monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)  # other tests may use it
        for name, environment in ENVIRONMENTS.items():
            monkeypatch.setattr(launch, name, lambda args, e=environment: made.update(e(args)[1]))
        launch.launch_command(launch.launch_command_parser().parse_args(["--config_file", str(path), *argv, "r.py"]))
        for name in {name for name in made if name.startswith("ACCELERATE_")}:
            monkeypatch.setenv(name, made[name])
        return made

    return launch_by


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid(launched_by, path):
    raw = yaml.safe_load(path.read_text())
    config = load_config_from_file(str(path))  # raises for unknown keys
    assert config.num_processes == raw["num_processes"]
    assert config.num_machines == (2 if "two_machines" in path.name else 1)
    environment = launched_by(path)
    assert environment.get("ACCELERATE_USE_FSDP", "false") == str("fsdp" in path.name).lower()
    assert environment.get("ACCELERATE_USE_DEEPSPEED", "false") == str("zero" in path.name).lower()
    assert set(map(str, raw.get("fsdp_config", {}).values())) - {"True", "2"} <= set(environment.values())


@pytest.mark.parametrize(("stage", "offload"), [(2, ""), (3, ""), (2, "_offload"), (3, "_offload")])
def test_the_shipped_configurations_name_their_deepspeed_file(monkeypatch, launched_by, stage, offload):
    monkeypatch.chdir(ROOT)
    launched_by(f"recipes/configs/accelerate_zero{stage}{offload}.yaml")
    config, where = load_deepspeed_config("")
    assert config["zero_optimization"]["stage"] == stage
    assert ("offload_optimizer" in config["zero_optimization"]) == bool(offload)
    assert where.startswith("accelerate's deepspeed_config_file recipes/configs/ds_")


def yaml_of(folder, **deepspeed):
    """Write the file of `accelerate config` for DeepSpeed with the default answers and changes."""
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


def test_default_answers_of_accelerate_config_are_not_settings(launched_by, tmp_path):
    launched_by(yaml_of(tmp_path))
    assert load_deepspeed_config("") == ({"zero_optimization": {"stage": 2}}, "accelerate's deepspeed_config")


def test_settings_of_accelerates_configuration_are_used(launched_by, tmp_path):
    settings = {"zero_stage": 3, "offload_optimizer_device": "cpu", "zero3_save_16bit_model": True}
    launched_by(yaml_of(tmp_path, **settings, gradient_clipping=0.3, gradient_accumulation_steps=4))
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "stage3_gather_16bit_weights_on_model_save": True}
    expected = {"zero_optimization": zero, "gradient_clipping": 0.3, "gradient_accumulation_steps": 4}
    assert load_deepspeed_config("") == (expected, "accelerate's deepspeed_config")
    with pytest.raises(InputError, match=r"deepspeed_config: gradient_clipping: .*1\.0 \(--max_grad_norm\), got 0\.3"):
        make_accelerator(4, flags={"max_grad_norm": 1.0})
    with pytest.raises(InputError, match=r"gradient_accumulation_steps: .*2 \(--gradient_accumulation_steps\), got 4"):
        make_accelerator(2, flags={"max_grad_norm": 0.3})


def test_a_launcher_without_settings_leaves_all_to_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    path = file_of(tmp_path, {"zero_optimization": {"stage": 3}})
    assert load_deepspeed_config(path) == ({"zero_optimization": {"stage": 3}}, f"--deepspeed {path}")
    assert load_deepspeed_config("") == ({"zero_optimization": {"stage": 2}}, "accelerate's deepspeed_config")


def test_flag_and_launcher_are_merged_unless_they_contradict(launched_by, tmp_path):
    launched_by(yaml_of(tmp_path, gradient_clipping=0.3))
    path = file_of(tmp_path, {"zero_optimization": {"stage": 2}, "steps_per_print": 7})
    config = {"zero_optimization": {"stage": 2}, "steps_per_print": 7, "gradient_clipping": 0.3}
    assert load_deepspeed_config(path) == (config, f"--deepspeed {path}")
    for other, message in (
        (
            {"zero_optimization": {"stage": 3}},
            r"zero_optimization\.stage: .*3 in --deepspeed .*, 2 in accelerate's",
        ),
        (
            {"gradient_clipping": 1},
            r"gradient_clipping: .*1 in --deepspeed .*ds\.json, 0\.3 in accelerate's deepspeed_config",
        ),
    ):
        with pytest.raises(InputError, match=message):
            make_accelerator(deepspeed=file_of(tmp_path, other))


def test_two_contradicting_files_are_an_error(launched_by, tmp_path):
    (tmp_path / "launcher").mkdir()
    theirs = file_of(tmp_path / "launcher", {"zero_optimization": {"stage": 2}})
    content = yaml.safe_load(yaml_of(tmp_path).read_text()) | {"deepspeed_config": {"deepspeed_config_file": theirs}}
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(content))
    launched_by(tmp_path / "accelerate.yaml")
    assert load_deepspeed_config(theirs)[0] == load_deepspeed_config("")[0] == {"zero_optimization": {"stage": 2}}
    ours = file_of(tmp_path, {"zero_optimization": {"stage": 3}})
    with pytest.raises(InputError, match=f"3 in --deepspeed {ours}, 2 in accelerate's deepspeed_config_file {theirs}"):
        make_accelerator(deepspeed=ours)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ACCELERATE_USE_CPU", "ACCELERATE_USE_CPU=true .* `torchrun --nproc"),
        ("ACCELERATE_USE_FSDP", "expected DeepSpeed or FSDP, got FSDP in accelerate's configuration"),
    ],
)
def test_settings_that_disable_deepspeed_are_an_error(monkeypatch, tmp_path, name, message):
    path = file_of(tmp_path, {"zero_optimization": {"stage": 2}})
    monkeypatch.setenv(name, "true")
    with pytest.raises(InputError, match=f"^--deepspeed {path}: {message}"):
        make_accelerator(deepspeed=path)


def test_deepspeed_of_the_launcher_is_off_without_training(launched_by, tmp_path):
    launched_by(yaml_of(tmp_path, zero_stage=3))
    accelerator = make_accelerator(bf16=False, deepspeed=None)
    assert (accelerator.distributed_type.value, accelerator.state.deepspeed_plugin) == ("NO", None)


def test_fsdp_of_the_launcher_is_off_without_training(launched_by):
    """FSDP would not shard the weights, and all ranks but one would load none."""
    launched_by(ROOT / "recipes/configs/accelerate_fsdp2.yaml")
    accelerator = make_accelerator(bf16=True, deepspeed=None)
    assert accelerator.distributed_type.value == "NO"
    assert "ACCELERATE_USE_FSDP" not in os.environ  # transformers reads it


def test_a_missing_deepspeed_is_an_error_with_the_install_command(monkeypatch, tmp_path):
    monkeypatch.setattr("rqa.distributed.accelerator.is_deepspeed_available", lambda: False)
    with pytest.raises(InputError, match=r'DeepSpeed is not installed.* `pip install "\.\[deepspeed\]"`'):
        make_accelerator(deepspeed=file_of(tmp_path, {"zero_optimization": {"stage": 2}}))


@pytest.mark.parametrize("older", ["0.19.7", "0.9.20"])
def test_a_deepspeed_that_treats_nan_as_finite_is_an_error(monkeypatch, tmp_path, older):
    monkeypatch.setattr("importlib.metadata.version", lambda name: older)
    with pytest.raises(InputError, match=f"expected DeepSpeed 0.19.8 or newer, got {older}"):
        make_accelerator(deepspeed=file_of(tmp_path, {"zero_optimization": {"stage": 2}}))


def test_a_missing_file_is_an_error_of_the_flags():
    with pytest.raises(InputError, match="--deepspeed no/such/file: "):
        parse_args(OptimizationArgs(), argv=["--deepspeed", "no/such/file"])
