"""What is read from the folders of results is what was written there; what does not belong together is refused."""

import json
import re
from dataclasses import replace
from math import nan

import pytest
from accelerate import Accelerator
from test_statistics import evaluation

from rqa.cli import data_args as inputs
from rqa.cli import training_args as config
from rqa.errors import InputError
from rqa.evaluation.evaluate import Scores
from rqa.evaluation.results import check_same_questions, differences, paired_rows, read_evaluation, read_results
from rqa.evaluation.significance import compare, score_intervals
from rqa.training.loop import Step
from rqa.training.run_log import RunLog

STEP = Step(1, 2.5, 0.5, 1e-3, 20, 300, 4, False, (), 0.25, 0.05)


def change(folder, to, keep_scores=False):
    """Rewrite the rows of an evaluation by `to`, which is given each with its number and returns None to drop it."""
    path = folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    changed = [to(i, row) for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed if row is not None), encoding="utf-8")
    if not keep_scores:  # which are checked against the rows
        change_score(folder, metrics={}, intervals=None)


def change_score(folder, **values):
    score = json.loads((folder / "score.json").read_text())
    (folder / "score.json").write_text(json.dumps({**score, **values}))


def write_run(folder, steps=(STEP,), evaluations=()):
    """Write the files of a training run by what writes them."""
    configs = (inputs.Prompt(), config.Run(output_dir="out"))
    run_log = RunLog(Accelerator(cpu=True), folder, configs, len(steps), 1, ids=["train:1", "train:2"])
    for step in steps:
        run_log.step(step)
    for name, scores in evaluations:
        run_log.evaluation(name, scores)
    return folder


@pytest.fixture(scope="module")
def scores():
    return [evaluation(seed) for seed in range(2)]


@pytest.fixture
def pair(scores, tmp_path):
    """The folders of two evaluations."""
    folders = tmp_path / "before", tmp_path / "after"
    for folder, score in zip(folders, scores, strict=True):
        score.write(folder)
    return folders


def read(folders):
    return [read_evaluation(folder) for folder in folders]


# An evaluation


def test_an_evaluation_is_read_as_it_was_measured(pair, scores):
    found = read_evaluation(pair[0])
    seconds = scores[0].about["generation"]["seconds_per_answer"]
    assert found.scores == scores[0].metrics | {"seconds": seconds}
    assert list(found.predictions) == [row["id"] for row in scores[0].predictions]
    assert [*found.predictions.values()] == json.loads(json.dumps(scores[0].predictions))
    assert found.intervals == score_intervals(scores[0].predictions)
    assert found.about == json.loads(json.dumps({k: v for k, v in scores[0].about.items() if k != "intervals"}))


def test_intervals_that_an_older_evaluation_lacks_are_those_that_it_would_have(pair):
    expected = read_evaluation(pair[0]).intervals
    change_score(pair[0], intervals=None)
    assert read_evaluation(pair[0]).intervals == expected


def test_intervals_are_those_of_the_file(pair):
    change_score(pair[0], intervals={"f1": [1, 2.5]})
    assert read_evaluation(pair[0]).intervals == {"f1": (1, 2.5)}


def test_a_score_that_was_not_finite_is_none(pair, scores):
    replace(scores[0], metrics=scores[0].metrics | {"loss": nan}).write(pair[0])
    assert read_evaluation(pair[0]).scores.keys() == scores[0].metrics.keys() - {"loss"} | {"seconds"}


def test_a_folder_without_its_files_is_refused(pair):
    with pytest.raises(InputError, match=r"absent: expected the folder of an evaluation, found no score\.json in it"):
        read_evaluation(pair[0] / "absent")
    (pair[0] / "predictions.jsonl").unlink()
    with pytest.raises(InputError, match=r"before: expected .* found no predictions\.jsonl in it"):
        read_evaluation(pair[0])


