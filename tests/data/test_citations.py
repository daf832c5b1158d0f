"""citations: numbers are found, renumbered and removed; all other text stays."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa.data.citations import (
    citation_problems,
    cited_numbers,
    numbered,
    renumber,
    with_number,
    without_citations,
    without_cited_history,
)
from rqa.data.records import Example, Passage, Turn

N = 6  # passages
NUMBERS = st.integers(1, N)
SPACES = st.sampled_from(["", " ", "\n", "  "])
CITATIONS = st.builds(
    lambda space, numbers, comma: f"{space}[{comma.join(map(str, numbers))}]",
    SPACES,
    st.lists(NUMBERS, min_size=1, max_size=3),
    st.sampled_from([",", ", ", " ,  "]),
)
WORDS = st.sampled_from(["The lamp", " was lit", ".", " in 1907", "[a]", "[01]", "[1-2]", "[]", "2]", " [", " x", "水"])
ALL_TEXTS = st.lists(CITATIONS | WORDS, max_size=8).map("".join)
TEXTS = ALL_TEXTS.filter(lambda text: not re.search(r"\[[\d,\s]*\[", text))  # "[[1]2]" without 1 is "[2]"
PERMUTATIONS = st.permutations(range(1, N + 1)).map(lambda order: dict(enumerate(order, 1)))
MAPS = PERMUTATIONS.flatmap(
    lambda order: st.sets(NUMBERS).map(lambda gone: {old: None if old in gone else new for old, new in order.items()})
)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It is so [1].", [1]),
        ("[2] It is [1, 12][3] so [3].", [2, 1, 12, 3, 3]),
        ("a[0] [ 1] [1 ] [01] [a] [1-2] [1;2] (1) [] [1,] [1234567890]", [0]),
        ("[1][2] [3]\n[4 ,5]", [1, 2, 3, 4, 5]),
        (" " * 20_000 + "[1]", [1]),
    ],
)
def test_numbers_are_found(text, numbers):
    assert cited_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "numbers", "expected"),
    [
        ("A [1], b [2].", {1: 3, 2: 1}, "A [3], b [1]."),
        ("A [1], b [2].", {1: None, 2: 1}, "A, b [1]."),
        ("[1] A [2].", {1: None, 2: None}, "A."),
        ("[1] [2] A.", {1: None, 2: 2}, "[2] A."),
        ("A [1, 2,3].", {1: 5, 2: None, 3: 4}, "A [5,4]."),
        ("A [1, 2,3].", {1: None, 2: 7, 3: 4}, "A [7,4]."),
        ("A [1][2] [3].", {1: 2, 2: None, 3: 1}, "A [2] [1]."),
        ("A [1, 2], b [1][2], c [2] d [1].", {1: 1, 2: 1}, "A [1], b [1], c [1] d [1]."),  # two are one passage
        ("A [1][1].", {1: 2}, "A [2][2]."),
        ("A [1] [7].", {1: 2}, "A [2] [7]."),  # not a passage of the answer: text
    ],
)
def test_numbers_are_replaced_or_removed(text, numbers, expected):
    assert renumber(text, numbers) == expected


@given(text=TEXTS, order=PERMUTATIONS)
def test_a_permutation_and_its_inverse_give_the_text(text, order):
    changed = renumber(text, order)
    assert cited_numbers(changed) == [order[number] for number in cited_numbers(text)]
    assert renumber(changed, {new: old for old, new in order.items()}) == text


@given(text=TEXTS, first=MAPS, second=PERMUTATIONS)
def test_two_changes_are_one(text, first, second):
    both = {old: None if new is None else second[new] for old, new in first.items()}
    assert renumber(renumber(text, first), second) == renumber(text, both)


@given(text=TEXTS, order=MAPS)
def test_without_citations_nothing_changes_and_all_can_be_removed(text, order):
    bare = without_citations(text)
    assert renumber(text, dict.fromkeys(range(1, N + 1))) == bare
    if not cited_numbers(text):
        assert renumber(text, order) == bare == text
    assert renumber(text, {}) == text


@given(text=ALL_TEXTS)
def test_no_citation_remains_if_all_are_removed(text):
    assert cited_numbers(without_citations(text)) == []


def test_every_number_becomes_the_same():
    assert with_number("[1] A [2, 3][1].", 12) == "[12] A [12, 12][12]."


def test_equal_passages_have_the_first_number():
    first, other = Passage("A"), Passage("B")
    assert numbered([first, other, Passage(" A ")]) == {first.id: 1, other.id: 2}


def test_citations_in_the_history_are_removed_from_the_answers_alone():
    turns = (Turn("user", "Why [1]?"), Turn("assistant", "So [1]."))
    example = Example("a", "And [2]?", ("Yes [1].",), chat_history=turns)
    changed = without_cited_history(example)
    assert changed.chat_history == (turns[0], Turn("assistant", "So."))
    assert (changed.question, changed.answers) == (example.question, example.answers)


@pytest.mark.parametrize(
    ("answers", "num_gold", "words"),
    [
        (["A [1], b [2]."], 2, None),
        (["A [3]."], 2, ("[1] to [2]", "2 gold_docs", "[3]")),
        (["A [1].", "A [0]."], 2, ("[1] to [2]", "[0]")),
        (["A [1]."], 0, ("no gold_docs", "[1]")),
    ],
)
def test_only_gold_passages_can_be_cited(answers, num_gold, words):
    problems = [*citation_problems(answers, num_gold)]
    assert len(problems) == (words is not None)
    assert all(word in problems[0] for word in words or ())
