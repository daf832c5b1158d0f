"""The table of metrics, METRICS, and their definitions as pure functions on lists.

Scores are in per cent, 0 to 100, unless the label in the table has another unit. The score of an answer is that of the
reference for which it is highest. Text is read in NFKC form.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import zip_longest
from types import SimpleNamespace
from typing import TYPE_CHECKING

import regex  # type: ignore[import-untyped]

from rqa.terminal import track

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

AnswerFunction = Callable[[str, Sequence[str]], float]  # (answer, references) -> score

ROUGE_SIGNATURE = f"refs:best|measure:f|case:lc|stem:no|tok:unicode|version:{version('rouge-score')}"

# In scripts without spaces between words, each character with its marks counts as a word.
_CHARACTER = r"[[\p{L}\p{Nl}]&&[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
_CHARACTERS = regex.compile(rf"(?V1){_CHARACTER}\p{{M}}*")
_WORDS = regex.compile(rf"(?V1){_CHARACTER}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{_CHARACTER}]+")
_HAN = regex.compile(r"\p{Han}")
_PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]")  # category P, and the ASCII symbols that are punctuation in SQuAD
_ARTICLES = regex.compile(r"\b(a|an|the)\b")


def retrieval_scores(gold_ids: Collection[str], retrieved_ids: Sequence[str], ks: Sequence[int]) -> dict[str, float]:
    """Score the ranking of one question, best first, at each cut-off k; repeated ids are ignored.

    - hit@k: 1 if any gold id is among the first k.
    - recall@k: the share of the gold ids among the first k.
    - all@k: 1 if all gold ids are among the first k.
    - mrr@k: 1 / rank of the first gold id, 0 beyond k; the mean over questions is MRR (Voorhees 1999).
    - ndcg@k: the sum of 1 / log2(1 + rank) over the retrieved gold ids, divided by the largest sum that k ranks and
      this number of gold ids allow (Järvelin and Kekäläinen 2002, with gains of 0 and 1).

    Raises ValueError if there is no gold id or a k is less than 1.
    """
    gold = set(gold_ids)
    if not gold:
        raise ValueError("gold_ids: expected at least one id, got none")
    if any(k < 1 for k in ks):
        raise ValueError(f"ks: expected cut-offs of at least 1, got {list(ks)}")
    ranks = [rank for rank, id in enumerate(dict.fromkeys(retrieved_ids), start=1) if id in gold]
    scores: dict[str, float] = {}
    for k in ks:
        top = [rank for rank in ranks if rank <= k]
        best = range(1, min(len(gold), k) + 1)
        scores |= {
            f"hit@{k}": 100.0 * bool(top),
            f"recall@{k}": 100.0 * (len(top) / len(gold)),
            f"all@{k}": 100.0 * (len(top) == len(gold)),
            f"mrr@{k}": 100.0 * (1 / top[0] if top else 0.0),
            f"ndcg@{k}": 100.0 * (_discounted_gain(top) / _discounted_gain(best)),
        }
    return scores


def _discounted_gain(ranks: Sequence[int]) -> float:
    return sum(1 / math.log2(1 + rank) for rank in ranks)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 100 if the answer has the words of a reference, in order, by SQuAD's rule (Rajpurkar et al. 2016, 2018).

    The rule: lower case; no punctuation; no a, an, the. Beyond ASCII as in MLQA (Lewis et al. 2020): all Unicode
    punctuation is removed, and scripts written without spaces are split into characters.
    """
    return 100.0 * (_answer_words(answer) in map(_answer_words, references))


def f1(answer: str, references: Sequence[str]) -> float:
    """Return F1 of the bags of words, by the rule of `exact_match`; if either text has no words, f1 is exact match."""
    return 100.0 * max(_f1(_answer_words(answer), _answer_words(reference)) for reference in references)


def _f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * (Counter(predicted) & Counter(expected)).total() / (len(predicted) + len(expected))


def _rouge(name: str) -> AnswerFunction:
    """Return the F-measure of ROUGE (Lin 2004) on lower-cased runs of letters, marks and numbers, without stemming.

    On ASCII it equals rouge_score's own. A text of one word has no rouge2.
    """
    return lambda answer, references: 100.0 * _rouge_scores(answer, tuple(references))[name]


