"""run_log: refusals before a run begins, and the files that it leaves."""

import json
import logging
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_models import BOS, EOS, tokenizer
from world import World, files

from rqa.cli import data_args as inputs
from rqa.cli import training_args as config
from rqa.cli.parser import parse_configs
from rqa.data.records import load_examples
from rqa.errors import InputError
from rqa.evaluation.evaluate import Scores
from rqa.prompts.collators import EncodedExample
from rqa.retrieval.retrieve import Retrieval
from rqa.training.loop import Step
from rqa.training.run_log import RunLog, format_scores, log_rows, new_folder, run_fingerprint

MAIN, OTHER = (SimpleNamespace(is_main_process=main, device=torch.device("cpu")) for main in (True, False))
STEPS = [
    Step(number, 4.0 / number, 1.5, 1e-3, 10 * number, 100, 8, number == 3, (1, 2) * (number == 3), 0.5, 0.1)
    for number in range(1, 6)
]
IDS = ("zero", "one", "two")
CONFIGS = (inputs.Prompt(user_prefix="水", assistant_prefix="A"), config.Run(output_dir="out"))


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "rqa")
    return caplog


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# The folder


def test_a_run_writes_a_config_that_repeats_it_once_it_is_about_to_train(tmp_path):
    for _ in range(2):  # what failed before, an encoder that does not load say, leaves the folder free
        folder = new_folder(MAIN, str(tmp_path / "a/b"))
        assert (folder, files(folder)) == (tmp_path / "a/b", set())
    RunLog(MAIN, folder, CONFIGS, 5, 1, ids=IDS)
    assert files(folder) == {"config.json"}
    assert parse_configs(inputs.Prompt(), config.Run(), argv=["--config", f"{folder}/config.json"]) == CONFIGS


@pytest.mark.parametrize(
    ("resume", "advice"), [(None, "$"), (False, ", or go on .*: --resume_from_checkpoint latest$")]
)
def test_a_folder_with_a_run_is_refused_and_left_as_it_is(tmp_path, resume, advice):
    """To who cannot go on with a run, the flag that does is not named."""
    (tmp_path / "config.json").write_text("a run's, or a model's")
    told = f"--output_dir {tmp_path}: a run's files are there already; name a new folder{advice}"
    with pytest.raises(InputError, match=told):
        new_folder(MAIN, str(tmp_path), resume=resume)
    assert files(tmp_path) == {"config.json"}
    assert (tmp_path / "config.json").read_text() == "a run's, or a model's"


def test_a_run_that_goes_on_keeps_its_folder_and_its_config_begins_another(tmp_path):
    folder = new_folder(MAIN, str(tmp_path))
    RunLog(MAIN, folder, CONFIGS, 5, 1, ids=IDS)
    resumed = (CONFIGS[0], replace(CONFIGS[1], resume_from_checkpoint="latest"))
    RunLog(MAIN, new_folder(MAIN, str(tmp_path), resume=True), resumed, 5, 1, first_step=2, ids=IDS)
    assert parse_configs(inputs.Prompt(), config.Run(), argv=["--config", f"{folder}/config.json"]) == CONFIGS


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (str(tmp_path / "file/out"), "/proc"):  # which cannot be made, and which takes no file
        with pytest.raises(InputError, match=f"--output_dir {path}: cannot be written to: "):
            new_folder(MAIN, path)


def test_a_run_is_known_by_what_it_reads_not_by_its_names(world, tmp_path):
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(3, 2)
    splits = [load_examples(path) for path in (world.train, world.eval, world.test)]
    rows = [EncodedExample([[1, 2]], [3]), EncodedExample([[4]], [5])]
    configs = (config.Optimization(seed=3), config.Run(output_dir="a", save_steps=7), inputs.Data(train_file="a"))
    base = (accelerator, model, configs, splits, rows, Retrieval([], 0.0, "R"))
    identity = run_fingerprint(*base)
    assert identity == identity | {
        "processes": 1,
        "distribution": "NO",
        "mixed precision": "no",
        "parameters": 8,
        "retriever": "R",
        "--seed": 3,
    }
    moved = (config.Optimization(seed=3), config.Run(output_dir="b", save_steps=8), inputs.Data(train_file="b"))
    shutil.copy(world.train, tmp_path / "train.jsonl")
    same = [load_examples(str(tmp_path / "train.jsonl")), *splits[1:]]
    assert run_fingerprint(accelerator, model, moved, same, rows, base[-1]) == identity

    changed = [replace(splits[0][0], question="Why?"), *splits[0][1:]]
    others = {
        "--seed": (*base[:2], (config.Optimization(seed=4), *configs[1:]), *base[3:]),
        "parameters": (accelerator, torch.nn.Linear(3, 3), *base[2:]),
        "--train_file": (*base[:3], [changed, *splits[1:]], *base[4:]),
        "--test_file": (*base[:3], [*splits[:2], splits[2][1:]], *base[4:]),
        "tokens of the first rows": (*base[:4], [rows[0], EncodedExample([[4]], [6])], base[5]),
        "retriever": (*base[:5], None),
    }
    for name, other in others.items():
        found = run_fingerprint(*other)
        assert {key for key in identity if found[key] != identity[key]} == {name}


