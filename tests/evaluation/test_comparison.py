"""comparison: folders are read and checked; predictions are paired by id."""

import json
from dataclasses import replace
from math import nan

import pytest
from tiny_evaluations import STEP, change, change_score, evaluation, write_run

from rqa.errors import InputError
from rqa.evaluation.comparison import (
    check_same_questions,
    differences,
    differing_questions,
    paired_predictions,
    read_evaluation,
    read_results,
)
from rqa.evaluation.significance import compare, score_intervals


@pytest.fixture(scope="module")
def scores():
    return [evaluation(seed) for seed in range(2)]


@pytest.fixture
def pair(scores, tmp_path):
    """Return the folders of two evaluations."""
    folders = tmp_path / "before", tmp_path / "after"
    for folder, score in zip(folders, scores, strict=True):
        score.write(folder)
    return folders


def read(folders):
    return [read_evaluation(folder) for folder in folders]


# One evaluation


def test_an_evaluation_is_read_as_it_was_measured(pair, scores):
    result = read_evaluation(pair[0])
    seconds = scores[0].score.generation["seconds_per_answer"]
    assert result.scores == scores[0].metrics | {"seconds": seconds}
    assert [*result.predictions.items()] == [(row.id, row) for row in scores[0].predictions]
    assert result.intervals == score_intervals(scores[0].predictions)
    assert result.score == scores[0].score


def test_intervals_are_those_of_the_file(pair):
    change_score(pair[0], intervals={"f1": [1, 2.5]})
    assert read_evaluation(pair[0]).intervals == {"f1": (1, 2.5)}


def test_a_metric_that_is_not_finite_is_left_out(pair, scores):
    replace(scores[0], score=replace(scores[0].score, metrics=scores[0].metrics | {"loss": nan})).write(pair[0])
    assert read_evaluation(pair[0]).scores.keys() == scores[0].metrics.keys() - {"loss"} | {"seconds"}


def test_a_folder_without_its_files_is_refused(pair):
    with pytest.raises(InputError, match=r"absent: expected the folder of an evaluation, with score\.json"):
        read_evaluation(pair[0] / "absent")
    (pair[0] / "predictions.jsonl").unlink()
    with pytest.raises(InputError, match=r"before: expected .* with predictions\.jsonl"):
        read_evaluation(pair[0])


def test_scores_of_other_predictions_are_refused(pair):
    change(pair[1], lambda i, row: row if i else None, keep_scores=True)
    with pytest.raises(InputError, match=r"after: .* \S+ \d+\.\d{4} in score\.json and \d+\.\d{4} by predictions"):
        read_evaluation(pair[1])


# Two evaluations


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (lambda i, row: row if i > 1 else None, '2 ids that only one of them has, the first "test:1"'),
        (lambda i, row: row | {"id": f"{row['id']}b" * (i > 8) or row["id"]}, '6 ids .*, the first "test:10"'),
        (lambda i, row: row | {"question": row["question"] + "!" * (i > 4)}, '7 ids with .*"question".* "test:6"'),
        (lambda i, row: row | {"references": row["references"] * (1 + (i == 7))}, '1 ids .* "references".*"test:8"'),
        (lambda i, row: {k: row[k] for k in row if k != "retrieval_scores" or i != 1}, 'hit@1.* 1 questions.*"test:2"'),
    ],
)  # fmt: skip
def test_other_questions_are_refused(pair, to, message):
    change(pair[1], to)
    with pytest.raises(InputError, match=f"before and .*after.*{message}"):
        differences(*read(pair))


def test_predictions_are_paired_by_id_in_the_order_of_the_first(pair, scores):
    lines = (pair[1] / "predictions.jsonl").read_text().splitlines(keepends=True)
    (pair[1] / "predictions.jsonl").write_text("".join(reversed(lines)))
    evaluations = read(pair)
    check_same_questions(*evaluations)
    assert [(a.id, b.id) for a, b in paired_predictions(*evaluations)] == [
        (row.id,) * 2 for row in scores[0].predictions
    ]
    assert differences(*evaluations) == compare(*(score.predictions for score in scores))


def test_questions_are_sorted_by_difference(pair):
    for folder, f1 in zip(pair, (lambda i: 50.0, lambda i: 50.0 + 2 * (i - 6) * (i < 10)), strict=True):
        change(folder, lambda i, row, f1=f1: row | {"answer_scores": {"f1": f1(i)}})
    metric, differing = differing_questions(*read(pair))
    assert (metric, [a.id for a, _ in differing]) == ("f1", [f"test:{i + 1}" for i in (0, 1, 2, 3, 9, 4, 8, 5, 7)])
    with pytest.raises(InputError, match=r"--metric bleu: expected .*f1"):
        differing_questions(*read(pair), metric="bleu")


def scored(name, missing):
    return lambda i, row: row | {f"{name.partition('_')[0]}_scores": {} if i in missing else {name: 10.0 * i}}


def test_attribution_is_compared_if_the_same_questions_have_gold(pair, scores):
    for folder in pair:
        change(folder, scored("attribution", {3}))
    assert differences(*read(pair))["attribution"].difference == 0
    change(pair[1], scored("attribution", {4}))
    assert differences(*read(pair)).keys() == compare(*(score.predictions for score in scores)).keys()


def test_verdicts_are_compared_on_questions_with_two(pair, scores):
    for folder, missing in zip(pair, ({3}, {4}), strict=True):
        change(folder, scored("judge_accuracy", missing))
    assert differences(*read(pair))["judge_accuracy"].questions == len(scores[0].predictions) - 2


# Training runs


def test_the_evaluation_of_a_run_is_its_test_or_its_last_validation(tmp_path, scores):
    names = ("eval-000002", "eval-999998", "eval-1000002")
    folder = write_run(tmp_path, (STEP,), [(name, scores[0]) for name in names])
    assert read_results(folder).evaluation.folder.name == "eval-1000002"
    scores[1].write(folder / "test")
    result = read_results(folder)
    assert (result.evaluation.folder.name, result.evaluation.scores["f1"]) == ("test", scores[1].metrics["f1"])


def test_a_run_needs_no_evaluation(tmp_path):
    result = read_results(write_run(tmp_path))
    assert (result.evaluation, result.contexts, len(result.run.steps)) == (None, None, 1)
    (tmp_path / "timings.jsonl").unlink()
    assert read_results(tmp_path).run.timings == []


def test_an_evaluation_in_a_run_has_the_flags_of_the_run(tmp_path, scores, pair):
    write_run(tmp_path, (STEP,), [("test", scores[0])])
    result = read_results(tmp_path / "test")
    assert (result.run, result.config["output_dir"]) == (None, "out")
    (tmp_path / "metrics.jsonl").unlink()
    assert read_results(tmp_path / "test").config == {}
    (pair[0] / "config.json").write_text(json.dumps({"batch_size": 8}))
    assert read_results(pair[0]).config == {"batch_size": 8}


def test_a_folder_of_neither_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected the folder of an evaluation, .* metrics.jsonl, got neither"):
        read_results(tmp_path)
