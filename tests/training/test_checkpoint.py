"""checkpoint: the exported model, and checkpoints that are whole or do not exist."""

import json
import os
import re
import shutil
import sys
import threading
import time
from concurrent import futures
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_models import DECODERS, decoder, llama, random_batch, tokenizer
from tiny_seq2seq import seq2seq
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import files, hand_over, results_of

from rqa import atomic_files
from rqa.atomic_files import read_manifest, write_manifest
from rqa.errors import InputError
from rqa.models.decoder import AnswerLM
from rqa.training import checkpoint
from rqa.training.checkpoint import Checkpoints, DamagedCheckpointError, export
from rqa.training.early_stopping import EarlyStopping

MODELS = {family: lambda family=family: decoder(family) for family in DECODERS} | {"tied": lambda: llama(tied=True)}


def exported(lm, path, **options):
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(AnswerLM(lm))
    export(accelerator, model, tokenizer(), path, **options)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_plain_class_loads_the_exported_model(make, tmp_path):
    lm = make()
    exported(lm, tmp_path / "model")
    loaded, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(loaded) is type(lm)
    assert not any(loading.values())
    for name, tensor in lm.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name
    ids = random_batch([(9, 4)])["input_ids"]
    torch.testing.assert_close(loaded(ids).logits, lm.eval()(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_exported_weights_are_those_that_are_evaluated(tmp_path, dtype):
    """`lm` stays in float32 for the evaluation, with rounded weights."""
    lm = llama(tied=True)
    before = lm.model.embed_tokens.weight.clone()
    exported(lm, tmp_path / "model", dtype=dtype)
    assert lm.dtype == torch.float32
    assert not lm.model.embed_tokens.weight.equal(before)
    loaded, evaluated = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=kind) for kind in ("auto", torch.float32)
    )
    assert loaded.dtype == dtype
    for name, tensor in lm.state_dict().items():
        assert evaluated.state_dict()[name].equal(tensor), name
    assert {tensor.dtype for tensor in load_file(tmp_path / "model/model.safetensors").values()} == {dtype}


def test_weights_that_overflow_the_dtype_are_not_exported(tmp_path):
    lm = llama()
    lm.lm_head.weight.data[0, :2] = 1e6
    with pytest.raises(InputError, match=r"--save_dtype float16: .*got 2 "):
        exported(lm, tmp_path / "model", dtype=torch.float16)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("regional", ["false", "true"])