def test_broken_files_are_refused(pair):
    path = pair[0] / "predictions.jsonl"
    for text, place in [(path.read_text()[:-30], "12: not JSON at column"), ("", "1: not JSON"), ("[]", "1: expected")]:
        path.write_text(text)
        with pytest.raises(InputError, match=rf"before/predictions\.jsonl:{place}.*; evaluate again"):
            read_evaluation(pair[0])
    (pair[0] / "score.json").write_text('{\n"metrics": NaN}')
    with pytest.raises(InputError, match=r"before/score\.json: NaN is not JSON; evaluate again"):
        read_evaluation(pair[0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", None, 'field "id": expected text, found nothing'),
        ("id", "test:2", "expected an id that no line before has, found 'test:2'"),
        ("question", 5, 'field "question": expected text, found number'),
        ("answer", ["a"], 'field "answer": expected text, found list'),
        ("references", "a", 'field "references": expected list, found text'),
        ("references", ["a", None], 'field "references[1]": expected text, found nothing'),
        ("passages", [{"id": "p"}], 'field "passages[0].gold": expected true/false, found nothing'),
        ("passages", [{"id": "p", "gold": 1}], 'field "passages[0].gold": expected true/false, found number'),
        ("retrieval_scores", {"hit@1": "1"}, 'field "retrieval_scores.hit@1": expected number, found text'),
        ("answer_scores", [], 'field "answer_scores": expected object, found list'),
        ("attribution", [{"id": "p", "gold": True, "x": "1"}], 'field "attribution[0].x": expected number, found'),
        ("judge", {"correct": True}, 'field "judge.status": expected text, found nothing'),
        ("read", True, 'field "read": expected number, found true/false'),
        ("chat_history", [{"role": "user"}], 'field "chat_history[0].text": expected text, found nothing'),
    ],
)
def test_a_row_that_is_none_is_refused_by_line_and_field(pair, field, value, message):
    change(pair[0], lambda i, row: row | {field: value} if i == 4 else row)
    with pytest.raises(InputError, match=re.escape(f"before/predictions.jsonl:5: {message}")):
        read_evaluation(pair[0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metrics", None, '"metrics": expected object, found nothing'),
        ("metrics", {"f1": "5"}, '"metrics.f1": expected number, found text'),
        ("intervals", {"f1": [1, "2"]}, '"intervals.f1[1]": expected number, found text'),
        ("intervals", {"f1": [1]}, '"intervals.f1": expected 2 ends, found 1'),
        ("generation", {}, '"generation.seconds_per_answer": expected number, found nothing'),
        ("runtime", {"stages": {"embed": 1}}, '"runtime.stages.embed": expected object, found number'),
    ],
)
def test_a_score_that_is_none_is_refused_by_its_field(pair, field, value, message):
    change_score(pair[0], **{field: value})
    with pytest.raises(InputError, match=re.escape(f"before/score.json: field {message}")):
        read_evaluation(pair[0])


def test_scores_of_other_rows_are_refused(pair):
    change(pair[1], lambda i, row: row if i else None, keep_scores=True)
    with pytest.raises(
        InputError, match=r"after: expected score.json and .* found \S+ \d+\.\d{4} in the one and \d+\.\d{4} by"
    ):
        read_evaluation(pair[1])


# Two of them


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (lambda i, row: row if i > 1 else None, '2 ids that only one of them has, the first "test:1"'),
        (lambda i, row: row | {"id": f"{row['id']}b" * (i > 8) or row["id"]}, '6 ids .*, the first "test:10"'),
        (lambda i, row: row | {"question": row["question"] + "!" * (i > 4)}, '7 ids with unlike "question".* "test:6"'),
        (lambda i, row: row | {"references": row["references"] * (1 + (i == 7))}, '1 ids .* "references".*"test:8"'),
        (lambda i, row: {k: row[k] for k in row if k != "retrieval_scores" or i != 1}, '1 questions, .*"test:2"'),
    ],
)  # fmt: skip
def test_other_questions_are_refused(pair, to, message):
    change(pair[1], to)
    with pytest.raises(InputError, match=f"before and .*after.*{message}"):
        differences(*read(pair))


def test_rows_are_paired_by_id_in_the_order_of_the_first(pair, scores):
    lines = (pair[1] / "predictions.jsonl").read_text().splitlines(keepends=True)
    (pair[1] / "predictions.jsonl").write_text("".join(reversed(lines)))
    found = read(pair)
    check_same_questions(*found)
    assert [(a["id"], b["id"]) for a, b in paired_rows(*found)] == [(row["id"],) * 2 for row in scores[0].predictions]
    assert differences(*found) == compare(*(score.predictions for score in scores))


