"""Rules that a question and its answer must satisfy; each has a name, the reason of a rejection."""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator

from rqa.data.records import normalized_text
from rqa.data.words import contains_words, words
from rqa.doctor.answers import support, unsupported_numbers
from rqa.doctor.findings import MIN_SUPPORT
from rqa.questions.writer import Question

MIN_QUESTION_WORDS, MAX_QUESTION_WORDS = 3, 60
MAX_ANSWER_WORDS = 150
MIN_EVIDENCE_WORDS = 3
NEAR_DUPLICATE = 0.8  # the share of the words of two questions that both have
QUESTION_MARKS = "?؟՞;፧"  # in NFKC, where the Greek one is a semicolon

_KINDS_OF_TEXT = r"(?:passage|excerpt|snippet|text|document|article|paragraph|context)s?"
_MENTION = re.compile(
    r"\b(?:the|this|that|these|those) (?:passage|excerpt|snippet)s?\b"
    rf"|\b(?:this|these|(?:the )?(?:given|provided|above|following|preceding)) {_KINDS_OF_TEXT}\b"
    rf"|\b{_KINDS_OF_TEXT} (?:above|below)\b"
    rf"|\b(?:according to|based on|mentioned in|described in|stated in) (?:the|this) {_KINDS_OF_TEXT}\b"
    r"|\bin the text(?=[,?])"
)
_QUOTATION = re.compile(r"[\"“„«]([^\"“”„«»]+)[\"”“»]")


class Rules:
    """The rules, with the questions that have passed them so far, which no later question repeats.

    Numbers, words of four or more letters and quotations of an answer are looked for in the passage. `mention` finds
    English words for the passage alone.
    """

    def __init__(self) -> None:
        self._passed = _QuestionIndex()

    def __call__(self, question: Question) -> Question:
        """Return the question, with the first reason to reject it. One that has no reason counts as passed."""
        if question.reason:
            return question
        for reason, detail in _broken_rules(question):
            return question.rejected(reason, detail)
        # Later questions of different conversations may have the same words.
        earlier = [turn.text for turn in question.history if turn.role == "user"]
        same = _with_equal_words(question.text, earlier) if earlier else self._passed.add(question.text)
        if not same:
            return question
        return question.rejected("duplicate" if _with_equal_words(question.text, [same]) else "near_duplicate", same)


def _broken_rules(question: Question) -> Iterator[tuple[str, str]]:
    """Yield the name of each rule that a question breaks, with the part that breaks it."""
    text = unicodedata.normalize("NFKC", question.text).casefold()
    length, least = len(words(text)), 1 if question.history else MIN_QUESTION_WORDS  # "Why?"
    if not least <= length <= MAX_QUESTION_WORDS:
        yield "question_length", f"{length} words"
    if not text.endswith(tuple(QUESTION_MARKS)):
        yield "no_question_mark", text[-20:]
    if match := _MENTION.search(text):
        yield "mention", match[0]
    if question.task.kind != "unanswerable":
        yield from _broken_by_answer(question)


def _broken_by_answer(question: Question) -> Iterator[tuple[str, str]]:
    passage, answer = question.task.passage, words(question.answer)
    if not 0 < len(answer) <= MAX_ANSWER_WORDS:
        yield "answer_length", f"{len(answer)} words"
    if contains_words(question.text, question.answer):
        yield "answer_in_question", question.answer
    if len(words(question.evidence)) < MIN_EVIDENCE_WORDS or not _contains(passage.text, question.evidence):
        yield "evidence", question.evidence
    texts = [passage.content, question.text, *(turn.text for turn in question.history)]
    if numbers := unsupported_numbers(question.answer, texts):
        yield "unsupported_number", ", ".join(numbers)
    quotations = [each for each in _QUOTATION.findall(question.answer) if not _contains(passage.content, each)]
    if quotations:
        yield "unsupported_quotation", quotations[0]
    if (share := support(question.answer, [passage.content])) < MIN_SUPPORT:
        yield "unsupported_words", f"{share:.0%} of its longer words are in the passage"


def _contains(text: str, part: str) -> bool:
    """Return True if a text contains another one, apart from white space and composed characters."""
    return normalized_text(part) in normalized_text(text)


def _with_equal_words(text: str, others: Iterable[str]) -> str:
    return next((other for other in others if words(other) == words(text)), "")


def names_in(text: str) -> frozenset[str]:
    """Return the words with a capital or a digit, except the first: of two texts that differ in them, both are kept."""
    return frozenset(word for word in re.findall(r"\w+", text)[1:] if word != word.lower() or re.search(r"\d", word))


class _QuestionIndex:
    """Texts in which a near duplicate is found without a comparison with all of them: the same names, similar words.

    Two sets of words whose share of common words is at least NEAR_DUPLICATE have one of their first words in common, in
    any order of all words, if enough first words are compared (prefix filtering, Chaudhuri et al. 2006). Long words
    are the first, because few texts share them.
    """

    def __init__(self) -> None:
        self._texts: list[tuple[str, frozenset[str]]] = []
        self._by_word: dict[str, list[int]] = {}

    def add(self, text: str) -> str:
        """Return a text with the same words, or nearly; "" if there is none, and then the text is added."""
        own = frozenset(words(text))
        ordered = sorted(own, key=lambda word: (-len(word), word))
        first = ordered[: len(own) - math.ceil(NEAR_DUPLICATE * len(own)) + 1]
        for number in sorted({number for word in first for number in self._by_word.get(word, ())}):
            other, other_words = self._texts[number]
            is_near = len(own & other_words) >= NEAR_DUPLICATE * len(own | other_words)
            if own == other_words or (is_near and names_in(text) == names_in(other)):
                return other
        for word in first:
            self._by_word.setdefault(word, []).append(len(self._texts))
        self._texts.append((text, own))
        return ""
