"""early_stopping: the best evaluation, and the end of patience."""

import pytest

from rqa.errors import InputError
from rqa.evaluation.metrics import HIGHER_IS_BETTER, answer_scores
from rqa.training.early_stopping import EarlyStopping

NAN = float("nan")


def after(metric, values, patience=None):
    early_stopping = EarlyStopping(metric, patience)
    for step, value in enumerate(values, 1):
        early_stopping.add(10 * step, {"other": 0.0, metric: value})
    return early_stopping


def test_the_loss_and_every_score_of_an_answer_can_select_a_model():
    assert set(HIGHER_IS_BETTER) == {"loss", "bleu", *answer_scores("a", ["a"])}
    assert [metric for metric, higher in HIGHER_IS_BETTER.items() if not higher] == ["loss"]


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
def test_the_best_is_the_first_of_equal_ones(values, of_loss, of_f1):
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
def test_patience_ends_after_evaluations_without_improvement(values, patience, should_stop):
    assert after("loss", values, patience).should_stop == should_stop


def test_an_evaluation_without_the_metric_is_an_error():
    with pytest.raises(InputError, match=r"--metric_for_best_model f1: .* got answer_words, other"):
        EarlyStopping("f1").add(10, {"answer_words": 1.0, "other": 0.0})


def test_without_a_metric_there_is_no_best():
    early_stopping = EarlyStopping()
    early_stopping.add(10, {"loss": 1.0})
    assert (early_stopping.best, early_stopping.should_stop, early_stopping.values) == (None, False, {})
