"""How far a score can be trusted: its bootstrap interval, and the comparison of two systems on the same questions.

Every score here is a function of sums over questions. What each of n questions adds to the S sums is a row, computed
once; a resample of the questions is then a weight for each row, and corpus BLEU is resampled as a corpus.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rqa.evaluation.metrics import answer_length, bleu_statistics

Array = NDArray[np.float64]
Score = Callable[[Array], Array]  # sums (..., S) -> scores (...)

LEVEL = 0.95
RESAMPLES = 10_000
_CHUNK = 2**20  # weights at a time, whatever the number of questions: 8 MB
_TIE = 1e-9  # relative: differences that are equal but for the order of their sums


@dataclass(frozen=True)
class PairedResult:
    """The second system's score minus the first's, the interval of it, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float
    questions: int


@dataclass(frozen=True)
class ResampledScore:
    """A score of a set of questions: `rows` (n, S) of those of them, by their positions, that have it."""

    positions: tuple[int, ...]
    rows: Array
    score: Score

    def of(self, positions: Set[int]) -> "ResampledScore":
        """Return the score of those of its questions that are at `positions`."""
        kept = [i for i, position in enumerate(self.positions) if position in positions]
        return replace(self, positions=tuple(self.positions[i] for i in kept), rows=self.rows[kept])

    @property
    def value(self) -> float:
        """The score itself."""
        return float(self.score(self.rows.sum(axis=0)))


def ratio(sums: Array) -> Array:
    """Divide the first of two sums by the second: a mean where the second counts, nats per token of (nats, tokens)."""
    quotients: Array = sums[..., 0] / sums[..., 1]
    return quotients


def bleu(sums: Array) -> Array:
    """Return corpus BLEU, in per cent, of sums of `rqa.evaluation.metrics.bleu_statistics`, (..., 10).

    By Papineni et al. 2002, where the m-th order of which no n-gram matches counts as 1 / 2^m of one match (smoothing
    "exp", the default of sacrebleu and of mteval-v13a.pl); 0 if no word matches, or no answer has four.
    """
    length, closest, matches, ngrams = sums[..., 0], sums[..., 1], sums[..., 2:6], sums[..., 6:]
    smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum(matches == 0, axis=-1))
    precisions = np.log(smoothed / np.maximum(ngrams, 1)).mean(axis=-1)
    brevity = np.minimum(0, 1 - closest / np.maximum(length, 1))
    scored = (matches[..., 0] > 0) & (ngrams[..., 3] > 0)
    return np.where(scored, 100 * np.exp(precisions + brevity), 0.0)


def interval(
    values: ArrayLike, score: Score = ratio, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (Efron 1979) of the mean of `values` (n,), or of `score` of rows (n, S).

    The questions count as drawn from many more like them. Of few it is too narrow: simulated 95 % intervals of F1 held
    the truth in 91 of 100 sets of 10 questions, 93 of 20, 94.5 of 100, 95 of 300. Values that are all alike leave it no
    width: none right of 20 is not surely 0 %. Raises ValueError if there are no values or one is not finite.
    """
    table = _table(values)
    [totals] = _resampled([table], resamples, seed)
    return _middle(score(totals), level)


def paired_test(
    first: ArrayLike,
    second: ArrayLike,
    score: Score = ratio,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedResult:
    """Compare two systems, whose rows are of the same questions in the same order; see `interval` for the arguments.

    Both are resampled by the same questions (Koehn 2004). The p-value is that of the sign-flip test (Fisher 1935),
    in which each question's rows may change places between the systems, whole sets of sums for BLEU (approximate
    randomization: Riezler and Maxwell 2005). All ways to change places are tried where they are no more than
    `resamples`, else so many at random, and the p-value is (1 + hits) / (1 + resamples) (Phipson and Smyth 2010).
    Raises ValueError if the rows are not as many, or as `interval` does.
    """
    a, b = _table(first), _table(second)
    if a.shape != b.shape:
        raise ValueError(f"expected rows of the same questions, found {a.shape} and {b.shape}")
    totals = _resampled([a, b], resamples, seed)
    return _compared(a, b, score, totals, level, seed)


def question_scores(prediction: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of one row of predictions.jsonl, in per cent but its words."""
    answer = prediction.get("answer")
    words = {} if answer is None else {"answer_words": float(answer_length(answer))}
    kinds = (prediction.get(f"{kind}_scores") or {} for kind in ("retrieval", "answer", "attribution", "judge"))
    return {name: value for scores in (*kinds, words) for name, value in scores.items()}