def test_other_processes_make_no_folder_and_refuse_none(tmp_path):
    assert new_folder(OTHER, str(tmp_path / "new")) == tmp_path / "new"
    assert not (tmp_path / "new").exists()
    RunLog(MAIN, new_folder(MAIN, str(tmp_path / "new")), CONFIGS, 5, 1, ids=IDS)
    new_folder(OTHER, str(tmp_path / "new"))


# The log


def test_the_first_row_is_shown_with_its_targets_in_brackets(log):
    encode = tokenizer().encode
    log_rows(
        [
            EncodedExample([[BOS, *encode("Who?")]], [*encode("I."), EOS], cut=2),
            EncodedExample([[BOS] * 9], [EOS]),
            EncodedExample([[5]], [6], 1),
        ],
        tokenizer(),
    )
    counts, shown = log.messages
    assert counts == (
        "rows: 3, tokens in a row 7 (most 10), 25.0 % of them targets; passages cut in 2 rows, 13.04 % of tokens"
    )  # 5 of 20, and 3 of 23
    assert shown == "the first row, its target tokens in brackets:\n<s>Who?⟦I⟧⟦.⟧⟦</s>⟧\n"
    log_rows([EncodedExample([encode("a" * 700 + "b" * 700)], [EOS])], tokenizer())
    assert f"\n{'a' * 600} […] {'b' * 600}⟦</s>⟧\n" in log.messages[-1]


def test_what_repeats_goes_into_one_file_and_what_does_not_into_another(tmp_path, monkeypatch):
    monkeypatch.setattr("rqa.training.run_log.peak_memory_gib", lambda device: 1.25)
    run_log = RunLog(MAIN, tmp_path, CONFIGS, num_steps=5, logging_steps=2, ids=IDS)
    for step in STEPS:
        run_log.step(step)
    elsewhere = {"seconds", "batch_seconds", "suspects"}
    expected = [{k: v for k, v in asdict(step).items() if k not in elsewhere} for step in STEPS]
    expected[2]["suspects"] = ["one", "two"]  # only where an update was skipped
    assert rows(tmp_path / "metrics.jsonl") == expected
    assert rows(tmp_path / "timings.jsonl") == [
        {"number": step.number, "seconds": 0.5, "batch_seconds": 0.1, "memory_gib": 1.25} for step in STEPS
    ]


def test_what_is_not_finite_is_written_as_null(tmp_path):
    RunLog(MAIN, tmp_path, CONFIGS, 5, 9, ids=IDS).step(
        replace(STEPS[0], loss=float("nan"), gradient_norm=float("inf"), skipped=True)
    )
    [row] = rows(tmp_path / "metrics.jsonl")
    assert (row["loss"], row["gradient_norm"], row["skipped"]) == (None, None, True)


def test_lines_tell_of_the_updates_since_the_last(tmp_path, log, monkeypatch):
    monkeypatch.setattr("rqa.training.run_log.peak_memory_gib", lambda device: 1.25)
    run_log = RunLog(MAIN, tmp_path, CONFIGS, num_steps=5, logging_steps=2, ids=IDS)
    for step in STEPS:
        run_log.step(replace(step, seconds=60.0))
    same = "gradient norm 1.500  rate 1.00e-03  0.13 examples/s  2 tokens/s  1.2 GiB"
    assert log.messages == [
        f"update 2/5  loss {(4.0 * 10 + 2.0 * 20) / 30:.4f}  {same}  3.0 min left",
        "update 3: skipped, its gradient is not finite; examples: one, two",
        f"update 4/5  loss {(4 / 3 * 30 + 1.0 * 40) / 70:.4f}  {same}  1.0 min left",
        f"update 5/5  loss 0.8000  {same}  0.0 min left",
    ]


def test_an_evaluation_is_recorded_told_and_written(tmp_path, log):
    scores = Scores({"rougeL": 12.3456, "loss": 1.0, "hit@3": 50.0, "recall@1": 25.0}, [{"id": "a"}], {"examples": 1})
    RunLog(MAIN, tmp_path, CONFIGS, 5, 2, ids=IDS).evaluation("eval-000002", scores)
    scores.write(tmp_path / "expected")
    assert rows(tmp_path / "metrics.jsonl") == [{"evaluation": "eval-000002", **scores.metrics}]
    for name in ("score.json", "predictions.jsonl"):
        assert (tmp_path / "eval-000002" / name).read_text() == (tmp_path / "expected" / name).read_text()
    assert (
        log.messages
        == [f"eval-000002: {format_scores(scores.metrics)}"]
        == ["eval-000002: loss 1  recall@1 25  rougeL 12.3"]
    )


def test_other_processes_write_and_say_nothing(tmp_path, log):
    run_log = RunLog(OTHER, tmp_path, CONFIGS, 5, 1, ids=IDS)
    run_log.step(STEPS[0])
    run_log.evaluation("test", Scores({"loss": 1.0}, []))
    assert not files(tmp_path)
    assert not log.messages