@pytest.mark.parametrize("make", [llama, seq2seq], ids=["llama", "t5"])
def test_a_compiled_model_is_exported_under_the_names_of_the_plain_model(make, tmp_path, monkeypatch, regional):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", regional)
    model = make()
    model.save_pretrained(tmp_path / "plain")
    exported(model, tmp_path / "model")
    written, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "plain"))
    assert written.keys() == expected.keys()
    assert all(written[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("wrong", ["lm_head.weight", "wrapper.model.lm_head.weight"])
def test_names_that_the_plain_class_cannot_load_are_not_exported(tmp_path, monkeypatch, wrong):
    lm = llama()
    state = {f"model.{name}": tensor for name, tensor in lm.state_dict().items()}
    if wrong in lm.state_dict():
        del state[f"model.{wrong}"]
    else:
        state[wrong] = torch.zeros(1)
    monkeypatch.setattr(Accelerator, "get_state_dict", lambda *args: state)
    with pytest.raises(RuntimeError, match=f"LlamaForCausalLM: .*{re.escape(wrong)}"):
        exported(lm, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("make", [lambda: llama(tied=True), seq2seq], ids=["llama", "t5"])
def test_tied_weights_are_exported_once_also_from_copies(make, tmp_path, monkeypatch):
    """DeepSpeed returns copies."""
    model = make()
    model.save_pretrained(tmp_path / "plain")
    copies = {f"model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(Accelerator, "get_state_dict", lambda *args: copies)
    exported(model, tmp_path / "model")
    written, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "plain"))
    assert written.keys() == expected.keys()
    assert len(expected) < len(copies)


def test_the_tokenizer_is_exported_with_its_template(tmp_path):
    exported(decoder(), tmp_path / "model")
    ours, theirs = tokenizer(), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert theirs("<|user|>Who?</s> 水").input_ids == ours("<|user|>Who?</s> 水").input_ids
    assert theirs.chat_template == ours.chat_template


@pytest.mark.parametrize("failing", [0, 1], ids=["model", "tokenizer"])
def test_a_failed_export_leaves_no_model(tmp_path, monkeypatch, failing):
    def fail(folder, **options):
        folder.mkdir(exist_ok=True)
        (folder / "half").write_text("written")
        raise OSError("disk full")

    lm, broken = decoder(), tokenizer()
    monkeypatch.setattr((lm, broken)[failing], "save_pretrained", fail)
    accelerator = Accelerator(cpu=True)
    with pytest.raises(OSError, match="disk full"):
        export(accelerator, accelerator.prepare(AnswerLM(lm)), broken, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    exported(decoder(), tmp_path / "model")  # the failure does not block it
    assert "model.safetensors" in files(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_the_model_is_renamed_after_all_is_written(tmp_path, monkeypatch):
    existed, lm = [], decoder()
    save = lm.save_pretrained
    monkeypatch.setattr(
        lm, "save_pretrained", lambda *a, **b: save(*a, **b) or existed.append((tmp_path / "model").exists())
    )
    exported(lm, tmp_path / "model")
    assert existed == [False]
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


# Checkpoints: the state is one number, that of the step


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class Run:
    """A run of one prepared parameter, and its checkpoints in `folder`."""

    def __init__(self, folder, *, fingerprint=None, keep=2, metric="", accelerator=None):
        self.accelerator = accelerator or Accelerator(cpu=True)
        self.model, self.optimizer = self.accelerator.prepare(net := Net(), torch.optim.AdamW(net.parameters()))
        self.folder, self.early_stopping = folder, EarlyStopping(metric)
        fingerprint = {"processes": 1, "--seed": 0} if fingerprint is None else fingerprint
        self.checkpoints = Checkpoints(self.accelerator, folder, fingerprint, self.early_stopping, keep=keep)

    def step(self, number):
        with torch.no_grad():
            self.weight.fill_(number)
        self.log(number)

    def log(self, line):
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(f"{line}\n")

    @property
    def weight(self):
        return self.accelerator.unwrap_model(self.model).weight

    def save(self, *steps):
        for step in steps:
            self.step(step)
            assert self.is_saved(step)

    def is_saved(self, step):
        """Save a step, wait, and return True unless that failed."""
        self.checkpoints.save(step)
        return self.checkpoints.wait()


def saved_steps(folder):
    return [int(path.name.removeprefix("step-")) for path in sorted((folder / "checkpoints").iterdir())]


@pytest.fixture
def log(caplog):
    caplog.set_level("INFO", "rqa")
    return caplog


def test_a_run_resumes_from_its_newest_checkpoint_with_its_logs(tmp_path, log):
    run = Run(tmp_path)
    run.save(5, 10)
    run.step(12)
    (tmp_path / "timings.jsonl").write_text("written after the checkpoint")
    again = Run(tmp_path)
    assert again.checkpoints.resume("latest") == 10
    assert again.weight.item() == 10
    assert (tmp_path / "metrics.jsonl").read_text() == "5\n10\n"
    assert not (tmp_path / "timings.jsonl").exists()
    assert "step 10" in log.text


def test_training_continues_while_a_checkpoint_is_published(tmp_path):
    run, may_publish = Run(tmp_path, metric="f1"), threading.Event()
    gate = run.checkpoints._thread.submit(may_publish.wait, 60)
    run.step(5)
    run.checkpoints.save(5)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [".step-00000005.partial"]
    run.step(6)
    run.early_stopping.add(5, {"f1": 1.0})
    run.step(10)
    threading.Timer(0.5, may_publish.set).start()
    run.checkpoints.save(10)  # waits
    assert (tmp_path / "checkpoints/step-00000005").exists()
    assert run.checkpoints.wait()
    assert gate.result()
    for step, lines in ((10, "5\n6\n10\n"), (5, "5\n")):
        again = Run(tmp_path, metric="f1")
        assert again.checkpoints.resume(str(tmp_path / f"checkpoints/step-{step:08}")) == step
        assert again.weight.item() == step
        assert again.early_stopping.values == ({5: 1.0} if step == 10 else {})
        assert (tmp_path / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize("named", ["run", "run/checkpoints", "run/checkpoints/"])
def test_the_folder_of_a_run_is_its_newest_whole_checkpoint(tmp_path, monkeypatch, named):
    (tmp_path / "run").mkdir()
    (tmp_path / "other").mkdir()
    Run(tmp_path / "run").save(5, 10, 15)
    harm_one_byte(tmp_path / "run/checkpoints/step-00000015")
    monkeypatch.chdir(tmp_path)
    for folder in ("other", "run"):
        again = Run(Path(folder))
        assert (again.checkpoints.resume(named), again.weight.item()) == (10, 10)
        again.save(12)
        assert saved_steps(tmp_path / folder)[-1] == 12


@pytest.mark.parametrize("named", ["none", "folder"])
def test_a_folder_without_a_checkpoint_is_refused(tmp_path, named):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path / named}: .*latest") as refused:
        Run(tmp_path).checkpoints.resume(str(tmp_path / named))
    assert "Errno" not in str(refused.value)
    assert "FileNotFoundError" not in str(refused.value)


def test_an_evaluation_is_added_to_a_saved_step_and_changes_only_the_manifest(tmp_path):
    run = Run(tmp_path, metric="f1")
    run.save(5)
    folder = tmp_path / "checkpoints/step-00000005"
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    for number in (1, 2):  # the second time nothing changes
        if number == 1:
            run.log("evaluation")
            run.early_stopping.add(5, {"f1": 3.0})
        assert run.is_saved(5)
        assert {name for name in files(folder) if before.get(name) != (folder / name).read_bytes()} == {"manifest.json"}
    run.log("of step 6")
    again = Run(tmp_path, metric="f1")
    assert again.checkpoints.resume("latest") == 5
    assert (tmp_path / "metrics.jsonl").read_text() == "5\nevaluation\n"
    assert again.early_stopping.values == {5: 3.0}
    again.log("another")
    assert again.is_saved(5)
    Run(tmp_path, metric="f1").checkpoints.resume("latest")
    assert (tmp_path / "metrics.jsonl").read_text() == "5\nevaluation\nanother\n"


@pytest.mark.parametrize(("where", "name"), [(Path, "open"), (os, "fsync"), (Path, "replace")])
def test_a_failure_while_an_evaluation_is_added_leaves_the_checkpoint_whole(tmp_path, monkeypatch, where, name):
    run = Run(tmp_path, metric="f1")
    run.save(5)
    run.log("evaluation")
    run.early_stopping.add(5, {"f1": 3.0})

    def fail(*args, **options):
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(where, name, fail)
        run.checkpoints.save(5)
    assert run.early_stopping.best is None  # only a saved step can be the best
    again = Run(tmp_path, metric="f1")
    assert again.checkpoints.resume("latest") == 5
    assert (again.early_stopping.values, (tmp_path / "metrics.jsonl").read_text()) == ({}, "5\n")


def test_a_failed_save_is_not_repeated_for_the_same_step(tmp_path, monkeypatch):
    run, calls = Run(tmp_path, metric="f1"), []

    def fail(folder):
        calls.append(folder)
        raise OSError("disk full")

    monkeypatch.setattr(run.accelerator, "save_state", fail)
    for step in (5, 10):
        assert not run.is_saved(step)
        run.early_stopping.add(step, {"f1": 1.0})
        assert not run.is_saved(step)
    assert len(calls) == 2
    assert run.early_stopping.best is None


def test_a_run_without_checkpoints_starts_anew(tmp_path, log):
    (tmp_path / "metrics.jsonl").write_text("of an earlier attempt")
    run = Run(tmp_path)
    assert run.checkpoints.resume("latest") == 0
    assert not files(tmp_path)
    assert "no checkpoint" in log.text


def test_a_run_resumes_from_an_earlier_checkpoint(tmp_path):
    Run(tmp_path, keep=3).save(5, 10, 15)
    again = Run(tmp_path)
    assert again.checkpoints.resume(str(tmp_path / "checkpoints/step-00000010")) == 10
    assert saved_steps(tmp_path) == [5, 10]  # else 15 would be the newest when 12 is saved, and 12 would be deleted


def test_a_checkpoint_can_be_moved_to_another_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Run(tmp_path / "a").save(5)
    (tmp_path / "a/checkpoints/step-00000005").rename(tmp_path / "moved")
    run = Run(tmp_path / "b")
    assert run.checkpoints.resume(str(tmp_path / "moved")) == 5
    assert (tmp_path / "b/metrics.jsonl").read_text() == "5\n"


@pytest.mark.parametrize(("keep", "kept"), [(1, [25]), (2, [20, 25]), (9, [5, 10, 15, 20, 25])])
def test_the_newest_checkpoints_are_kept(tmp_path, keep, kept):
    Run(tmp_path, keep=keep).save(5, 10, 15, 20, 25)
    assert saved_steps(tmp_path) == kept


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    run = Run(tmp_path, keep=1, metric="f1")
    for step, score in ((5, 1.0), (10, 9.0), (15, 3.0), (20, 4.0)):
        run.early_stopping.add(step, {"f1": score})
        run.save(step)
    assert saved_steps(tmp_path) == [10, 20]
    again = Run(tmp_path, keep=1, metric="f1")
    assert again.checkpoints.resume("latest") == 20
    assert again.early_stopping.values == run.early_stopping.values
    again.checkpoints.load_best()
    assert again.weight.item() == 10


def test_a_run_that_selects_the_best_model_resumes_only_with_its_checkpoint(tmp_path):
    """It would fail after the last step."""
    (tmp_path / "other").mkdir()
    run = Run(tmp_path, keep=1, metric="f1")
    for step, score in ((5, 9.0), (10, 1.0)):
        run.early_stopping.add(step, {"f1": score})
        run.save(step)
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(InputError, match=rf"step-00000010: .*{tmp_path}/other/checkpoints/step-00000005"):
        Run(tmp_path / "other", metric="f1").checkpoints.resume(str(checkpoints / "step-00000010"))
    shutil.copytree(checkpoints, tmp_path / "other/checkpoints")
    again = Run(tmp_path / "other", metric="f1")
    assert again.checkpoints.resume("latest") == 10
    harm_one_byte(tmp_path / "other/checkpoints/step-00000005")
    with pytest.raises(DamagedCheckpointError, match=r"optimizer\.bin: .*SHA-256"):
        again.checkpoints.load_best()


def harm_one_byte(folder):
    path = folder / "optimizer.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


HARM = {
    "a byte of the optimizer": (harm_one_byte, r"optimizer\.bin: .*SHA-256"),
    "the weights cut": (
        lambda f: os.truncate(f / "model.safetensors", 9),
        r"model\.safetensors: .*got 9\b",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"model\.safetensors: .*got no file",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"a folder without manifest\.json"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), r"JSONDecodeError.*manifest\.json"),
    "another step": (
        lambda f: (f / "manifest.json").write_text(
            (f / "manifest.json").read_text().replace('"step": 10', '"step": 9')
        ),
        r"checksum.*manifest\.json",
    ),
    "empty": (lambda f: [path.unlink() for path in f.iterdir()], r"a folder without manifest\.json"),
}


@pytest.mark.parametrize(("harm", "message"), HARM.values(), ids=HARM)
def test_a_damaged_checkpoint_is_named_and_the_earlier_one_is_used(tmp_path, log, harm, message):
    Run(tmp_path).save(5, 10)
    harm(tmp_path / "checkpoints/step-00000010")
    with pytest.raises(DamagedCheckpointError, match=message):
        Run(tmp_path).checkpoints.resume(str(tmp_path / "checkpoints/step-00000010"))
    again = Run(tmp_path)
    assert again.checkpoints.resume("latest") == 5
    assert again.weight.item() == 5
    assert re.search(message, log.text)
    assert str(tmp_path / "checkpoints/step-00000010") in log.text
    again.save(10)
    assert Run(tmp_path).checkpoints.resume("latest") == 10


def test_if_all_checkpoints_are_damaged_the_run_is_refused(tmp_path):
    Run(tmp_path).save(5, 10)
    for folder in (tmp_path / "checkpoints").iterdir():
        harm_one_byte(folder)
    with pytest.raises(InputError, match=rf"{tmp_path}: .*\b2 damaged"):
        Run(tmp_path).checkpoints.resume("latest")
    assert (tmp_path / "metrics.jsonl").read_text() == "5\n10\n"


def test_a_checkpoint_of_another_run_is_refused_naming_the_differences(tmp_path):
    Run(tmp_path, fingerprint={"processes": 1, "--seed": 0, "--optim": "adamw"}).save(5)
    with pytest.raises(InputError) as refused:
        Run(tmp_path, fingerprint={"processes": 2, "--seed": 0, "index": "none"}).checkpoints.resume("latest")
    first, *differences = str(refused.value).splitlines()
    assert f"{tmp_path}/checkpoints/step-00000005" in first
    values = {line.split(":")[0].strip(): re.findall(r"'\w+'|\d+|None", line) for line in differences}
    assert values == {"--optim": ["'adamw'", "None"], "index": ["None", "'none'"], "processes": ["1", "2"]}


EVALUATION = {"--per_device_eval_batch_size": 8, "--max_new_tokens": None, "--test_file": "a", "--eval_file": "b"}
CHANGED = {"--per_device_eval_batch_size": 1, "--max_new_tokens": 9, "--test_file": "c", "--eval_file": "d"}


def test_flags_of_evaluation_may_change_with_a_warning(tmp_path, log):
    """After an evaluation that ran out of memory."""
    Run(tmp_path, fingerprint={"--seed": 0} | EVALUATION).save(5)
    assert Run(tmp_path, fingerprint={"--seed": 0} | CHANGED).checkpoints.resume("latest") == 5
    warnings = [record.args for record in log.records if record.levelname == "WARNING"]
    assert [(name, was, now) for name, was, _, now in warnings] == [
        ("--eval_file", "b", "d"),
        ("--max_new_tokens", None, 9),
        ("--per_device_eval_batch_size", 8, 1),
        ("--test_file", "a", "c"),
    ]
    with pytest.raises(InputError, match=r"--seed: .*0.*1"):
        Run(tmp_path, fingerprint=CHANGED | {"--seed": 1}).checkpoints.resume("latest")


def test_the_validation_file_is_locked_if_it_selects_the_model(tmp_path):
    Run(tmp_path, fingerprint=EVALUATION, metric="f1").save(5)
    with pytest.raises(InputError, match=r"--eval_file: .*'b'.*'d'"):
        Run(tmp_path, fingerprint=EVALUATION | {"--eval_file": "d"}, metric="f1").checkpoints.resume("latest")


@pytest.mark.parametrize("flag", ["--num_train_epochs", "--max_steps"])
def test_more_steps_on_resume_are_refused_with_the_way_to_train_further(tmp_path, flag):
    Run(tmp_path, fingerprint={flag: 2}).save(5)
    with pytest.raises(InputError, match=f"{flag}: .*2.*3") as refused:
        Run(tmp_path, fingerprint={flag: 3}).checkpoints.resume("latest")
    assert "--model_name_or_path OUTPUT_DIR/model" in str(refused.value)


@pytest.mark.parametrize("checkpoint", ["latest", "checkpoints/step-00000005"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_checkpoint_of_another_format_is_refused_naming_both_formats(tmp_path, monkeypatch, checkpoint, number):
    Run(tmp_path).save(5)
    path = tmp_path / "checkpoints/step-00000005/manifest.json"
    manifest = read_manifest(path) | {"format": number}
    if number == 1:  # it had other names
        manifest |= {"rqa_checkpoint": manifest.pop("format"), "selection": manifest.pop("evaluations")}
    write_manifest(path, manifest)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"step-00000005: expected .*format 3, got format {number}\b"):
        Run(tmp_path).checkpoints.resume(checkpoint)


def test_numbers_that_are_not_finite_survive_a_checkpoint(tmp_path):
    """--max_grad_norm inf, and a loss of NaN."""
    run = Run(tmp_path, fingerprint={"--max_grad_norm": float("inf")}, metric="loss")
    run.early_stopping.add(5, {"loss": float("nan")})
    run.save(5)
    again = Run(tmp_path, fingerprint={"--max_grad_norm": float("inf")}, metric="loss")
    assert again.checkpoints.resume("latest") == 5
    assert str(again.early_stopping.values) == "{5: nan}"


def test_a_checkpoint_of_other_versions_is_logged(tmp_path, log, monkeypatch):
    Run(tmp_path).save(5)
    monkeypatch.setattr("rqa.training.checkpoint.version", lambda name: "9.9")
    Run(tmp_path).checkpoints.resume("latest")
    installed = version("torch")  # torch.__version__ also has the build, such as +cpu
    assert re.search(rf"torch {re.escape(installed)}.* 9\.9", log.text)


def test_a_manifest_names_every_file_of_the_checkpoint(tmp_path):
    Run(tmp_path).save(5)
    folder = tmp_path / "checkpoints/step-00000005"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert next(iter(manifest)) == "format"
    assert {*manifest["files"], "manifest.json"} == files(folder)


def test_a_checkpoint_is_renamed_after_every_byte_is_flushed(tmp_path, monkeypatch):
    """The earlier checkpoint is deleted after that."""
    Run(tmp_path, keep=1).save(5)
    events = []
    fsync, replace, rmtree = os.fsync, Path.replace, shutil.rmtree
    monkeypatch.setattr(
        "os.fsync", lambda fd: events.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink()}") or fsync(fd)
    )
    monkeypatch.setattr(Path, "replace", lambda old, new: events.append(f"rename {new}") or replace(old, new))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **rest: events.append(f"delete {path}") or rmtree(path, **rest))
    Run(tmp_path, keep=1).save(10)
    final, partial = (tmp_path / "checkpoints" / name for name in ("step-00000010", ".step-00000010.partial"))
    manifest, renamed = events.index(f"rename {partial}/manifest.json"), events.index(f"rename {final}")
    flushed = events[manifest + 1 : renamed]  # after the last file got its name
    assert {*flushed} == {f"fsync {partial}", *(f"fsync {partial / name}" for name in files(final))}
    assert flushed[-1] == f"fsync {partial}"
    assert events[renamed + 1 :] == [f"fsync {final.parent}", f"delete {tmp_path}/checkpoints/step-00000005"]


# Failures


def fail(*args, **options):
    raise OSError("disk full")


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("unexpected pos"), SafetensorError("I/O")])
def test_training_continues_after_a_failed_checkpoint(tmp_path, log, monkeypatch, error):
    run = Run(tmp_path, metric="f1")
    run.save(5)
    run.early_stopping.add(10, {"f1": 1.0})

    def fail(folder):
        (Path(folder) / "half").write_text("written")
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(run.accelerator, "save_state", fail)
        assert not run.is_saved(10)
        assert not run.is_saved(15)
    assert re.search(rf"step 10: .*{type(error).__name__}: {error}", log.text)
    assert saved_steps(tmp_path) == [5]
    assert run.early_stopping.best is None  # only a saved step can be the best
    run.save(20)  # resets the count of failures
    monkeypatch.setattr(run.accelerator, "save_state", fail)
    assert [run.is_saved(step) for step in (25, 30)] == [False, False]
    with pytest.raises(OSError, match="3 checkpoints in a row"):
        run.is_saved(35)
    assert saved_steps(tmp_path) == [5, 20]


