"""Fields: every field of an object is read, missing, or named as not read."""

import pytest

from rqa.data.fields import Fields, MissingFields, nearest_field, quoted


def read_passage(row):
    """Read a passage with an optional title and an optional list of others."""
    texts = [row.text("page_content"), row.object("metadata", optional=True).text("title", optional=True)]
    return texts + [read_passage(other) for other in row.objects("others", optional=True)]


def unread(values):
    row = Fields(values)
    read_passage(row)
    return sorted(row.unread())


def test_a_missing_field_is_reported_with_the_fields_that_the_row_has():
    row = Fields({"contents": "a", "id": 7})
    row.text("page_content")
    [problem] = row.problems
    assert isinstance(problem, MissingFields)
    assert problem == (
        'field "page_content": expected text, got no such field; the row has "contents", "id" (is "contents" meant?)'
        ". recipes/convert.py converts this format"
    )


def test_all_missing_fields_of_an_object_are_one_problem():
    row = Fields({"query": "a", "answer": "b", "extra": 1, "score": "x"})
    row.text("question")
    row.flag("score")  # another problem, between the two
    row.texts("gold_answer")
    row.objects("gold_docs")
    missing, wrong = row.problems
    assert missing.startswith('fields "question", "gold_answer", "gold_docs": expected them, got no such fields; ')
    hint = '(is "query" meant for "question"? is "answer" meant for "gold_answer"?)'
    assert missing.endswith(f"{hint}. recipes/convert.py converts this format")
    assert wrong == 'field "score": expected true/false, got text'
    assert row.num_missing == 3


def test_the_fields_of_a_row_are_listed_on_one_line_of_limited_length():
    row = Fields({f"\x1b[2J\n{i}" + "x" * 500: i for i in range(100)})
    row.text("question")
    [problem] = row.problems
    assert problem.endswith("and 90 more")
    assert len(problem) < 1000
    assert problem.isprintable()


def test_a_field_that_is_not_read_is_named_with_its_place():
    assert unread({"page_content": "a", "titel": "b", "page": 3}) == [("page", ""), ("titel", "")]
    assert unread({"page_content": "a", "Metadata": {"title": "T"}}) == [("Metadata", "metadata")]
    others = [{"page_content": "a"}, {"page_content": "b", "metdata": {"title": "T"}, "n": 1}]
    assert unread({"page_content": "a", "others": others}) == [
        ("others[].metdata", "others[].metadata"),
        ("others[].n", ""),
    ]


def test_names_of_the_user_in_metadata_are_free_but_misspelled_ones_are_named():
    metadata = {"titel": "T", "seq_num": 4, "description": "d", "text": "whole page"}
    assert unread({"page_content": "a", "metadata": metadata}) == [("metadata.titel", "metadata.title")]


@pytest.mark.parametrize("empty", [None, "", [], {}, False, 0])
def test_fields_without_content_are_not_named(empty):
    assert unread({"page_content": "a", "titel": empty, "fmt_content": "Content: a"}) == []


def test_a_field_is_misnamed_only_if_the_known_one_is_missing_or_empty():
    values = {"metadata": {"title": "T"}, "metdata": {"title": "T"}}
    assert unread({"page_content": "a", **values}) == [("metdata", "")]
    assert unread({"page_content": "a", **values, "metadata": {}}) == [("metdata", "metadata")]
    row = Fields({"answers": ["a"], "answer": "a"})
    assert (row.has("answers"), row.has("gold_answer")) == (True, False)
    assert [*row.unread()] == [("answer", "")]  # answers replaces gold_answer


def test_a_field_that_a_problem_names_is_not_named_again():
    row = Fields({"contents": "a", "body": "b"})
    row.text("page_content")
    assert '(is "contents" meant? is "body" meant?)' in row.problems[0]
    assert [*row.unread()] == []


KNOWN = frozenset(
    "id question gold_answer answers target gold_docs hard_neg_docs chat_history ctxs unanswerable".split()
)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("chat_histroy", "chat_history"),
        ("chatHistory", "chat_history"),
        ("chat-history", "chat_history"),
        ("history", "chat_history"),
        ("messages", "chat_history"),
        ("hard_negative_docs", "hard_neg_docs"),
        ("hard_negatives", "hard_neg_docs"),
        ("hard_negative_ctxs", "hard_neg_docs"),
        ("is_unanswerable", "unanswerable"),
        ("is_impossible", "unanswerable"),
        ("answer", "gold_answer"),
        ("response", "gold_answer"),
        ("output", "gold_answer"),
        ("golden_answers", "gold_answer"),
        ("Answers", "answers"),
        ("query", "question"),
        ("input", "question"),
        ("Question", "question"),
        ("positive_ctxs", "gold_docs"),
        ("gold_doc", "gold_docs"),
        ("contexts", "ctxs"),
        ("_id", "id"),
        ("question_type", ""),
        ("dataset", ""),
        ("difficulty", ""),
        ("year", ""),
        ("time", ""),
        ("x" * 10**6, ""),
    ],
)
def test_the_nearest_known_field(name, known):
    assert nearest_field(name, KNOWN) == known


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[(3, 3.0), (-2.5, -2.5), ("1.5", 1.5), (" 7 ", 7.0)],
        *[(True, None), ("high", None), ([], None), (None, None), ("nan", None), ("inf", None), (10**400, None)],
    ],
)
def test_a_number_is_finite_and_may_be_a_text(value, number):
    assert Fields({"score": value}).number("score") == number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", '"a"'),
        ("\x1b]0;owned\x07", r'"\u001b]0;owned\u0007"'),
        ("é\n", r'"é\n"'),
        ("\x9b2J", r'"\u009b2J"'),
        ("\ufeffid\u202e", r'"\ufeffid\u202e"'),
        ("\ud800", r'"\ud800"'),
        ("x" * 100, '"' + "x" * 59 + '…"'),
    ],
)
def test_a_quoted_value_is_printable_and_short(value, text):
    assert quoted(value) == text
    assert text.encode()
