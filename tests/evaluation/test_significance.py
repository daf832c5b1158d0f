"""significance: intervals and p-values equal those of all resamples and flips, and hold what they promise."""

import itertools
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa.data.records import Example, Passage
from rqa.evaluation import significance as statistics
from rqa.evaluation.evaluate import evaluate
from rqa.evaluation.metrics import bleu_statistics, corpus_bleu
from rqa.evaluation.significance import bleu, compare, interval, measures, paired_test, score_intervals
from rqa.generation.generator import Answer
from rqa.retrieval.retrieve import Retrieval, Retrieved

WORDS = "the lamp of a town was lit in 1907 .".split()
TAILS = (0.025, 0.975)

# Data


def sentence(numbers, least=0, most=12):
    return " ".join(numbers.choices(WORDS, k=numbers.randint(least, most)))


def corpus(size, seed):
    """Answers of two systems, and one to three references for each; some answers are empty or have no fourth word."""
    numbers = random.Random(seed)
    references = [[sentence(numbers, 4) for _ in range(numbers.randint(1, 3))] for _ in range(size)]
    systems = [
        [" ".join(row[0].split()[numbers.randint(0, 3) :]) + " " + sentence(numbers, 0, most) for row in references]
        for most in (2, 5)
    ]
    return *systems, references


def evaluation(seed, size=12):
    """An evaluation of a system that answers with some of the reference and something else."""
    numbers = random.Random(seed)
    passages = [Passage(f"The lamp {i}.", f"Lamp {i}") for i in range(size)]
    examples = [
        Example(
            f"test:{i + 1}", f"When {i}?", (f"It was lit in {i} by a man of the town.",), (passages[i],) * (i % 4 > 0)
        )
        for i in range(size)
    ]
    hits = [[Retrieved(passage, 0.5) for passage in numbers.sample(passages, 5)] for _ in examples]

    def generate(readings):
        words = [read.example.answers[0].split()[: numbers.choice([5, 8, 11])] for read in readings]
        return [Answer(f"{' '.join(of)} {sentence(numbers, 0, 2)}", 9, 99, True) for of in words]

    def loss(readings):
        return [(numbers.uniform(1, 9), numbers.randint(1, 9)) for _ in readings]

    return evaluate(examples, retrieval=Retrieval(hits, 1.0, "c"), generate=generate, loss=loss, k=2, ks=(1, 3))


# Scores as functions of sums


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_bleu_of_sums_is_that_of_the_resampled_corpus(seed, size):
    """Of corpora with a tokenizer of their own, which a resample keeps."""
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


def test_measures_are_the_evaluation_s_own_scores():
    """Over the questions that have them: a retriever's are not of those without gold."""
    scores = evaluation(0)
    rows = json.loads(json.dumps(scores.predictions))
    found = measures(rows)
    assert {name: measure.value for name, measure in found.items()} == pytest.approx(scores.metrics)
    assert {len(measure.positions) for name, measure in found.items() if "@" in name} == {9}
    assert {len(measure.positions) for name, measure in found.items() if "@" not in name} == {12}
    assert score_intervals(rows).keys() == found.keys()


def test_the_loss_weighs_tokens_alike():
    tokens = [[0.5, 0.25], [3.0], [1.0, 1.0, 2.0]]
    rows = [{"id": str(i), "reference_nll": sum(of), "reference_tokens": len(of)} for i, of in enumerate(tokens)]
    assert measures(rows)["loss"].value == pytest.approx(sum(map(sum, tokens)) / 6)


# Intervals: all resamples


def every_resample(score, size):
    """Score each of size^size resamples by itself; the quantiles of all of them, as a function."""
    scores = np.array([score(drawn) for drawn in itertools.product(range(size), repeat=size)])
    return lambda share: float(np.quantile(scores, share))


def assert_quantiles(found, quantile, resamples=10_000):
    """The ends of an interval are the tails' quantiles, up to four standard errors of a share of `resamples`."""
    for end, tail in zip(found, TAILS, strict=True):
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

    found = paired_test(*rows, bleu)
    assert found.difference == pytest.approx(difference([False] * 7))
    assert found.p_value == pytest.approx(p_of_all_flips(difference, 7))
    assert 0 < found.p_value < 1


@pytest.mark.parametrize(("better", "worse"), [(5, 0), (6, 1), (4, 4), (9, 3)])
def test_the_p_value_of_right_and_wrong_is_the_binomial_s(better, worse):
    """McNemar's exact test; the 200 questions that both answer alike change nothing, and cost no exactness."""
    a = [0.0] * better + [100.0] * worse + [100.0] * 200
    b = [100.0] * better + [0.0] * worse + [100.0] * 200
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(max(better, worse), n + 1)) / 2**n
    assert paired_test(a, b).p_value == pytest.approx(min(1, 2 * tail))


