"""run_log: the output folder, the fingerprint and the log of a run."""

import logging
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_evaluations import evaluation
from tiny_models import BOS, EOS, tokenizer, wide_decoder
from world import files, read_jsonl

from rqa.cli.data_args import DataArgs, PromptArgs
from rqa.cli.parser import flat, parse_args
from rqa.cli.training_args import OptimizationArgs, RunArgs, flags_locked_on_resume
from rqa.data.records import load_examples
from rqa.distributed.weights import weights_checksum
from rqa.errors import InputError
from rqa.evaluation.metrics import format_scores
from rqa.models.lora import Lora, add_adapter
from rqa.models.quantization import quantize
from rqa.prompts.collators import EncodedExample
from rqa.retrieval.retrieve import Retrieval
from rqa.training.folder_lock import OWN_NAME
from rqa.training.loop import Step
from rqa.training.run_log import RunLog, log_rows, new_folder, run_fingerprint, start_run

MAIN, OTHER = (SimpleNamespace(is_main_process=main, device=torch.device("cpu")) for main in (True, False))
STEPS = [
    Step(number, 4.0 / number, 1.5, 1e-3, 10 * number, 100, 8, number == 3, (1, 2) * (number == 3), 0.5, 0.1)
    for number in range(1, 6)
]
ARGS = (
    PromptArgs(user_prefix="水", assistant_prefix="A"),
    OptimizationArgs(max_grad_norm=float("inf")),
    RunArgs(output_dir="out"),
)
LOG = {"config": flat(ARGS), "num_steps": 5, "logging_steps": 2, "example_ids": ("zero", "one", "two")}


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "rqa")
    return caplog


def args_of(folder):
    """Return the flags that config.json sets."""
    return parse_args(PromptArgs(), OptimizationArgs(), RunArgs(), argv=["--config", f"{folder}/config.json"])


# The folder


def test_a_run_writes_a_config_that_repeats_it_when_it_starts_to_train(tmp_path):
    for _ in range(2):  # a failure before the training, for example in the encoder, leaves only the lock
        folder = new_folder(MAIN, str(tmp_path / "a/b"))
        assert (folder, files(folder)) == (tmp_path / "a/b", {OWN_NAME})
    RunLog(MAIN, folder, **LOG)
    assert files(folder) == {OWN_NAME, "config.json"}
    assert args_of(folder) == ARGS


@pytest.mark.parametrize(("resume", "names_flag"), [(None, False), (False, True)])
def test_a_folder_with_a_run_is_refused_and_unchanged(tmp_path, resume, names_flag):
    """The flag to resume is named only if the recipe has it."""
    (tmp_path / "config.json").write_text("of a run or a model")
    with pytest.raises(InputError, match=f"--output_dir {tmp_path}: ") as refused:
        new_folder(MAIN, str(tmp_path), resume=resume)
    assert ("--resume_from_checkpoint latest" in str(refused.value)) == names_flag
    assert files(tmp_path) == {"config.json"}
    assert (tmp_path / "config.json").read_text() == "of a run or a model"


def test_a_folder_that_is_not_writable_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (str(tmp_path / "file/out"), "/proc"):  # the first cannot be created, the second takes no file
        with pytest.raises(InputError, match=f"--output_dir {path}: "):
            new_folder(MAIN, path)


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    """A full disk creates empty files."""

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", fail)
    with pytest.raises(InputError, match=f"--output_dir {tmp_path}: .*No space left"):
        new_folder(MAIN, str(tmp_path))


def test_the_fingerprint_depends_on_content_not_on_file_names(world, tmp_path):
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(3, 2)
    splits = [load_examples(path) for path in (world.train, world.eval, world.test)]
    rows = [EncodedExample([[1, 2]], [3]), EncodedExample([[4]], [5])]

    def locked(name, **optimization):
        args = (OptimizationArgs(**{"seed": 3} | optimization), RunArgs(output_dir=name), DataArgs(train_file=name))
        return flags_locked_on_resume(flat(args))

    base = (accelerator, model, locked("a"), splits, rows, Retrieval([], 0.0, "R"))
    fingerprint = run_fingerprint(*base)
    assert fingerprint == fingerprint | {
        "processes": 1,
        "distribution": "NO",
        "mixed precision": "no",
        "parameters": 8,
        "retriever": "R",
        "--seed": 3,
    }
    shutil.copy(world.train, tmp_path / "train.jsonl")
    same = [load_examples(str(tmp_path / "train.jsonl")), *splits[1:]]
    assert run_fingerprint(accelerator, model, locked("b"), same, rows, base[-1]) == fingerprint

    changed = [replace(splits[0][0], question="Why?"), *splits[0][1:]]
    others = {
        "--seed": (*base[:2], locked("a", seed=4), *base[3:]),
        "parameters": (accelerator, torch.nn.Linear(3, 3), *base[2:]),
        "--train_file": (*base[:3], [changed, *splits[1:]], *base[4:]),
        "--test_file": (*base[:3], [*splits[:2], splits[2][1:]], *base[4:]),
        "tokens of the first rows": (*base[:4], [rows[0], EncodedExample([[4]], [6])], base[5]),
        "retriever": (*base[:5], None),
    }
    for name, other in others.items():
        other_fingerprint = run_fingerprint(*other)
        assert {key for key in fingerprint if other_fingerprint[key] != fingerprint[key]} == {name}