def scored(name, missing):
    return lambda i, row: row | {f"{name.partition('_')[0]}_scores": {} if i in missing else {name: 10.0 * i}}


def test_what_is_owed_to_gold_is_compared_where_the_same_questions_read_some(pair, scores):
    for folder in pair:
        change(folder, scored("attribution", {3}))
    assert differences(*read(pair))["attribution"].difference == 0
    change(pair[1], scored("attribution", {4}))
    assert differences(*read(pair)).keys() == compare(*(score.predictions for score in scores)).keys()


def test_verdicts_are_compared_where_both_have_one(pair, scores):
    for folder, missing in zip(pair, ({3}, {4}), strict=True):
        change(folder, scored("judge_accuracy", missing))
    assert differences(*read(pair))["judge_accuracy"].questions == len(scores[0].predictions) - 2


# A training run


def test_a_run_is_read_as_it_was_written(tmp_path, scores):
    skipped = replace(STEP, number=2, loss=nan, gradient_norm=nan, skipped=True, suspects=(1,))
    run = read_results(write_run(tmp_path, (STEP, skipped), [("eval-000002", scores[0]), ("test", scores[1])]))
    assert [(row["number"], row["loss"], row["gradient_norm"]) for row in run.run.updates] == [
        (1, 2.5, 0.5),
        (2, None, None),
    ]
    assert [(row["number"], row["seconds"]) for row in run.run.timings] == [(1, 0.25), (2, 0.25)]
    assert run.run.evaluations == [
        {"evaluation": "eval-000002", **scores[0].metrics},
        {"evaluation": "test", **scores[1].metrics},
    ]
    assert run.config["output_dir"] == "out"


def test_the_evaluation_of_a_run_is_its_test_or_else_the_last_on_the_way(tmp_path, scores):
    names = ("eval-000002", "eval-999998", "eval-1000002")
    folder = write_run(tmp_path, (STEP,), [(name, scores[0]) for name in names])
    assert read_results(folder).evaluation.folder.name == "eval-1000002"
    scores[1].write(folder / "test")
    found = read_results(folder)
    assert (found.evaluation.folder.name, found.evaluation.scores["f1"]) == ("test", scores[1].metrics["f1"])


def test_a_run_without_an_evaluation_is_one(tmp_path):
    found = read_results(write_run(tmp_path))
    assert (found.evaluation, found.contexts, len(found.run.updates)) == (None, None, 1)
    (tmp_path / "timings.jsonl").unlink()
    assert read_results(tmp_path).run.timings == []


def test_an_evaluation_in_a_run_came_of_the_flags_of_the_run(tmp_path, scores, pair):
    write_run(tmp_path, (STEP,), [("test", scores[0])])
    found = read_results(tmp_path / "test")
    assert (found.run, found.config["output_dir"]) == (None, "out")
    (tmp_path / "metrics.jsonl").unlink()
    assert read_results(tmp_path / "test").config == {}
    (pair[0] / "config.json").write_text('{"batch_size": 8}')
    assert read_results(pair[0]).config == {"batch_size": 8}


def test_a_folder_of_neither_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected the folder of an evaluation, with .* metrics.jsonl; found neither"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("metrics.jsonl", '{"number": 2', "not JSON .*; go on with the run: --resume_from_checkpoint latest"),
        ("metrics.jsonl", '{"number": 2}', 'field "learning_rate": expected number, found nothing'),
        ("metrics.jsonl", '{"evaluation": "test", "f1": "high"}', 'field "f1": expected number, found text'),
        ("timings.jsonl", '{"number": 2, "seconds": 1}', 'field "memory_gib": expected number, found nothing'),
    ],
)
def test_a_log_that_is_none_is_refused_by_its_line(tmp_path, name, line, message):
    write_run(tmp_path)
    with (tmp_path / name).open("a") as file:
        file.write(line)
    with pytest.raises(InputError, match=f"{name}:2: (?:{message})"):
        read_results(tmp_path)


def test_scores_can_be_empty(tmp_path):
    Scores({}, [{"id": "1", "question": "Who?"}]).write(tmp_path)
    found = read_evaluation(tmp_path)
    assert (found.scores, found.intervals, found.predictions["1"]["question"]) == ({}, {}, "Who?")
