"""early_stopping: the best evaluation, and the end of patience."""

import pytest

from rqa.evaluation.metrics import answer_scores
from rqa.training.early_stopping import HIGHER_IS_BETTER, EarlyStopping

NAN = float("nan")


def after(metric, values, patience=None):
    selection = EarlyStopping(metric, patience)
    for step, value in enumerate(values, 1):
        selection.add(10 * step, {"other": 0.0, metric: value})
    return selection


def test_every_score_of_an_answer_has_a_direction():
    assert set(HIGHER_IS_BETTER) == {"loss", "bleu", *answer_scores("a", ["a"])}


@pytest.mark.parametrize(
    ("values", "of_loss", "of_f1"),
    [
        ([], None, None),
        ([2.0], 10, 10),
        ([2.0, 1.0, 3.0], 20, 30),
        ([2.0, 2.0], 10, 10),
        ([NAN, 2.0, NAN], 20, 20),
        ([NAN], None, None),
        ([-1.0, 0.0], 10, 20),
    ],
)
def test_the_best_is_the_first_of_the_best(values, of_loss, of_f1):
    assert (after("loss", values).best, after("f1", values).best) == (of_loss, of_f1)


@pytest.mark.parametrize(
    ("values", "patience", "should_stop"),
    [
        ([], 1, False),
        ([3.0], 1, False),
        ([3.0, 3.0], 1, True),
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.5, 2.1], 2, True),
        ([3.0, 2.0, 2.5, 1.9], 2, False),
        ([NAN, NAN], 2, True),
        ([3.0, 4.0, 5.0], None, False),
    ],
)
def test_patience_ends_where_as_many_evaluations_are_no_better(values, patience, should_stop):
    assert after("loss", values, patience).should_stop == should_stop


def test_without_a_metric_nothing_is_best():
    selection = EarlyStopping()
    selection.add(10, {"loss": 1.0})
    assert (selection.best, selection.should_stop, selection.values) == (None, False, {})