def test_other_ranks_write_only_their_lock_and_refuse_no_folder(tmp_path):
    assert new_folder(OTHER, str(tmp_path / "new")) == tmp_path / "new"
    assert files(tmp_path / "new") == {OWN_NAME}
    RunLog(MAIN, new_folder(MAIN, str(tmp_path / "new")), **LOG)
    new_folder(OTHER, str(tmp_path / "new"))


# The start


def started(folder, **options):
    accelerator = Accelerator(cpu=True)
    net = torch.nn.Linear(1, 1)
    accelerator.prepare(net, torch.optim.AdamW(net.parameters()))
    return start_run(accelerator, folder, **LOG, fingerprint={"--seed": 0}, metric_for_best_model="f1", **options)


def test_a_started_run_resumes_with_its_evaluations_and_its_config_repeats_it(tmp_path):
    run = started(new_folder(MAIN, str(tmp_path)), resume_from_checkpoint="latest", early_stopping_patience=1)
    assert (run.first_step, run.early_stopping.best) == (0, None)
    for step in STEPS[:2]:
        run.log.step(step)
        run.early_stopping.add(step.number, {"f1": -step.number})
        run.checkpoints.save(step.number)
        assert run.checkpoints.wait()
    assert run.early_stopping.should_stop
    run.log.step(STEPS[2])
    AcceleratorState._reset_state(reset_partial_state=True)

    again = started(new_folder(MAIN, str(tmp_path), resume=True), resume_from_checkpoint="latest")
    assert (again.first_step, again.early_stopping.best, again.log.last_step) == (2, 1, 2)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]
    assert args_of(tmp_path) == ARGS


def test_the_config_neither_resumes_nor_breaks_a_lock(tmp_path):
    config = LOG["config"] | {"resume_from_checkpoint": "latest", "break_lock": True}
    RunLog(MAIN, tmp_path, **LOG | {"config": config})
    assert args_of(tmp_path) == ARGS


def test_a_step_that_was_saved_before_its_evaluation_is_repeated_on_resume(tmp_path):
    """The log has it already, and it is the first again; with an evaluation it is not."""
    folder = new_folder(MAIN, str(tmp_path))
    run = started(folder)
    assert list(run.remaining(iter(STEPS))) == STEPS
    for step in STEPS[:2]:
        run.log.step(step)
    run.checkpoints.save(2)
    assert run.checkpoints.wait()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    AcceleratorState._reset_state(reset_partial_state=True)

    again = started(folder, resume_from_checkpoint="latest", early_stopping_patience=1)
    repeated, *others = again.remaining(iter(STEPS[2:]))
    assert (repeated.number, repeated.loss, others) == (2, STEPS[1].loss, STEPS[2:])
    again.log.step(repeated)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    again.log.evaluation("eval-000002", evaluation(0))
    again.early_stopping.values = {2: 1.0, 3: 0.0}
    again.checkpoints.save(2)
    assert again.checkpoints.wait()
    AcceleratorState._reset_state(reset_partial_state=True)

    third = started(folder, resume_from_checkpoint="latest", early_stopping_patience=1)
    assert third.unevaluated == ()
    assert list(third.remaining(iter(STEPS[2:]))) == []  # it has stopped early


# The log


def test_the_first_row_is_logged_with_its_targets_in_brackets(log):
    encode = tokenizer().encode
    log_rows(
        [
            EncodedExample([[BOS, *encode("Who?")]], [*encode("I."), EOS], truncated=2),
            EncodedExample([[BOS] * 9], [EOS]),
            EncodedExample([[5]], [6], 1),
        ],
        tokenizer(),
    )
    counts, shown = log.messages
    for part in ("rows: 3", "in a row 7 ", "longest 10", "25.0 %", "in 2 rows", "13.04 %"):  # 5 of 20, and 3 of 23
        assert part in counts
    assert shown.endswith("\n<s>Who?⟦I⟧⟦.⟧⟦</s>⟧\n")
    log_rows([EncodedExample([encode("a" * 700 + "b" * 700)], [EOS])], tokenizer())
    assert f"\n{'a' * 600} […] {'b' * 600}⟦</s>⟧\n" in log.messages[-1]