def measures(predictions: Sequence[Mapping[str, Any]]) -> dict[str, ResampledScore]:
    """Return the scores of rows of predictions.jsonl as functions of sums.

    They are the scores of each question, over those that have it; corpus BLEU; and the loss where all rows have
    `reference_nll`, in nats, and `reference_tokens`. Whatever else score.json has cannot be resampled from these rows.
    """
    scored = [question_scores(row) for row in predictions]
    rows: dict[str, dict[int, Sequence[float]]] = {
        name: {i: (row[name], 1.0) for i, row in enumerate(scored) if name in row}
        for name in dict.fromkeys(name for row in scored for name in row)
    }
    if all(row.get("reference_nll") is not None for row in predictions):  # one that was not finite makes the mean so
        rows["loss"] = {i: (row["reference_nll"], row["reference_tokens"]) for i, row in enumerate(predictions)}
    answered = {i: row for i, row in enumerate(predictions) if row.get("answer") is not None}
    if answered:
        texts, references = zip(*((row["answer"], row["references"]) for row in answered.values()), strict=True)
        rows["bleu"] = dict(zip(answered, bleu_statistics(texts, references), strict=True))
    return {
        name: ResampledScore(tuple(of), _table(list(of.values())), bleu if name == "bleu" else ratio)
        for name, of in rows.items()
        if of
    }


