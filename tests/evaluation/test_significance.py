"""significance: intervals and p-values equal those of all resamples and flips, and have the stated coverage."""

import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_evaluations import evaluation, sentence

from rqa.evaluation import significance
from rqa.evaluation.metrics import bleu_statistics, corpus_bleu
from rqa.evaluation.results import PredictionRecord
from rqa.evaluation.significance import bleu, compare, interval, paired_test, resampled_scores, score_intervals
from rqa.terminal import Progress

TAILS = (0.025, 0.975)

# Data


def corpus(size, seed):
    """Return answers of two systems and one to three references each; some answers are empty or have three words."""
    numbers = random.Random(seed)
    references = [[sentence(numbers, 4) for _ in range(numbers.randint(1, 3))] for _ in range(size)]
    systems = [
        [" ".join(row[0].split()[numbers.randint(0, 3) :]) + " " + sentence(numbers, 0, most) for row in references]
        for most in (2, 5)
    ]
    return *systems, references


def prediction(id, **fields):
    return PredictionRecord(id=str(id), question="?", passages=(), **fields)


# Scores as functions of sums


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_bleu_of_sums_is_that_of_the_resampled_corpus(seed, size):
    """The tokenizer is that of the whole corpus."""
    answers, _, references = corpus(size, seed)
    rows = np.array(bleu_statistics(answers, references, tokenize="13a"))
    drawn = np.random.default_rng(seed).integers(size, size=(5, size))
    expected = [
        corpus_bleu([answers[i] for i in of], [references[i] for i in of], tokenize="13a").score for of in drawn
    ]
    assert bleu(rows[drawn].sum(axis=1)) == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("text", ["", ".", "Rome", "Rome is lit", "Rome is lit now", "Oslo , Lima and Bern"])
@pytest.mark.parametrize("reference", ["Rome", "Rome is lit now", "Rome was so lit that it is now a lit town"])
def test_bleu_of_hardly_anything_is_sacrebleu_s(text, reference):
    [row] = bleu_statistics([text], [[reference]])
    assert bleu(np.array(row)) == pytest.approx(corpus_bleu([text], [[reference]]).score, abs=1e-9)


def test_the_tokenizer_of_bleu_is_chosen_as_for_the_corpus():
    answers, references = ["我喜欢用PyTorch训练模型。", "北京大学"], [["我用PyTorch训练大模型。"], ["北京大学坐落河边"]]
    score = bleu(np.array(bleu_statistics(answers, references)).sum(axis=0))
    assert score == pytest.approx(corpus_bleu(answers, references).score)
    assert score > 1.1 * bleu(np.array(bleu_statistics(answers, references, tokenize="13a")).sum(axis=0))


def test_resampled_scores_are_the_evaluation_s_own():
    """Retrieval scores are only of questions with gold."""
    scores = evaluation(0)
    rows = scores.predictions
    resampled = resampled_scores(rows)
    assert {name: score.value for name, score in resampled.items()} == pytest.approx(scores.metrics)
    assert {len(score.positions) for name, score in resampled.items() if "@" in name} == {9}
    assert {len(score.positions) for name, score in resampled.items() if "@" not in name} == {12}
    assert score_intervals(rows).keys() == resampled.keys()


def test_every_token_has_the_same_weight_in_the_loss():
    tokens = [[0.5, 0.25], [3.0], [1.0, 1.0, 2.0]]
    rows = [prediction(i, reference_nll=sum(each), reference_tokens=len(each)) for i, each in enumerate(tokens)]
    assert resampled_scores(rows)["loss"].value == pytest.approx(sum(map(sum, tokens)) / 6)


# Intervals: all resamples


def every_resample(score, size):
    """Score each of size^size resamples alone; return the quantiles of all of them as a function."""
    scores = np.array([score(drawn) for drawn in itertools.product(range(size), repeat=size)])
    return lambda share: float(np.quantile(scores, share))


def assert_quantiles(ends, quantile, resamples=10_000):
    """The ends of an interval are the tails' quantiles, up to four standard errors of a share of `resamples`."""
    for end, tail in zip(ends, TAILS, strict=True):
        error = 4 * math.sqrt(tail * (1 - tail) / resamples)
        assert quantile(tail - error) <= end + 1e-9
        assert end - 1e-9 <= quantile(tail + error)


def test_the_interval_of_a_ratio_is_that_of_all_resamples():
    rows = [(0.5, 2), (9.0, 4), (1.0, 1), (30.0, 10), (0.1, 3)]
    quantile = every_resample(lambda of: sum(rows[i][0] for i in of) / sum(rows[i][1] for i in of), 5)
    assert_quantiles(interval(rows), quantile)
    quantile = every_resample(lambda of: sum(rows[i][0] for i in of) / 5, 5)
    assert_quantiles(interval([nll for nll, _ in rows]), quantile)


