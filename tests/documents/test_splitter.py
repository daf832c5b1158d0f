"""Passages: within the limit, nothing lost, code and tables whole where they fit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_documents import visible

from rqa.documents.convert import Document
from rqa.documents.sections import markdown_marks, rst_marks, sections_of, text_marks
from rqa.documents.splitter import Splitter
from rqa.errors import InputError


def words(text):
    """Return a number of tokens: words, and two special ones."""
    return len(text.split()) + 2


def document(text, marks=markdown_marks, name="lamps"):
    return Document(name, text, sections_of(text, marks(text)))


def split(text, limit, count=words, marks=markdown_marks, name="lamps"):
    return [each.passage for each in Splitter(count, limit).split(document(text, marks, name), "a.md")]


def test_titles_are_heading_paths_and_sources_are_offsets():
    text = "Preface.\n\n# Oil\n\nOne.\n\n## Wick *new*\n\nTwo.\n\n# Gas\n\nThree.\n"
    passages = split(text, 20)
    assert [(each.title, each.text) for each in passages] == [
        ("lamps", "Preface."),
        ("lamps > Oil", "# Oil\n\nOne."),
        ("lamps > Oil > Wick new", "## Wick *new*\n\nTwo."),
        ("lamps > Gas", "# Gas\n\nThree."),
    ]
    for each in passages:
        start, end = map(int, each.sources[0].removeprefix("a.md#").split("-"))
        assert text[start:end] == each.text


def test_blocks_are_joined_up_to_the_limit():
    text = "one two\n\nthree four\n\nfive six\n\nseven"
    assert [each.text for each in split(text, 7)] == ["one two\n\nthree four", "five six\n\nseven"]


CODE = "```\nfirst line here\n\nsecond line here\n```"
TABLE = "| a | b |\n|---|---|\n| c | d |"


@pytest.mark.parametrize("block", [CODE, TABLE])
@pytest.mark.parametrize("before", ["", "- item\n\n  ", "One. Two. Three. Four.\n\n"])
def test_code_and_tables_that_fit_are_whole(block, before):
    text = f"{before}{block.replace(chr(10), chr(10) + ' ' * 2 * before.startswith('-'))}\n\nLast words of it.\n"
    for limit in range(words(f"lamps\n{block}"), 30):
        assert sum(visible(block) in visible(each.text) for each in split(text, limit)) == 1


def test_code_that_is_too_long_is_cut_at_line_ends():
    lines = [f"word{i} = 1. And {i}" for i in range(40)]
    text = "\n".join(["```", *lines, "```"])
    splitter = Splitter(words, 20)
    parts = [each.passage.text.split("\n") for each in splitter.split(document(text), "a.md")]
    assert [line for part in parts for line in part] == text.split("\n")
    assert len(parts) > 5
    assert splitter.num_cut_blocks == {"lines": 1, "prose": 0, "heading": 0}


def test_prose_that_is_too_long_is_cut_at_sentences():
    sentences = [f"Sentence number {i} has\nseven words." for i in range(9)]
    parts = [each.text for each in split(" ".join(sentences), 20)]
    assert parts == [" ".join(sentences[i : i + 2]) for i in range(0, 9, 2)]


def test_a_word_that_is_too_long_is_cut():
    passages = split("x" * 1000, 100, count=len)
    assert "".join(each.text for each in passages) == "x" * 1000
    assert max(len(each.content) for each in passages) <= 100


def test_a_title_takes_at_most_half_of_the_tokens():
    text = "# One heading\n\n## Of many words\n\n### The last\n\nThe text of it has some words.\n"
    assert {each.title for each in split(text, 30)} == {"lamps > One heading > Of many words > The last"}
    assert {each.title for each in split(text, 16)} == {"lamps > The last"}
    assert max(words(each.content) for each in split(f"# {'long ' * 100}\n\nThe text.", 16)) <= 16


def test_a_limit_that_the_special_tokens_fill_is_an_error():
    with pytest.raises(InputError, match=r"--max_passage_tokens.*twice the 9 tokens.*got 17"):
        Splitter(lambda text: len(text) + 9, 17)


PIECES = st.sampled_from(
    (
        *("# Oil\n", "## Wick\n", "\n", "\n\n", "A word. ", "And one more, of it.\n", "- item\n", "```\n"),
        *("    code()\n", "| a | b |\n|---|---|\n| c | d |\n", "Oil\n---\n", "longest" * 9, "\t", " "),
        *("é\u00a0", "日本語の文。", "a::\n", "\x0c"),
    )
)


@pytest.mark.parametrize("marks", [markdown_marks, rst_marks, text_marks])
@pytest.mark.parametrize("count", [words, lambda text: len(text) + 2, lambda text: len(text) + 3 * text.count("\n")])
@given(pieces=st.lists(PIECES, max_size=30), limit=st.integers(16, 40))
@settings(max_examples=200)
def test_nothing_is_lost_and_every_passage_is_within_the_limit(marks, count, pieces, limit):
    text = "".join(pieces)
    passages = split(text, limit, count, marks)
    assert visible("".join(each.text for each in passages)) == visible(text)
    assert all(count(each.content) <= limit for each in passages)
    assert all(each.text.strip() for each in passages)
