"""results: records are read as they were written; a file that does not match its record is refused by field."""

import json
import os
import re
from dataclasses import replace
from math import nan

import pytest
from tiny_evaluations import STEP, change, change_score, evaluation, write_run

from rqa.errors import InputError
from rqa.evaluation.comparison import read_evaluation, read_results
from rqa.evaluation.results import (
    PredictionRecord,
    ScoreRecord,
    TimingRecord,
    VerdictRecord,
    read_predictions,
    read_record,
    read_run,
    to_json,
)

# Fields that files of format 1 had, or that a file may lack
MINIMAL = {"format": 2, "id": "1", "question": "Who?", "passages": []}


@pytest.fixture(scope="module")
def scores():
    return evaluation(0)


@pytest.fixture
def folder(scores, tmp_path):
    scores.write(tmp_path / "before")
    return tmp_path / "before"


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Round trips


def test_records_are_read_as_they_were_written(folder, scores):
    assert [*read_predictions(folder / "predictions.jsonl").values()] == scores.predictions
    assert read_record(folder / "score.json", ScoreRecord) == scores.score


def test_files_begin_with_the_format(folder):
    first = json.loads((folder / "predictions.jsonl").open().readline())
    assert [*first.items()][:2] == [("format", 2), ("id", "test:1")]
    assert next(iter(json.loads((folder / "score.json").read_text()).items())) == ("format", 2)


def test_numbers_that_are_not_finite_are_null(tmp_path, scores):
    prediction = replace(scores.predictions[0], reference_nll=nan)
    broken = replace(scores, score=replace(scores.score, metrics={"loss": nan, "f1": 1.0}), predictions=[prediction])
    broken.write(tmp_path)
    score = json.loads((tmp_path / "score.json").read_text(), parse_constant=pytest.fail)
    row = json.loads((tmp_path / "predictions.jsonl").read_text(), parse_constant=pytest.fail)
    assert (score["metrics"]["loss"], row["reference_nll"]) == (None, None)
    assert str(read_record(tmp_path / "score.json", ScoreRecord).metrics["loss"]) == "nan"
    assert str(read_predictions(tmp_path / "predictions.jsonl")["test:1"].reference_nll) == "nan"


def test_fields_that_equal_their_default_are_left_out():
    record = PredictionRecord(id="1", question="Who?", passages=())
    assert {"format": 2, **to_json(record)} == MINIMAL
    judged = replace(record, verdict=VerdictRecord(status="failed", correct=None, explanation=""), judge_scores={})
    verdict = {"status": "failed", "correct": None, "explanation": ""}
    assert {"format": 2, **to_json(judged)} == MINIMAL | {"verdict": verdict, "judge_scores": {}}


def test_a_kill_leaves_the_old_file_or_the_new_one(folder, scores, monkeypatch):
    before = (folder / "predictions.jsonl").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("full disk"))
    with pytest.raises(pytest.fail.Exception):
        replace(scores, predictions=scores.predictions[:3]).write(folder)
    assert (folder / "predictions.jsonl").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.jsonl", "score.json"]


# Refusals


def test_another_format_is_refused(folder):
    path = folder / "predictions.jsonl"
    path.write_text(path.read_text().replace('"format": 2, ', ""))
    with pytest.raises(InputError, match=r's\.jsonl:1: field "format": expected 2, got none\. .* Evaluate again'):
        read_predictions(path)
    change_score(folder, format=3)
    with pytest.raises(InputError, match=r'score\.json: field "format": expected 2, got 3\. .* Evaluate again'):
        read_record(folder / "score.json", ScoreRecord)


def test_broken_files_are_refused(folder):
    path = folder / "predictions.jsonl"
    for text, place in [(path.read_text()[:-30], "12: not JSON at column"), ("", "1: not JSON"), ("[]", "1: expected")]:
        path.write_text(text)
        with pytest.raises(InputError, match=rf"before/predictions\.jsonl:{place}.*[Ee]valuate again"):
            read_predictions(path)
    (folder / "score.json").write_text('{\n"metrics": NaN}')
    with pytest.raises(InputError, match=r"before/score\.json: NaN is not JSON.*[Ee]valuate again"):
        read_record(folder / "score.json", ScoreRecord)


