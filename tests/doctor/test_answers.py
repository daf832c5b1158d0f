"""answers: words and numbers of answers that nothing in their row contains."""

from dataclasses import replace

import pytest

from rqa.data.records import Example, Passage, Turn
from rqa.data.words import words
from rqa.doctor.answers import support, support_findings, unsupported_number, unsupported_numbers
from rqa.evaluation.metrics import answer_length

TEXTS = ["Two cats, a dog.", "Кошка и собака", "猫と犬。", "แมว ok 12", "x-ray 3.5", "  ", "naïve l'été", "ミルク2本"]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_the_metrics(text):
    assert len(words(text)) == answer_length(text)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("The harbour LAMP.", 1),
        ("The harbour lamps.", 1 / 2),  # lamps, harbour; the is too short
        ("18079, by the harbour or elsewhere", 1 / 2),  # numbers have a check of their own
        ("Yes, so it is.", 1),
        ("1. harbour\n2. lamp", 1),  # the numbers of a list
        ("灯塔", 1 / 2),
    ],
)
def test_support_is_the_share_of_the_longer_words(answer, share):
    assert support(answer, ["A harbour's lamp", "of 1807. 灯"]) == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [
        ("In 1807 and 1808.", ["1808"]),
        ("1,200 or 1200 or 12", ["12"]),
        ("1. Take 3\n2. Return to step 2.\n3) 4 more", ["4"]),
        ("EC2 and v9", []),  # part of a name
        ("versions 3,1807", []),
        ("0.75 %", ["0.75"]),
        ("1.25", []),
    ],
)
def test_unsupported_numbers_are_in_no_text(answer, numbers):
    assert unsupported_numbers(answer, ["1,200 since 1807 (v3)", "1.25"]) == numbers


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("1,000 lamps", "1000 lamps"),
        ("1000 lamps", "1,000 lamps"),
        ("1.000 Lampen", "1000 Lampen"),
        ("3,5 m", "3.5 m"),
        ("12 percent", "12%"),
        ("12%", "twelve percent"),
        ("12 %", "a share of 0.12"),
        ("2 keepers", "Two keepers"),
        ("25 keepers", "twenty-five keepers"),
        ("200 keepers", "two hundred keepers"),
        ("the 3rd of them", "the third of them"),
        ("0.5 m", ".5 m"),
        (".5 m", "0.50 m"),
        ("in 2023", "on 2023-01-15"),
        ("on 2023-01-05", "on January 5, 2023"),
        ("on 5.1.2023", "on January 5, 2023"),
        ("21-29 years", "21–29 years"),
        ("about 16 %", "15.56 %"),
        ("3.1", "3.14159"),
        ("1.2 million", "1,200,000"),
        ("1200000", "1.2 million"),
        ("It is north [1], and south [2, 3].", "none"),
        ("Steps: (1) open, (2) close.", "none"),
    ],
)
def test_the_same_number_in_another_form_is_no_finding(answer, text):
    assert unsupported_numbers(answer, [text]) == []


@pytest.mark.parametrize(
    ("answer", "text", "numbers"),
    [
        ("1,200 lamps", "1,300 lamps", ["1,200"]),
        ("13 lamps", "twelve lamps", ["13"]),
        ("in 1808", "in 1807", ["1808"]),
        ("8.2 %", "8 of 2 %", ["8.2"]),
        ("17 %", "15.56 %", ["17"]),
        ("15.6 %", "15 %", ["15.6"]),
        ("1.2 million", "1.3 million", ["1.2"]),
        ("version 10.4.1", "version 10.4.2, of 7", ["10.4.1"]),
        ("35 lamps", "3.5 lamps", ["35"]),
    ],
)
def test_another_number_is_a_finding(answer, text, numbers):
    assert unsupported_numbers(answer, [text]) == numbers


def test_a_number_may_stand_anywhere_in_the_row():
    example = Example(
        "1",
        "Which of the 3 lamps?",
        ("4, 5, 6, 7, 8 and 9",),
        (Passage("Lamps.", "Lamp 4", ("https://lamps.org/5.html",)),),
        (Turn("user", "And 6?"),),
        (Passage("7 lamps"),),
        (Passage("eight lamps"),),
    )
    assert unsupported_number(example, example.answers) == "9"
    assert unsupported_number(replace(example, gold_passages=()), example.answers) == ""


# Answers and the gold of other examples

TOPICS = "harbour lamp bell rope tower keeper storm boat north tide".split()
VERBS = "guards paints rings repairs carries watches raises measures sells counts".split()


def abstractive(i):
    """Return an example whose answer has few words of its gold: a name of its own, and words of all examples."""
    topic, verb, name = TOPICS[i % 10], VERBS[i // 10 % 10], f"Person{chr(97 + i % 26)}{chr(97 + i // 26)}xyz"
    text = f"{name} {verb} the {topic} before morning, when nobody else wants that kind of work."
    answer = f"Apparently {name} takes responsibility, although further observations remain desirable."
    return Example(f"{i}", f"Who {verb} the {topic}?", (answer,), (Passage(text),), where=f"x:{i}")


EXAMPLES = [abstractive(i) for i in range(100)]


def places(findings):
    return {finding.name: {int(place.split(" ")[0][2:]) for place in finding.places} for finding in findings}


def test_an_answer_in_other_words_is_a_note_and_one_of_another_question_a_warning():
    wrong = {3, 14, 15, 65, 99}
    examples = [
        replace(example, answers=EXAMPLES[(i + 7) % 100].answers) if i in wrong else example
        for i, example in enumerate(EXAMPLES)
    ]
    findings = support_findings("train", examples)
    assert {finding.name: finding.severity for finding in findings} == {
        "unsupported_answer": "warning",
        "reworded_answer": "note",
    }
    assert places(findings) == {"unsupported_answer": wrong, "reworded_answer": {*range(100)} - wrong}


def test_rare_words_count_more_than_common_ones():
    """Each gold has the name of its own answer, half of them also common words of all answers."""
    common = " Apparently the responsibility takes further observations."
    examples = [
        replace(example, gold_passages=(Passage(example.gold_passages[0].text + common * (i % 2) + " the end" * 40),))
        for i, example in enumerate(EXAMPLES)
    ]
    found = places(support_findings("train", examples))
    assert found["unsupported_answer"] == set()
    assert found["reworded_answer"] >= {*range(0, 100, 2)}


def test_if_all_answers_are_those_of_other_questions_all_are_warnings():
    examples = [replace(example, answers=EXAMPLES[(i + 50) % 100].answers) for i, example in enumerate(EXAMPLES)]
    assert len(places(support_findings("train", examples))["unsupported_answer"]) == 100


def test_without_the_gold_of_other_examples_a_low_share_is_a_warning():
    for examples in (EXAMPLES[:1], [replace(EXAMPLES[0], id=f"{i}", where=f"x:{i}") for i in range(5)]):
        found = places(support_findings("train", examples))
        assert (len(found["unsupported_answer"]), found["reworded_answer"]) == (len(examples), set())


def test_one_reference_that_the_gold_supports_is_enough():
    other = "Nothing remotely similar happened anywhere."
    examples = [replace(example, answers=(other, *example.answers)) for example in EXAMPLES]
    assert places(support_findings("test", examples))["unsupported_answer"] == set()
    assert len(places(support_findings("train", examples))["unsupported_answer"]) == 100
    supported = replace(EXAMPLES[0], answers=(other, EXAMPLES[0].gold_passages[0].text))
    assert places(support_findings("test", [supported]))["unsupported_answer"] == set()