def test_random_flips_come_near_all_of_them_and_never_to_0():
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
    flips = np.vstack(list(statistics._random_flips(70, 4000, np.random.default_rng(0))))
    assert flips.shape == (4000, 70)
    assert abs(flips.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(4000)
    assert abs(np.corrcoef(flips.T) - np.eye(70)).max() < 5 / math.sqrt(4000)


# Pairs


def test_the_difference_of_means_is_the_mean_difference():
    a, b = np.random.default_rng(6).normal(size=(2, 30))
    found = paired_test(a, b)
    assert (found.difference, found.low, found.high) == pytest.approx((np.mean(b - a), *interval(b - a)))
    assert (found.low, found.high) != pytest.approx(interval(b - a, seed=1))


def test_the_first_and_the_second_can_change_places():
    a, b, references = corpus(30, seed=7)
    rows = [bleu_statistics(answers, references) for answers in (a, b)]
    forth, back = paired_test(*rows, bleu), paired_test(*rows[::-1], bleu)
    assert (back.difference, back.low, back.high) == pytest.approx((-forth.difference, -forth.high, -forth.low))
    assert back.p_value == forth.p_value


def test_together_is_one_by_one():
    first, second = (evaluation(seed).predictions for seed in (8, 9))
    second = [{**row, "retrieval_scores": row.get("retrieval_scores", {})} for row in second]
    a, b = measures(first), measures(second)
    assert score_intervals(first) == {name: pytest.approx(interval(m.rows, m.score)) for name, m in a.items()}
    found = compare(first, second)
    assert found.keys() == a.keys()
    for name, of in found.items():
        alone = paired_test(a[name].rows, b[name].rows, a[name].score)
        assert vars(of) == pytest.approx(vars(alone))
    assert len({of.p_value for of in found.values()}) > 5


def test_parts_of_bounded_size_change_nothing(monkeypatch):
    a, b = np.random.default_rng(10).normal(size=(2, 70))
    whole = paired_test(a, b, resamples=1000), interval(a, resamples=1000)
    sizes = []
    monkeypatch.setattr(statistics, "_CHUNK", 700)
    for parts in (statistics._weights, statistics._random_flips):
        sizes += [part.size for part in parts(70, 1000, np.random.default_rng(0))]
    assert max(sizes) == 700
    assert sum(sizes) == 2 * 70 * 1000
    in_parts = paired_test(a, b, resamples=1000), interval(a, resamples=1000)
    assert vars(in_parts[0]) == pytest.approx(vars(whole[0]))
    assert in_parts[1] == pytest.approx(whole[1])


# Simulations: data sets of which the truth is known


def share_of(trials):
    return sum(trials) / len(trials)


def scores_like_f1(numbers, size):
    """Zeros, hundreds and what is between, skewed."""
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
    """Two systems that find the same questions hard."""
    hard = scores_like_f1(numbers, 100)
    found = paired_test(hard + numbers.normal(size=100), 0.9 * hard + numbers.exponential(5, size=100), resamples=500)
    return found.low <= 5 - 0.1 * TRUE_F1 <= found.high


def covers_the_difference_of_bleu(numbers):
    drawn = numbers.integers(300, size=100)
    found = paired_test(*(rows[drawn] for rows in SENTENCES), bleu, resamples=500)
    first, second = (bleu(rows.sum(axis=0)) for rows in SENTENCES)
    return found.low <= second - first <= found.high


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
    """The same questions are hard for both; what differs is skewed, and as likely the other way round."""
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
    found = np.array([p_value(numbers) for _ in range(1000)])
    for chance in (0.0625, 0.125, 0.25, 0.5, 0.75):
        at_most = chance if p_value is null_means_exactly else math.floor(200 * chance) / 200
        assert share_of(found <= at_most + 1e-9) == pytest.approx(
            at_most, abs=4 * math.sqrt(chance * (1 - chance) / 1000)
        )


# Refusals


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "one question at least, found none"),
        ([1.0, math.nan], "found NaN or infinity"),
        ([1.0, math.inf], "found NaN or infinity"),
    ],
)
def test_values_are_there_and_finite(values, message):
    with pytest.raises(ValueError, match=message):
        interval(values)
    with pytest.raises(ValueError, match=message):
        paired_test(values, values)


def test_pairs_are_of_the_same_questions():
    with pytest.raises(ValueError, match=r"found \(3, 2\) and \(2, 2\)"):
        paired_test([1.0, 2.0, 3.0], [1.0, 2.0])
    rows = evaluation(14).predictions
    with pytest.raises(ValueError, match="in the same order, found other ids"):
        compare(rows, rows[::-1])
    without = [{k: v for k, v in row.items() if k != "retrieval_scores" or row["id"] == "test:2"} for row in rows]
    with pytest.raises(ValueError, match=r'8 questions, the first "test:3", have hit@1 on one side only'):
        compare(rows, without)


def test_verdicts_are_compared_where_both_have_one():
    rows = [{"id": str(i), "question": "?"} for i in range(7)]
    judged = [(0, None), (1, 0), (None, 1), (0, 1), (0, 1), (None, None), (1, 1)]
    sides = [
        [row | ({} if of[side] is None else {"judge_scores": {"judge_accuracy": 100.0 * of[side]}})
        for row, of in zip(rows, judged, strict=True)]
        for side in (0, 1)
    ]  # fmt: skip
    both = [[100.0, 0.0, 0.0, 100.0], [0.0, 100.0, 100.0, 100.0]]
    assert compare(*sides) == {"judge_accuracy": paired_test(*both)}
    assert compare(*sides)["judge_accuracy"].questions == 4
    assert compare(*([side[0], side[2]] for side in sides)) == compare(*(side[5:6] for side in sides)) == {}


def test_scores_of_one_side_are_left_out():
    rows = evaluation(15).predictions
    retrieved = [{k: v for k, v in row.items() if not k.startswith(("answer", "reference"))} for row in rows]
    assert compare(rows, retrieved).keys() == {name for name in measures(rows) if "@" in name}


def test_torch_is_not_needed():
    code = "import sys, rqa.evaluation.significance; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert not {"torch", "scipy", "nltk"} & set(loaded.split())
