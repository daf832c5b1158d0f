"""Scores of what was retrieved and answered, as pure functions on lists. All of them are in per cent, 0 to 100."""

import math
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import zip_longest
from typing import TYPE_CHECKING

import regex  # type: ignore[import-untyped]
from sacrebleu.metrics.bleu import BLEU

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGE_SIGNATURE = f"refs:best|measure:f|case:lc|stem:no|tok:unicode|version:{version('rouge-score')}"

# Scripts that put no spaces between words are read character by character, each with the marks that it carries.
_CHARACTER = r"[[\p{L}\p{Nl}]&&[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
_CHARACTERS = regex.compile(rf"(?V1){_CHARACTER}\p{{M}}*")
_WORDS = regex.compile(rf"(?V1){_CHARACTER}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{_CHARACTER}]+")
_HAN = regex.compile(r"\p{Han}")
_PUNCTUATION = regex.compile(r"[\p{P}$+<=>^`|~]")  # category P, and the ASCII symbols that SQuAD counts as punctuation
_ARTICLES = regex.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Bleu:
    """Corpus BLEU in per cent, and sacrebleu's signature, which says how it was computed."""

    score: float
    signature: str


def retrieval_scores(gold_ids: Collection[str], retrieved_ids: Sequence[str], ks: Sequence[int]) -> dict[str, float]:
    """Score one question's ranking, best first, at each cut-off k; an id that comes again is passed over.

    - hit@k: is any gold id among the first k?
    - recall@k: which share of the gold ids is?
    - all@k: are all of them?
    - mrr@k: 1 / rank of the first gold id, 0 beyond k; the mean over questions is MRR (Voorhees 1999).
    - ndcg@k: the sum of 1 / log2(1 + rank) over the gold ids found, divided by the largest sum that k places and
      this many gold ids allow (Järvelin and Kekäläinen 2002, with gains of 0 and 1).

    Raises ValueError if there is no gold id or a k is less than 1.
    """
    gold = set(gold_ids)
    if not gold:
        raise ValueError("gold_ids is empty: a question without gold passages has no retrieval scores")
    if any(k < 1 for k in ks):
        raise ValueError(f"expected cut-offs of at least 1, found ks={list(ks)}")
    ranks = [rank for rank, found in enumerate(dict.fromkeys(retrieved_ids), start=1) if found in gold]
    return {
        f"{name}@{k}": 100.0 * score
        for k in ks
        for name, score in _rank_scores([rank for rank in ranks if rank <= k], min(len(gold), k), len(gold)).items()
    }


def _rank_scores(ranks: Sequence[int], best: int, num_gold: int) -> dict[str, float]:
    """Score the gold ids found at `ranks`, ascending from 1, where `best` of `num_gold` could have been found."""
    return {
        "hit": float(len(ranks) > 0),
        "recall": len(ranks) / num_gold,
        "all": float(len(ranks) == num_gold),
        "mrr": 1 / ranks[0] if ranks else 0.0,
        "ndcg": _discounted_gain(ranks) / _discounted_gain(range(1, best + 1)),
    }


def _discounted_gain(ranks: Sequence[int]) -> float:
    return sum(1 / math.log2(1 + rank) for rank in ranks)