@lru_cache(maxsize=1)  # three metrics in a row are of the same answer
def _rouge_scores(answer: str, references: tuple[str, ...]) -> dict[str, float]:
    return {name: score.fmeasure for name, score in _rouge_scorer().score_multi(references, answer).items()}


@cache
def _rouge_scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes two seconds

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=SimpleNamespace(tokenize=_words))


def _words(text: str) -> list[str]:
    """Return the words for ROUGE; the tokenizer of rouge_score itself keeps only a-z and 0-9."""
    words: list[str] = _WORDS.findall(_fold(text))
    return words


def answer_length(text: str) -> int:
    """Return the number of words as in ROUGE: a character is a word in scripts written without spaces."""
    return len(_words(text))


def _fold(text: str) -> str:
    """Return NFKC in lower case. T5's vocabularies normalize to NFKC: its answers could match no other form."""
    return unicodedata.normalize("NFKC", text).lower()


def _answer_words(text: str) -> list[str]:
    text = _ARTICLES.sub(" ", _PUNCTUATION.sub("", _fold(text)))
    words: list[str] = _CHARACTERS.sub(r" \g<0> ", text).split()
    return words


@dataclass(frozen=True)
class Metric:
    """A metric: its name in the files, and its use elsewhere.

    `score` returns the score of one answer; the metric is the mean over questions. It is None for a metric that is
    computed elsewhere: retrieval, BLEU of the whole corpus, citations, loss, times, a judge's verdicts.
    """

    name: str
    label: str = ""  # with unit; metrics with a label are in the main table of a comparison and of a report
    score: AnswerFunction | None = None
    higher_is_better: bool = True
    is_percentage: bool = True  # on a scale from 0 to 100
    in_log_line: bool = False
    selects_model: bool = False  # a choice of --metric_for_best_model; not retrieval: the retriever is frozen


# In the order of the tables. A new metric of answers is one row.
METRICS = (
    Metric("recall@1", "Recall@1, %", in_log_line=True),
    Metric("recall@3", "Recall@3, %", in_log_line=True),
    Metric("recall@10", "Recall@10, %"),
    Metric("bleu", "BLEU", in_log_line=True, selects_model=True),
    Metric("rougeL", "ROUGE-L, %", _rouge("rougeL"), in_log_line=True, selects_model=True),
    Metric("em", "EM, %", exact_match, in_log_line=True, selects_model=True),
    Metric("f1", "F1, %", f1, in_log_line=True, selects_model=True),
    Metric("citation_precision", "citation precision, %", in_log_line=True),
    Metric("citation_recall", "citation recall, %", in_log_line=True),
    Metric("cited_answers", "answers with citations, %"),
    Metric("citation_support_precision", "supported citations, %"),
    Metric("citation_support_precision_low", "  at least, %"),
    Metric("citation_support_precision_high", "  at most, %"),
    Metric("citation_support_recall", "supported sentences, %"),
    Metric("citation_support_recall_low", "  at least, %"),
    Metric("citation_support_recall_high", "  at most, %"),
    Metric("judge_accuracy", "judged correct, %"),
    Metric("judge_accuracy_low", "  at least, %"),
    Metric("judge_accuracy_high", "  at most, %"),
    Metric("answer_words", "words in an answer", is_percentage=False),
    Metric("cut_answers", "answers cut short, %", None, False),
    Metric("loss", "loss, nats per token", None, False, is_percentage=False, in_log_line=True, selects_model=True),
    Metric("seconds", "seconds per answer", None, False, is_percentage=False),
    Metric("rouge1", score=_rouge("rouge1"), selects_model=True),
    Metric("rouge2", score=_rouge("rouge2"), selects_model=True),
)

# The choices of --metric_for_best_model.
HIGHER_IS_BETTER = {metric.name: metric.higher_is_better for metric in METRICS if metric.selects_model}

LABELS = {metric.name: metric.label for metric in METRICS if metric.label}