PASSAGE = {"id": "p", "title": "", "text": "", "sources": [], "score": None, "is_gold": True}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", None, '"id": expected text, got null'),
        ("id", "1", "\"id\": expected unique ids, got '1' twice"),
        ("question", 5, '"question": expected text, got number'),
        ("answer", ["a"], '"answer": expected text, got list'),
        ("answer_scores", {"f1": 1.0}, '"references": expected at least one beside "answer_scores"'),
        ("references", "a", '"references": expected list, got text'),
        ("references", ["a", None], '"references[1]": expected text, got null'),
        ("passages", [{"id": "p"}], '"passages[0].title": expected text, got nothing'),
        ("passages", [PASSAGE | {"is_gold": 1}], '"passages[0].is_gold": expected true/false, got number'),
        ("passages", [PASSAGE, PASSAGE | {"score": "1"}], '"passages[1].score": expected number, got text'),
        ("passages", [PASSAGE | {"gold": True}], '"passages[0].gold": expected no field of this name'),
        ("retrieval_scores", {"hit@1": "1"}, '"retrieval_scores.hit@1": expected number, got text'),
        ("retrieval_scores", {"hit@1": None}, '"retrieval_scores.hit@1": expected number, got null'),
        ("answer_scores", [], '"answer_scores": expected object, got list'),
        ("attribution", [{"id": "p", "is_gold": True, "x": "1"}], '"attribution[0].x": expected number, got text'),
        ("verdict", {"correct": True}, '"verdict.status": expected text, got nothing'),
        ("num_passages_read", True, '"num_passages_read": expected number, got true/false'),
        ("chat_history", [{"role": "user"}], '"chat_history[0].text": expected text, got nothing'),
        ("read", 1, '"read": expected no field of this name'),
    ],
)
def test_a_prediction_is_refused_by_line_and_field(tmp_path, field, value, message):
    path = write_rows(tmp_path / "predictions.jsonl", MINIMAL, MINIMAL | {"id": "2", field: value})
    with pytest.raises(InputError, match=re.escape(f"predictions.jsonl:2: field {message}")):
        read_predictions(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metrics", None, '"metrics": expected object, got null'),
        ("metrics", {"f1": "5"}, '"metrics.f1": expected number, got text'),
        ("intervals", {"f1": [1, "2"]}, '"intervals.f1[1]": expected number, got text'),
        ("intervals", {"f1": [1]}, '"intervals.f1": expected 2 values, got 1'),
        ("generation", {}, '"generation.seconds_per_answer": expected number, got nothing'),
        ("runtime", {"warm_up": "", "stages": {"embed": 1}}, '"runtime.stages.embed": expected object, got number'),
    ],
)
def test_a_score_is_refused_by_its_field(folder, field, value, message):
    change_score(folder, **{field: value})
    with pytest.raises(InputError, match=re.escape(f"before/score.json: field {message}")):
        read_record(folder / "score.json", ScoreRecord)


# Logs of a training run


def test_logs_are_read_as_they_were_written(tmp_path, scores):
    skipped = replace(STEP, number=2, loss=nan, gradient_norm=nan, skipped=True, non_finite_examples=(1,))
    write_run(tmp_path, (STEP, skipped), [("eval-000002", scores), ("test", scores)])
    run = read_run(tmp_path)
    assert [(row.step, row.loss, row.gradient_norm, row.non_finite_examples) for row in run.steps[:1]] == [
        (1, 2.5, 0.5, None)
    ]
    assert [(row.step, str(row.loss), row.skipped, row.non_finite_examples) for row in run.steps[1:]] == [
        (2, "nan", True, ("train:2",))
    ]
    assert [(row.evaluation, row.metrics) for row in run.evaluations] == [
        ("eval-000002", scores.metrics),
        ("test", scores.metrics),
    ]
    assert run.timings == [TimingRecord(i, 0.25, 0.05, run.timings[0].memory_gib) for i in (1, 2)]


def test_an_example_may_have_any_id(tmp_path):
    row = to_json(read_run(write_run(tmp_path)).steps[0])
    write_rows(tmp_path / "metrics.jsonl", row | {"non_finite_examples": ["evaluation"]})
    assert read_run(tmp_path).steps[0].non_finite_examples == ("evaluation",)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("metrics.jsonl", '{"step": 2', "not JSON .*--resume_from_checkpoint latest"),
        ("metrics.jsonl", '{"step": 2, "loss": null}', 'field "gradient_norm": expected number, got nothing'),
        ("metrics.jsonl", '{"evaluation": "test", "f1": "high"}', 'field "f1": expected number, got text'),
        ("timings.jsonl", '{"step": 2, "seconds": 1}', 'field "batch_seconds": expected number, got nothing'),
    ],
)
def test_a_log_is_refused_by_its_line(tmp_path, name, line, message):
    write_run(tmp_path)
    with (tmp_path / name).open("a") as file:
        file.write(line)
    with pytest.raises(InputError, match=f"{name}:2: (?:{message})"):
        read_results(tmp_path)


def test_a_row_that_was_edited_by_hand_is_read(folder):
    change(folder, lambda i, row: {name: row[name] for name in MINIMAL} if i else row)
    assert read_evaluation(folder).predictions["test:2"].answer is None