def test_repeatable_fields_and_times_go_to_different_files(tmp_path, monkeypatch):
    monkeypatch.setattr("rqa.training.run_log.peak_memory_gib", lambda device: 1.25)
    run_log = RunLog(MAIN, tmp_path, **LOG)
    for step in STEPS:
        run_log.step(step)
    elsewhere = {"number", "seconds", "batch_seconds", "non_finite_examples"}
    expected = [{"step": step.number} | {k: v for k, v in asdict(step).items() if k not in elsewhere} for step in STEPS]
    expected[2]["non_finite_examples"] = ["one", "two"]  # only of a skipped step
    metrics = read_jsonl(tmp_path / "metrics.jsonl")
    assert [list(row.items()) for row in metrics] == [list(row.items()) for row in expected]
    assert read_jsonl(tmp_path / "timings.jsonl") == [
        {"step": step.number, "seconds": 0.5, "batch_seconds": 0.1, "memory_gib": 1.25} for step in STEPS
    ]


def test_the_tracker_receives_steps_and_evaluations(tmp_path):
    run_log, sent = RunLog(MAIN, tmp_path, **LOG), []
    run_log.tracker._send = lambda values, step: sent.append((dict(values), step))
    run_log.step(STEPS[1])
    scores = evaluation(0)
    run_log.evaluation("eval-000002", scores)
    step = {"train/loss": 2.0, "train/gradient_norm": 1.5, "train/learning_rate": 1e-3, "train/seconds": 0.5}
    assert sent == [(step, 2), ({f"eval/{name}": value for name, value in scores.metrics.items()}, 2)]


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    RunLog(MAIN, tmp_path, **LOG).step(replace(STEPS[0], loss=float("nan"), gradient_norm=float("inf"), skipped=True))
    [row] = read_jsonl(tmp_path / "metrics.jsonl")
    assert (row["loss"], row["gradient_norm"], row["skipped"]) == (None, None, True)


def test_a_line_summarizes_the_steps_since_the_last_line(tmp_path, log, monkeypatch):
    monkeypatch.setattr("rqa.training.run_log.peak_memory_gib", lambda device: 1.25)
    run_log = RunLog(MAIN, tmp_path, **LOG)
    for step in STEPS:
        run_log.step(replace(step, seconds=60.0))
    same = "gradient norm 1.500  rate 1.00e-03  0.13 examples/s  2 tokens/s  1.2 GiB"
    *lines, skipped = sorted(log.messages, key=lambda line: "skipped" in line)
    assert lines == [
        f"step 2/5  loss {(4.0 * 10 + 2.0 * 20) / 30:.4f}  {same}  3.0 min left",
        f"step 4/5  loss {(4 / 3 * 30 + 1.0 * 40) / 70:.4f}  {same}  1.0 min left",
        f"step 5/5  loss 0.8000  {same}  0.0 min left",
    ]
    assert skipped.startswith("step 3: ")
    assert skipped.endswith(": one, two")


def test_an_evaluation_is_recorded_logged_and_written(tmp_path, log):
    scores = evaluation(0)
    RunLog(MAIN, tmp_path, **LOG).evaluation("eval-000002", scores)
    scores.write(tmp_path / "expected")
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"evaluation": "eval-000002", **scores.metrics}]
    for name in ("score.json", "predictions.jsonl"):
        assert (tmp_path / "eval-000002" / name).read_text() == (tmp_path / "expected" / name).read_text()
    assert log.messages == [f"eval-000002: {format_scores(scores.metrics)}"]


def test_other_ranks_write_and_log_nothing(tmp_path, log):
    run_log = RunLog(OTHER, tmp_path, **LOG)
    run_log.step(STEPS[0])
    run_log.evaluation("test", evaluation(0))
    assert not files(tmp_path)
    assert not log.messages


def test_a_base_in_4_bits_with_another_scale_is_another_base():
    """Its values of 4 bits are the same."""
    codes, sums = [], []
    for scale in (1, 1, 2):
        model = wide_decoder()
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight *= scale
        quantize(model, torch.float32)
        add_adapter(model, Lora(2, 4.0))
        codes.append(model.model.layers[0].mlp.up_proj.base_layer.weight.data)
        sums.append(weights_checksum(Accelerator(cpu=True), model, only_frozen=True))
    assert torch.equal(codes[0], codes[2])
    assert sums[0] == sums[1] != sums[2]