@pytest.mark.parametrize("score", [1.0, 3.0], ids=["worse", "better"])
def test_a_checkpoint_that_fails_while_training_continues_is_not_the_best(tmp_path, log, monkeypatch, score):
    """Step 12 was not saved, because it was worse than step 10."""
    run = Run(tmp_path, metric="f1")
    run.early_stopping.add(5, {"f1": 0.0})
    run.save(5)
    run.step(10)
    run.early_stopping.add(10, {"f1": 2.0})
    with monkeypatch.context() as broken:
        broken.setattr(atomic_files, "_sha256_of_piece", fail)
        run.checkpoints.save(10)
        run.checkpoints._publication.exception()
    assert saved_steps(tmp_path) == [5]
    run.early_stopping.add(12, {"f1": 1.0})
    run.step(15)
    run.early_stopping.add(15, {"f1": score})
    assert run.is_saved(15)
    assert "step 10: the checkpoint could not be written: OSError: disk full" in log.text
    assert run.early_stopping.values == {5: 0.0, 15: score}
    again = Run(tmp_path, metric="f1")
    assert again.checkpoints.resume("latest") == 15
    again.checkpoints.load_best()
    assert again.weight.item() == 15


def test_three_checkpoints_that_fail_while_training_continues_stop_the_run(tmp_path, monkeypatch):
    run = Run(tmp_path)
    monkeypatch.setattr(atomic_files, "_sha256_of_piece", fail)
    for step in (5, 10, 15):
        run.checkpoints.save(step)
    with pytest.raises(OSError, match=r"3 checkpoints in a row .*disk full"):
        run.checkpoints.wait()
    assert saved_steps(tmp_path) == []