def answer_scores(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """Score one answer against its references, each score by the reference that is best for it.

    - em, f1: exact match, and F1 of the bags of words, by SQuAD's rule (Rajpurkar et al. 2016, 2018): lower case; no
      punctuation; no a, an, the. Beyond ASCII as MLQA does (Lewis et al. 2020): all of Unicode's punctuation goes, and
      scripts written without spaces are split into characters. Where nothing is left of either text, f1 is em.
    - rouge1, rouge2, rougeL: F-measure (Lin 2004) of lower-cased runs of letters, marks and numbers, no stemming,
      scripts written without spaces again by characters; on ASCII rouge_score's own rule. One word has no rouge2.

    Both read text in Unicode's NFKC form. An empty prediction scores 0, or em and f1 100 where nothing is left of a
    reference either. Raises ValueError if there is no reference.
    """
    _check_references(references)
    predicted = _answer_words(prediction)
    expected = [_answer_words(reference) for reference in references]
    rouge = _rouge_scorer().score_multi(references, prediction)
    return {
        "em": 100.0 * (predicted in expected),
        "f1": 100.0 * max(_f1(predicted, words) for words in expected),
        **{name: 100.0 * score.fmeasure for name, score in rouge.items()},
    }


def _check_references(references: Sequence[str]) -> None:
    if isinstance(references, str) or not references:  # a text is a sequence too: it would be scored letter by letter
        raise ValueError(f"expected a list of one or more references, found {references!r}")


def _fold(text: str) -> str:
    """Lower the case of NFKC: T5's vocabularies normalise to it, so its answers could never match another form."""
    return unicodedata.normalize("NFKC", text).lower()


def _answer_words(text: str) -> list[str]:
    text = _ARTICLES.sub(" ", _PUNCTUATION.sub("", _fold(text)))
    words: list[str] = _CHARACTERS.sub(r" \g<0> ", text).split()
    return words


def _f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * (Counter(predicted) & Counter(expected)).total() / (len(predicted) + len(expected))


class _UnicodeTokenizer:
    """What rouge_score asks of a tokenizer; its own keeps nothing but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return [match.group() for match in _WORDS.finditer(_fold(text))]


_TOKENIZER = _UnicodeTokenizer()


@cache
def _rouge_scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes two seconds

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_TOKENIZER)


def answer_length(text: str) -> int:
    """Count the words of a text as ROUGE reads it: a character is a word in scripts written without spaces."""
    return len(_TOKENIZER.tokenize(text))


def corpus_bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | None = None
) -> Bleu:
    """Score all answers at once by sacrebleu's corpus BLEU (Papineni et al. 2002; Post 2018).

    `references[i]` are those of `predictions[i]`, any number from one. `tokenize` names a tokenizer of sacrebleu; by
    default the script of the references chooses. BLEU counts runs of four tokens: a corpus of shorter answers has 0.
    Raises ValueError if there are no rows, not as many of both, or a row without a reference.
    """
    bleu = _bleu(predictions, references, tokenize)
    # sacrebleu reads the first references of all rows, then the second ones, ...; None stands where a row has no more
    # ("" would be one more reference, of length 0, and waive the penalty for short answers).
    score = bleu.corpus_score(predictions, list(zip_longest(*references)))
    return Bleu(score.score, str(bleu.get_signature()))


def bleu_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | None = None
) -> list[list[int]]:
    """Return what each answer adds to the ten sums that `corpus_bleu`, whose arguments these are, is a function of.

    They are its tokens, those of the reference closest in length, its matching n-grams of n = 1 to 4, all its n-grams.
    """
    bleu = _bleu(predictions, references, tokenize)
    scores = [
        bleu.corpus_score([text], [[one] for one in row]) for text, row in zip(predictions, references, strict=True)
    ]
    return [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]


def _bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: str | None) -> BLEU:
    """Return the metric for these rows, with the tokenizer of their script by default. Raises as `corpus_bleu` does."""
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"expected as many rows of references as predictions, and one at least, "
            f"found {len(predictions)} predictions and {len(references)} rows of references"
        )
    for row in references:
        _check_references(row)
    return BLEU(tokenize=tokenize or _bleu_tokenizer([text for row in references for text in row]))


def _bleu_tokenizer(texts: Sequence[str]) -> str:
    """Choose "13a" unless most words are characters of an unspaced script; then "zh", which splits Han only, or "char".

    A stray kana does not make a Chinese corpus Japanese, whose kana are about as many as its Han characters.
    """
    words = [word for text in texts for word in _TOKENIZER.tokenize(text)]
    characters = [word for word in words if _CHARACTERS.match(word)]
    if 2 * len(characters) <= len(words):
        return "13a"
    han = sum(_HAN.match(word) is not None for word in characters)
    return "zh" if 10 * han > 9 * len(characters) else "char"


def mean_scores(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each score over the rows, rounded once, so that the order of rows does not matter; {} of no rows.

    Raises ValueError if a row lacks a score that another has.
    """
    for number, row in enumerate(rows):
        if unshared := row.keys() ^ rows[0].keys():
            raise ValueError(f"rows 0 and {number} do not have the same scores: only one has {sorted(unshared)}")
    return {key: math.fsum(row[key] for row in rows) / len(rows) for key in (rows[0] if rows else {})}