def test_the_interval_of_bleu_is_that_of_sacrebleu_on_all_resamples():
    answers, _, references = corpus(5, seed=1)
    score = lambda of: corpus_bleu([answers[i] for i in of], [references[i] for i in of]).score  # noqa: E731
    assert_quantiles(interval(bleu_statistics(answers, references), bleu), every_resample(score, 5))


@pytest.mark.parametrize(("right", "size"), [(50, 100), (3, 40), (181, 200)])
def test_the_interval_of_a_share_is_the_binomial_s(right, size):
    share = right / size
    chances = [math.comb(size, k) * share**k * (1 - share) ** (size - k) for k in range(size + 1)]
    below = np.cumsum(chances)
    quantile = lambda tail: 100 * int(np.searchsorted(below, tail)) / size  # noqa: E731
    assert_quantiles(interval([100.0] * right + [0.0] * (size - right)), quantile)


def test_levels_and_seeds():
    values = np.random.default_rng(0).normal(size=50)
    assert interval(values) == interval(values, level=0.95, resamples=10_000, seed=0) != interval(values, seed=1)
    width = {level: np.diff(interval(values, level=level))[0] for level in (0.5, 0.9, 0.99)}
    error = values.std() / math.sqrt(50)
    assert width == pytest.approx({0.5: 2 * 0.674 * error, 0.9: 2 * 1.645 * error, 0.99: 2 * 2.576 * error}, rel=0.06)


# p-values: all flips


def mean_difference(a, b, flipped):
    return sum((x - y) if swap else (y - x) for x, y, swap in zip(a, b, flipped, strict=True)) / len(a)


def p_of_all_flips(difference, size):
    """Try each of 2^size flips by itself."""
    observed = abs(difference([False] * size))
    scores = [abs(difference(flipped)) for flipped in itertools.product([False, True], repeat=size)]
    return sum(score >= observed - 1e-9 for score in scores) / len(scores)


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.1, 0.2, 0.3, 100 / 3, 100.0])] * 2), min_size=1, max_size=8))
def test_the_p_value_of_a_mean_is_that_of_all_flips(pairs):
    """Many of these differences are equal but for rounding; questions that are alike are flipped here as well."""
    a, b = zip(*pairs, strict=True)
    assert paired_test(a, b).p_value == pytest.approx(p_of_all_flips(lambda of: mean_difference(a, b, of), len(a)))


@pytest.mark.parametrize("other", ["another answer", "the same words in another order"])
def test_the_p_value_of_bleu_is_that_of_sacrebleu_on_all_exchanges_of_answers(other):
    a, b, references = corpus(7, seed=3)
    if other != "another answer":  # as long, and its words are as many of the reference's: only runs of them differ
        b = [" ".join(answer.split()[::-1]) for answer in a]
    rows = [bleu_statistics(answers, references) for answers in (a, b)]

    def difference(flipped):
        changed = [[y if swap else x for x, y, swap in zip(*both, flipped, strict=True)] for both in ((a, b), (b, a))]
        first, second = (corpus_bleu(answers, references).score for answers in changed)
        return second - first

    result = paired_test(*rows, bleu)
    assert result.difference == pytest.approx(difference([False] * 7))
    assert result.p_value == pytest.approx(p_of_all_flips(difference, 7))
    assert 0 < result.p_value < 1


@pytest.mark.parametrize(("better", "worse"), [(5, 0), (6, 1), (4, 4), (9, 3)])
def test_the_p_value_of_right_and_wrong_is_the_binomial_s(better, worse):
    """McNemar's exact test; the 200 questions that both answer alike change nothing, and cost no exactness."""
    a = [0.0] * better + [100.0] * worse + [100.0] * 200
    b = [100.0] * better + [0.0] * worse + [100.0] * 200
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(max(better, worse), n + 1)) / 2**n
    assert paired_test(a, b).p_value == pytest.approx(min(1, 2 * tail))


def test_random_flips_approximate_all_flips_and_p_is_never_0():
    numbers = np.random.default_rng(5)
    a, b = numbers.normal(size=(2, 12))
    exact, drawn = (paired_test(a, b, resamples=resamples).p_value for resamples in (4096, 4095))
    assert exact * 4096 == pytest.approx(round(exact * 4096))
    assert drawn * 4096 == pytest.approx(round(drawn * 4096))  # (1 + hits) / (1 + 4095)
    assert 0 < abs(drawn - exact) < 4 * math.sqrt(exact * (1 - exact) / 4095)
    assert paired_test(np.zeros(40), np.ones(40), resamples=999).p_value == 1 / 1000
    assert paired_test(np.ones(40), np.ones(40)).p_value == 1