def answer_scores(answer: str, references: Sequence[str], metrics: Sequence[Metric] = METRICS) -> dict[str, float]:
    """Return each metric's score of one answer, in the order of the names.

    An empty answer scores 0, or em and f1 100 if a reference has no words either. Raises ValueError if there is no
    reference, or if a score is not finite.
    """
    _check_references(references)
    ordered = sorted(metrics, key=lambda metric: metric.name)
    scores = {metric.name: metric.score(answer, references) for metric in ordered if metric.score}
    if infinite := [name for name, score in scores.items() if not math.isfinite(score)]:
        raise ValueError(
            f"metric {infinite[0]}: expected a finite score, got {scores[infinite[0]]} for {answer[:80]!r}"
        )
    return scores


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:  # a str is a sequence too: its letters would be scored
        raise ValueError(f"references: expected a list of at least one text, got {references!r}")


def format_scores(scores: Mapping[str, float]) -> str:
    """Return the main scores in one line, those first of which lower is better."""
    ordered = sorted(METRICS, key=lambda metric: metric.higher_is_better)
    names = [metric.name for metric in ordered if metric.in_log_line and metric.name in scores]
    return "  ".join(f"{name} {scores[name]:.3g}" for name in names)


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each score over the rows, rounded once, so that their order has no effect; {} of no rows.

    Raises ValueError if a row lacks a score that another has.
    """
    for number, row in enumerate(rows):
        if unshared := row.keys() ^ rows[0].keys():
            raise ValueError(f"rows 0 and {number}: expected the same scores, got {sorted(unshared)} in one only")
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in (rows[0] if rows else {})}


@dataclass(frozen=True)
class Bleu:
    """Corpus BLEU in per cent, and sacrebleu's signature of how it was computed."""

    score: float
    signature: str


def corpus_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "") -> Bleu:
    """Return sacrebleu's corpus BLEU of all answers (Papineni et al. 2002; Post 2018).

    `references[i]` are those of `predictions[i]`, at least one. `tokenize` is the name of a tokenizer of sacrebleu; the
    default depends on the script of the references. BLEU counts runs of four tokens: a corpus of shorter answers has 0.
    Raises ValueError if there are no rows, if their numbers differ, or if a row has no reference.
    """
    bleu = _bleu(predictions, references, tokenize)
    # sacrebleu reads the first references of all rows, then the second ones, ...; None marks a row that has no more
    # ("" would be one more reference, of length 0, and remove the penalty for short answers).
    score = bleu.corpus_score(predictions, list(zip_longest(*references)))
    return Bleu(score.score, str(bleu.get_signature()))


def bleu_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = ""
) -> list[list[int]]:
    """Return the terms of each answer in the ten sums of which corpus BLEU is a function; arguments as `corpus_bleu`.

    They are its tokens, those of the reference closest in length, its matching n-grams of n = 1 to 4, all its n-grams.
    """
    bleu = _bleu(predictions, references, tokenize)
    pairs = track(zip(predictions, references, strict=True), "BLEU", len(predictions), unit="answers")
    scores = [bleu.corpus_score([text], [[one] for one in row]) for text, row in pairs]
    return [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]


def _bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str) -> "BLEU":
    """Return the metric for these rows, by default with the tokenizer for their script. Raises as `corpus_bleu`."""
    from sacrebleu.metrics.bleu import BLEU

    if not predictions or len(predictions) != len(references):
        raise ValueError(
            "expected as many rows of references as predictions, at least one, "
            f"got {len(predictions)} predictions and {len(references)} rows of references"
        )
    for row in references:
        _check_references(row)
    return BLEU(tokenize=tokenize or _bleu_tokenizer([text for row in references for text in row]))


def _bleu_tokenizer(texts: Sequence[str]) -> str:
    """Return "13a" unless most words are characters of an unspaced script; then "zh", which splits Han only, or "char".

    In Japanese about half of the characters are kana; a few kana do not make a Chinese corpus Japanese.
    """
    words = [word for text in texts for word in _words(text)]
    characters = [word for word in words if _CHARACTERS.match(word)]
    if 2 * len(characters) <= len(words):
        return "13a"
    han = sum(_HAN.match(word) is not None for word in characters)
    return "zh" if 10 * han > 9 * len(characters) else "char"