def test_a_failure_on_one_rank_is_a_failure_on_all(tmp_path):
    assert results_of(__file__, tmp_path) == [[True, False, True, False, 15, 15.0]] * 2
    assert saved_steps(tmp_path / "run") == [15, 25]


def checksums_at_the_end(files):
    """Hash while Python ends, as after an exception in the next step."""
    while not futures.thread._shutdown:
        time.sleep(0.01)
    return atomic_files.checksums(files)


def fail_on_one_of_two_ranks(folder):
    accelerator = Accelerator(cpu=True)
    (folder / "run").mkdir(exist_ok=True)
    run, save_state = Run(folder / "run", accelerator=accelerator), accelerator.save_state
    results = []
    for step in (5, 10, 15, 20):
        with torch.no_grad():
            run.weight.fill_(step)
        accelerator.save_state = fail if step == 10 and not accelerator.is_main_process else save_state
        checkpoint.checksums = fail if step == 20 else atomic_files.checksums  # in a thread of the main process
        results.append(run.is_saved(step))
    checkpoint.checksums = atomic_files.checksums
    with torch.no_grad():
        run.weight.fill_(99)
    results += [run.checkpoints.resume("latest"), run.weight.item()]
    checkpoint.checksums = checksums_at_the_end
    run.checkpoints.save(25)
    hand_over(results, folder)


if __name__ == "__main__":
    fail_on_one_of_two_ranks(Path(sys.argv[1]))