def test_random_flips_are_fair_and_independent():
    """Of the means of 70 and of the correlations of 70 * 69 / 2 none is five standard errors off."""
    flips = np.vstack(list(significance._random_flips(70, 4000)))
    assert flips.shape == (4000, 70)
    assert abs(flips.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(4000)
    assert abs(np.corrcoef(flips.T) - np.eye(70)).max() < 5 / math.sqrt(4000)


# Pairs


def test_the_difference_of_means_is_the_mean_difference():
    a, b = np.random.default_rng(6).normal(size=(2, 30))
    result = paired_test(a, b)
    assert (result.difference, result.low, result.high) == pytest.approx((np.mean(b - a), *interval(b - a)))
    assert (result.low, result.high) != pytest.approx(interval(b - a, seed=1))


def test_exchanging_the_systems_changes_the_sign():
    a, b, references = corpus(30, seed=7)
    rows = [bleu_statistics(answers, references) for answers in (a, b)]
    forth, back = paired_test(*rows, bleu), paired_test(*rows[::-1], bleu)
    assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))
    assert back.p_value == forth.p_value


def test_joint_results_equal_single_ones():
    first, second = (evaluation(seed).predictions for seed in (8, 9))
    a, b = resampled_scores(first), resampled_scores(second)
    assert score_intervals(first) == {name: pytest.approx(interval(m.rows, m.score)) for name, m in a.items()}
    results = compare(first, second)
    assert results.keys() == a.keys()
    for name, result in results.items():
        alone = paired_test(a[name].rows, b[name].rows, a[name].score)
        assert vars(result) == pytest.approx(vars(alone))
    assert len({result.p_value for result in results.values()}) > 5


def test_progress_counts_every_metric(monkeypatch):
    rows, counts = evaluation(0).predictions, Counter()

    class Recorded(Progress):
        def advance(self, parts=1):
            counts[self.description] += parts

    monkeypatch.setattr(significance, "Progress", Recorded)
    intervals, results = score_intervals(rows), compare(rows, rows)
    assert counts == {"bootstrap intervals": len(intervals), "comparison": len(results)}


def test_chunks_have_no_effect(monkeypatch):
    a, b = np.random.default_rng(10).normal(size=(2, 70))
    whole = paired_test(a, b, resamples=1000), interval(a, resamples=1000)
    counts, sizes = np.bincount, []
    monkeypatch.setattr(significance, "_CHUNK", 700)
    monkeypatch.setattr(
        np, "bincount", lambda drawn, minlength: sizes.append(minlength) or counts(drawn, minlength=minlength)
    )
    in_parts = paired_test(a, b, resamples=1000), interval(a, resamples=1000)
    assert sum(sizes) == 2 * 70 * 1000
    sizes += [part.size for part in significance._random_flips(70, 1000)]
    assert max(sizes) == 700
    assert sum(sizes) == 3 * 70 * 1000
    assert vars(in_parts[0]) == pytest.approx(vars(whole[0]))
    assert in_parts[1] == pytest.approx(whole[1])


# Simulations: data sets with a known truth


def share_of(trials):
    return sum(trials) / len(trials)


def scores_like_f1(numbers, size):
    """Return zeros, hundreds and skewed values between."""
    kind = numbers.choice(3, p=[0.2, 0.3, 0.5], size=size)
    return np.where(kind == 0, 0.0, np.where(kind == 1, 100.0, 100 * numbers.beta(2, 4, size=size)))


TRUE_F1 = 100 * (0.3 + 0.5 * 2 / 6)
SENTENCES = [
    np.array(bleu_statistics(answers, references), float) for *both, references in [corpus(300, 11)] for answers in both
]


def covers_f1(numbers):
    low, high = interval(scores_like_f1(numbers, 100), resamples=500)
    return low <= TRUE_F1 <= high


def covers_loss(numbers):
    """Long answers have the lower loss per token."""
    tokens = numbers.integers(1, 22, size=100)
    nll = numbers.gamma(8.0, size=100) / 4 * (3 + tokens)  # of expectation 2 (3 + tokens), and 11 tokens are expected
    low, high = interval(np.column_stack([nll, tokens]), resamples=500)
    return low <= 2 * 14 / 11 <= high


def covers_bleu(numbers):
    low, high = interval(SENTENCES[0][numbers.integers(300, size=100)], bleu, resamples=500)
    return low <= bleu(SENTENCES[0].sum(axis=0)) <= high


def covers_the_difference(numbers):
    """The same questions are hard for both systems."""
    hard = scores_like_f1(numbers, 100)
    result = paired_test(hard + numbers.normal(size=100), 0.9 * hard + numbers.exponential(5, size=100), resamples=500)
    return result.low <= 5 - 0.1 * TRUE_F1 <= result.high


