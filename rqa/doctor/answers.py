"""Answers and their gold passages: words and numbers that the passages do not contain."""

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import chain

from rqa.data.records import Example, Passage
from rqa.data.words import words
from rqa.doctor.findings import MIN_SUPPORT, Finding
from rqa.terminal import track

# An answer with less than MIN_SUPPORT of its words in its gold passages is unsupported only if the gold of one of
# OTHER_GOLDS other examples contains as much of it, where rare words count more. The answer to another question has
# more in the given gold in 1 of 20 cases, by chance. Measured, unsupported of those with less than MIN_SUPPORT:
#                                                                    with its own gold   with that of another question
#   1,000 conclusions of medical abstracts, in other words (PubMedQA)       7 of 311            944 of 998
#   150 answers of GPT-4 about Databricks' documentation (LocalRQA)         4 of  19            148 of 150
OTHER_GOLDS = 19
_SAMPLED_GOLDS = 1000  # for the frequencies of words

ITEM = re.compile(r"^[ \t]*(?:[-*•]|(\d+|[A-Za-z])[.)])[ \t]+", re.MULTILINE)  # the start of a list item

_NUMBER = r"\.?\d+(?:[.,]\d+)*"
_STATED = re.compile(rf"(?<![\w.])({_NUMBER})(?:\s?(%|percent\b|hundred\b|thousand\b|million\b|billion\b))?")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3})+(?:,\d+)?")  # 1,200.5 or 1.200,5
_LABEL = re.compile(r"\(\d{1,2}\)|\[\d+(?:, ?\d+)*\]")  # (1) of an enumeration, [1] of a citation
_TOKEN = re.compile(rf"{_NUMBER}|[a-z]+")
_NUMBER_WORDS = {
    word: float(value)
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen",
        "_ first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth",
        "_ once twice",
        "_ january february march april may june july august september october november december",
        "_ jan feb mar apr _ jun jul aug sep oct nov dec",
    )
    for value, word in enumerate(words.split())
}
_TENS = {
    word: 10.0 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_SCALES = {"dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9}
_UNITS = _SCALES | {"%": 0.01, "percent": 0.01}


def answers_to_check(split: str, example: Example) -> tuple[str, ...]:
    """Return the answers to check: the first in train, else all; none if the example is unanswerable."""
    return () if example.unanswerable else example.answers[: 1 if split == "train" else None]


# Words


def support(answer: str, texts: Sequence[str]) -> float:
    """Return the share of an answer's longer words that are in `texts`, 1 if it has none; see MIN_SUPPORT."""
    longer = _longer_words(answer)
    available = {word for text in texts for word in words(text)}
    return len(longer & available) / len(longer) if longer else 1.0


def support_findings(split: str, examples: Sequence[Example]) -> list[Finding]:
    """Compare each answer with its gold passages, and with those of other examples."""
    with_gold = [example for example in examples if example.gold_passages]
    low = []
    for example in track(with_gold, f"comparing answers and gold of {split}", unit="examples"):
        answers, gold = answers_to_check(split, example), [passage.content for passage in example.gold_passages]
        share = max((support(answer, gold) for answer in answers), default=1.0)
        if share < MIN_SUPPORT:
            low.append((example, f"{example.where} ({int(100 * share)} %)"))
    is_by_chance = _chance(split, with_gold) if low else None
    far = {place for example, place in low if is_by_chance and is_by_chance(example)}
    return [
        Finding.at("unsupported_answer", "warning", split, len(examples), [place for _, place in low if place in far]),
        Finding.at("reworded_answer", "note", split, len(examples), [place for _, place in low if place not in far]),
    ]


def _chance(split: str, examples: Sequence[Example]) -> Callable[[Example], bool]:
    """Return a function of an example: True if the gold of another one contains as much of each of its answers."""
    sample = random.Random(0).sample(examples, min(_SAMPLED_GOLDS, len(examples)))
    counts = Counter(chain.from_iterable(_words_of(example.gold_passages) for example in sample))
    others = [(_ids(example), _words_of(example.gold_passages)) for example in sample[: 2 * OTHER_GOLDS]]

    def weight(answer: Set[str], available: Set[str]) -> float:
        return sum(math.log((len(sample) + 1) / (counts[word] + 0.5)) for word in answer & available)

    def is_by_chance(example: Example) -> bool:
        own, ids = _words_of(example.gold_passages), _ids(example)
        foreign = [available for other, available in others if ids.isdisjoint(other)][:OTHER_GOLDS]
        return all(
            weight(answer, own) <= max((weight(answer, other) for other in foreign), default=math.inf)
            for answer in map(_longer_words, answers_to_check(split, example))
        )

    return is_by_chance


def _longer_words(answer: str) -> set[str]:
    return {w for w in words(ITEM.sub("", answer)) if not w.isdigit() and (len(w) > 3 or not w.isascii())}


def _words_of(passages: Iterable[Passage]) -> set[str]:
    return {word for passage in passages for word in words(passage.content)}


def _ids(example: Example) -> set[str]:
    return {passage.id for passage in example.gold_passages}


# Numbers


def unsupported_number(example: Example, answers: Sequence[str]) -> str:
    """Return the numbers of the best answer that nothing in the example contains, for a finding; "" without gold."""
    passages = (*example.gold_passages, *example.contexts, *example.hard_negatives)
    texts = [example.question, *(turn.text for turn in example.chat_history)]
    for passage in passages:
        texts += [passage.content, *passage.sources]
    numbers = min((unsupported_numbers(answer, texts) for answer in answers), key=len, default=[])
    return ", ".join(numbers[:5]) if example.gold_passages else ""


def unsupported_numbers(answer: str, texts: Sequence[str]) -> list[str]:
    """Return the numbers of an answer that are in none of `texts`, except those that number a list or a citation.

    1,000 is 1000, .5 is 0.5, twelve is 12, 1.2 million is 1200000, 12 % is 0.12, and 15.56 may become 16.
    """
    stated = _STATED.findall(_LABEL.sub("", ITEM.sub("", answer)))
    if not stated:
        return []
    available = {float(item) for item in ITEM.findall(answer) if item.isdigit()}  # "return to step 2"
    for text in texts:
        available.update(_numbers_in(text))

    def is_available(number: str, unit: str) -> bool:
        values = _values(number)
        values |= {value * _UNITS[unit] for value in values if unit}
        parts = re.split(r"[.,]" if number.count(".") > 1 else ",", number)  # of a date or a list
        return not available.isdisjoint(values) or available.issuperset(map(float, filter(None, parts)))

    return list(dict.fromkeys(number for number, unit in stated if not is_available(number, unit.casefold())))


def _numbers_in(text: str) -> Iterator[float]:
    """Yield all numbers of a text: digits or English words, each alone and with the unit that follows it."""
    yield from map(float, re.findall(r"\d+", text))  # parts of dates, ranges and versions
    last: set[float] = set()
    for token in _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if token in _SCALES:
            last = {value * _SCALES[token] for value in last or {1.0}}
        elif token in _NUMBER_WORDS:
            number = _NUMBER_WORDS[token]
            last = {number, *(tens + number for tens in last if tens in _TENS.values() and number < 10)}
        elif token in _TENS:
            last = {_TENS[token]}
        elif token[-1].isdigit():
            last = _values(token)
            yield from _rounded(token)
        else:
            last = set()
        yield from last


def _values(number: str) -> set[float]:
    """Return the values of digits with points and commas, which separate thousands or decimals."""
    forms = {number, number.replace(",", ".")}
    if _THOUSANDS.fullmatch(number):
        forms |= {number.replace(",", ""), number.replace(".", "").replace(",", ".")}
    return {float(form) for form in forms if re.fullmatch(r"\d*\.?\d+", form)}


def _rounded(number: str) -> Iterator[float]:
    whole, point, decimals = number.replace(",", "").partition(".")
    if point and decimals.isdigit():
        for places in range(len(decimals)):
            yield from (round(float(f"{whole}.{decimals}") + tiny, places) for tiny in (0.0, 1e-9))
