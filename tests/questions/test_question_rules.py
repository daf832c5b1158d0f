"""The rules: each is broken once, and near duplicates equal a comparison with all earlier questions."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa.data.records import Passage, Turn
from rqa.data.words import words
from rqa.questions.rules import NEAR_DUPLICATE, Rules, _QuestionIndex, names_in
from rqa.questions.writer import Question, Task

PASSAGE = Passage(
    'The lamp of Rome was lit in 1907\nby Anna Berg. Sailors call it "the  old eye", and it needs 1,200 watts.', "Lamps"
)
GOOD = Question(
    Task(PASSAGE, "single"),
    text="Who lit the lamp of Rome?",
    answer="Anna Berg lit the lamp.",
    evidence="was lit in 1907 by Anna Berg.",
)
UNANSWERABLE = Question(Task(PASSAGE, "unanswerable"), text="What did the lamp of Rome cost?")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"text": "Who, then?"}, "question_length"),
        ({"text": f"Who lit the lamp{' of Rome' * 30}?"}, "question_length"),
        ({"text": "Who?", "history": (Turn("user", "Was it lit?"), Turn("assistant", "Yes."))}, ""),
        ({"text": "你看谁点亮了罗马的灯？"}, ""),
        ({"text": "Tell me who lit the lamp of Rome."}, "no_question_mark"),
        ({"text": "Who, by the passage, lit the lamp of Rome?"}, "mention"),
        ({"text": "According to the document, who lit the lamp of Rome?"}, "mention"),
        ({"text": "Who lit the lamp of Rome in the text above?"}, "mention"),
        ({"text": "Who lit the lamp of Rome in the text?"}, "mention"),
        ({"text": "Who lit the lamp of Rome in the text field?"}, ""),
        ({"text": "In THIS document, who lit the lamp of Rome?"}, "mention"),
        ({"text": "How is a document saved when the lamp of Rome was lit?"}, ""),
        ({"answer": "lamp " * 151}, "answer_length"),
        ({"answer": "?!"}, "answer_length"),
        ({"text": "Was it Anna Berg who lit the lamp of Rome?", "answer": "Anna Berg."}, "answer_in_question"),
        ({"text": "Was it Joanna Bergman who lit the lamp of Rome?", "answer": "Anna Berg."}, ""),
        ({"evidence": "was lit in 1907 by Anna"}, ""),
        ({"evidence": "was lit by Anna Berg."}, "evidence"),
        ({"evidence": "Anna Berg"}, "evidence"),
        ({"answer": "Anna Berg lit the lamp in 1908."}, "unsupported_number"),
        ({"answer": "Anna Berg lit the lamp of 1200 watts."}, ""),
        ({"answer": 'Anna Berg lit "the old eye".'}, ""),
        ({"answer": 'Anna Berg lit "the young eye".'}, "unsupported_quotation"),
        ({"answer": "Nikola Tesla invented electrical currents."}, "unsupported_words"),
        ({"text": "Whose invention lit the lamp?", "answer": "Nobody claims that invention."}, "unsupported_words"),
        ({"reason": "malformed", "text": ""}, "malformed"),
    ],
)
def test_each_rule(changes, reason):
    assert Rules()(replace(GOOD, **changes)).reason == reason


def test_an_unanswerable_question_has_the_rules_of_questions():
    assert Rules()(UNANSWERABLE).reason == ""
    assert Rules()(replace(UNANSWERABLE, text="What did the lamp in this passage cost?")).reason == "mention"


def test_a_repeated_question_is_rejected_and_a_rejected_one_is_not_repeated():
    rules = Rules()
    rejected = rules(replace(GOOD, answer="Anna Berg lit the lamp in 1908."))
    reasons = [rules(replace(GOOD, text=text)).reason for text in (GOOD.text, "who LIT the lamp of Rome ?")]
    assert [rejected.reason, *reasons] == ["unsupported_number", "", "duplicate"]
    near = rules(replace(GOOD, text="Who was it that lit the lamp of Rome?"))
    long = rules(replace(GOOD, text="Who was it that first lit the lamp of Rome?"))
    assert (near.reason, long.reason, long.detail) == ("", "near_duplicate", near.text)
    assert rules(replace(GOOD, text="Who was it that first lit the lamp of Oslo?")).reason == ""


def test_turns_of_two_conversations_may_have_the_same_words():
    rules = Rules()
    for i in range(2):
        history = (Turn("user", f"Where is the lamp of {'Rome' if i else 'Oslo'}, and of which kind?"),)
        turn = replace(GOOD, text="Who lit it?", history=history)
        assert rules(turn).reason == ""
    again = replace(turn, history=(*history, Turn("assistant", "There."), Turn("user", "who lit it")))
    assert rules(again).reason == "duplicate"


def is_near(words, others, have_equal_names):
    return words == others or (len(words & others) / len(words | others) >= NEAR_DUPLICATE and have_equal_names)


@given(st.lists(st.lists(st.sampled_from("a bb ccc dddd Dddd eeeee 7 the what who".split()), min_size=1, max_size=8)))
def test_near_duplicates_equal_a_comparison_with_all(texts):
    index, added = _QuestionIndex(), []
    for text in map(" ".join, texts):
        others = [each for each in added if is_near({*words(text)}, {*words(each)}, names_in(text) == names_in(each))]
        assert index.add(text) == next(iter(others), "")
        if not others:
            added.append(text)