def covers_the_difference_of_bleu(numbers):
    drawn = numbers.integers(300, size=100)
    result = paired_test(*(rows[drawn] for rows in SENTENCES), bleu, resamples=500)
    first, second = (bleu(rows.sum(axis=0)) for rows in SENTENCES)
    return result.low <= second - first <= result.high


@pytest.mark.parametrize(
    "covers", [covers_f1, covers_loss, covers_bleu, covers_the_difference, covers_the_difference_of_bleu]
)
def test_an_interval_of_95_percent_covers_the_truth_in_95_of_100_data_sets(covers):
    """Up to three standard errors of a share of 1000, 2.1 %, and the 1 % that 100 questions and 500 resamples cost.

    Of normal values an interval of +-1.96 standard errors, sqrt(1 - 1 / n) too short, would cover 94.5 %.
    """
    numbers = np.random.default_rng(12)
    share = share_of([covers(numbers) for _ in range(1000)])
    error = math.sqrt(0.95 * 0.05 / 1000)
    assert 0.94 - 3 * error < share < 0.95 + 3 * error


def null_means(numbers):
    """The same questions are hard for both; differences are skewed, and equally likely in both directions."""
    a, b = scores_like_f1(numbers, 40) + numbers.exponential(20, size=(2, 40))
    return paired_test(a, b, resamples=199).p_value


def null_means_exactly(numbers):
    return paired_test(*numbers.exponential(size=(2, 8)), resamples=256).p_value  # of 256 flips, two at a time


def null_bleu(numbers):
    drawn, swapped = numbers.integers(300, size=40), numbers.integers(2, size=40)
    rows = np.array(SENTENCES)
    return paired_test(rows[swapped, drawn], rows[1 - swapped, drawn], bleu, resamples=199).p_value


@pytest.mark.parametrize("p_value", [null_means, null_means_exactly, null_bleu])
def test_p_values_are_uniform_where_nothing_differs(p_value):
    """Up to four standard errors of a share of 1000 at each of five places: all hold in 99.97 % of simulations."""
    numbers = np.random.default_rng(13)
    p_values = np.array([p_value(numbers) for _ in range(1000)])
    for chance in (0.0625, 0.125, 0.25, 0.5, 0.75):
        at_most = chance if p_value is null_means_exactly else math.floor(200 * chance) / 200
        assert share_of(p_values <= at_most + 1e-9) == pytest.approx(
            at_most, abs=4 * math.sqrt(chance * (1 - chance) / 1000)
        )


# Refusals


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one question, got none"),
        ([1.0, math.nan], "got NaN or infinity"),
        ([1.0, math.inf], "got NaN or infinity"),
    ],
)
def test_values_must_be_present_and_finite(values, message):
    with pytest.raises(ValueError, match=message):
        interval(values)
    with pytest.raises(ValueError, match=message):
        paired_test(values, values)


def test_pairs_must_be_of_the_same_questions():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(2, 2\)"):
        paired_test([1.0, 2.0, 3.0], [1.0, 2.0])
    rows = evaluation(14).predictions
    with pytest.raises(ValueError, match="in the same order, got different ids"):
        compare(rows, rows[::-1])
    without = [row if row.id == "test:2" else replace(row, retrieval_scores=None) for row in rows]
    with pytest.raises(ValueError, match=r'hit@1: .* 8 questions .*"test:3"'):
        compare(rows, without)


def test_verdicts_are_compared_on_questions_with_two():
    judged = [(0, None), (1, 0), (None, 1), (0, 1), (0, 1), (None, None), (1, 1)]
    sides = [
        [prediction(i, judge_scores={} if of[side] is None else {"judge_accuracy": 100.0 * of[side]})
        for i, of in enumerate(judged)]
        for side in (0, 1)
    ]  # fmt: skip
    both = [[100.0, 0.0, 0.0, 100.0], [0.0, 100.0, 100.0, 100.0]]
    assert compare(*sides) == {"judge_accuracy": paired_test(*both)}
    assert compare(*sides)["judge_accuracy"].questions == 4
    assert compare(*([side[0], side[2]] for side in sides)) == compare(*(side[5:6] for side in sides)) == {}


def test_scores_of_one_side_only_are_left_out():
    rows = evaluation(15).predictions
    retrieved = [prediction(row.id, retrieval_scores=row.retrieval_scores) for row in rows]
    assert compare(rows, retrieved).keys() == {name for name in resampled_scores(rows) if "@" in name}


def test_torch_is_not_imported():
    code = "import sys, rqa.evaluation.significance; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"torch", "scipy", "nltk"} & set(loaded.split())