def score_intervals(
    predictions: Sequence[Mapping[str, Any]], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the `interval` of each of the `measures` of rows of predictions.jsonl, by its name in score.json."""
    found = measures(predictions)
    intervals: dict[str, tuple[float, float]] = {}
    for names in _of_the_same_questions(found):
        totals = _resampled([found[name].rows for name in names], resamples, seed)
        intervals |= {name: _middle(found[name].score(sums), level) for name, sums in zip(names, totals, strict=True)}
    return intervals


def compare(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, PairedResult]:
    """Return the `paired` comparison of each of the `measures` that both have of their rows of predictions.jsonl.

    A judge may have failed on an answer of one side: its verdicts are compared where both have one. Raises ValueError
    unless both have the same ids in the same order, and each other score for the same questions.
    """
    if [row["id"] for row in first] != [row["id"] for row in second]:
        raise ValueError("expected rows of the same questions in the same order, found other ids")
    a, b = measures(first), measures(second)
    if "judge_accuracy" in a and "judge_accuracy" in b:
        judged = {*a["judge_accuracy"].positions} & {*b["judge_accuracy"].positions}
        a["judge_accuracy"], b["judge_accuracy"] = (side["judge_accuracy"].of(judged) for side in (a, b))
    shared = {name: measure for name, measure in a.items() if name in b and measure.positions}
    for name, measure in shared.items():
        if lone := sorted({*measure.positions} ^ {*b[name].positions}):
            raise ValueError(f'{len(lone)} questions, the first "{first[lone[0]]["id"]}", have {name} on one side only')
    found = {}
    for names in _of_the_same_questions(shared):
        totals = _resampled([side[name].rows for name in names for side in (a, b)], resamples, seed)
        for i, name in enumerate(names):
            both = totals[2 * i : 2 * i + 2]
            found[name] = _compared(a[name].rows, b[name].rows, a[name].score, both, level, seed)
    return found


def _of_the_same_questions(found: Mapping[str, ResampledScore]) -> list[list[str]]:
    """Group the names of measures that can share their resamples, which take longest to draw."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, measure in found.items():
        groups.setdefault(measure.positions, []).append(name)
    return list(groups.values())


def _table(values: ArrayLike) -> Array:
    """Return rows (n, S); those of values (n,) are (value, 1), whose `ratio` is the mean."""
    table = np.asarray(values, dtype=np.float64)
    if not len(table):
        raise ValueError("expected the values of one question at least, found none")
    if not np.isfinite(table).all():  # of which no comparison is true, so that no flip would be a hit
        raise ValueError("expected finite values, found NaN or infinity")
    return np.column_stack([table, np.ones(len(table))]) if table.ndim == 1 else table


def _middle(scores: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(tables: Sequence[Array], resamples: int, seed: int) -> list[Array]:
    """Sum the rows of each (n, S) over the same resamples of n questions with replacement; returns (resamples, S) each.

    Of the same n and seed the resamples are the same in every call.
    """
    n, columns = len(tables[0]), np.cumsum([table.shape[1] for table in tables])
    together = np.hstack(tables)
    totals = np.vstack([weights @ together for weights in _weights(n, resamples, np.random.default_rng(seed))])
    return np.split(totals, columns[:-1], axis=1)


def _weights(n: int, resamples: int, numbers: np.random.Generator) -> Iterator[Array]:
    """Yield how often each of n questions is drawn, a row for each resample; all together (resamples, n)."""
    for size in _chunks(resamples, n):
        drawn = numbers.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _chunks(rows: int, width: int) -> list[int]:
    """Cut `rows` of `width` numbers into parts of at most _CHUNK numbers, and of one row at least."""
    most = max(1, _CHUNK // max(1, width))
    return [min(most, rows - start) for start in range(0, rows, most)]


def _compared(a: Array, b: Array, score: Score, totals: Sequence[Array], level: float, seed: int) -> PairedResult:
    """Compare by rows (n, S) and their resampled sums (R, S); as many flips are drawn as there are resamples."""
    of_a, of_b = totals
    low, high = _middle(score(of_b) - score(of_a), level)
    difference = float(score(b.sum(axis=0)) - score(a.sum(axis=0)))
    return PairedResult(difference, low, high, _p_value(a, b, score, len(of_a), seed), len(a))


def _p_value(a: Array, b: Array, score: Score, draws: int, seed: int) -> float:
    changes = (b - a)[(a != b).any(axis=1)]  # (k, S): rows that are alike can change places, and nothing changes
    is_exact = 2 ** len(changes) <= draws
    flips = _all_flips(len(changes)) if is_exact else _random_flips(len(changes), draws, np.random.default_rng(seed))
    moved = np.vstack([chosen @ changes for chosen in flips])
    of_a, of_b = a.sum(axis=0), b.sum(axis=0)
    null = np.abs(score(of_b - moved) - score(of_a + moved))
    observed = np.abs(score(of_b) - score(of_a))
    tolerance = _TIE * max(abs(float(score(of_a))), abs(float(score(of_b))))
    hits = int((null >= observed - tolerance).sum())
    return hits / len(null) if is_exact else (1 + hits) / (1 + draws)


def _all_flips(k: int) -> Iterator[Array]:
    """Yield all subsets of k rows at once, (2^k, k), as zeros and ones."""
    yield (np.arange(2**k)[:, None] >> np.arange(k) & 1).astype(np.float64)


def _random_flips(k: int, draws: int, numbers: np.random.Generator) -> Iterator[Array]:
    """Yield random subsets of k rows as zeros and ones; all together (draws, k)."""
    for size in _chunks(draws, k):
        words = numbers.integers(2**64 - 1, size=(size, -(-k // 64)), dtype=np.uint64, endpoint=True)
        yield np.unpackbits(words.view(np.uint8), axis=1)[:, :k].astype(np.float64)
