"""Example files: each field is read, and each invalid field is reported with its place."""

import pytest

from rqa.data.records import Passage, Turn, load_examples
from rqa.errors import InputError

DOC = {"page_content": "Water boils at 100 degrees.", "metadata": {"source": "a.html", "title": "Water"}}
ROW = {"question": "When does water boil?", "gold_answer": "At 100 degrees.", "gold_docs": [DOC]}
ABSENT = object()


def row(**changes):
    return {name: value for name, value in {**ROW, **changes}.items() if value is not ABSENT}


def test_reads_every_field(write):
    history = [{"speaker": "User", "message": "Hello", "time": 3}, {"speaker": "Assistant", "message": "Hi"}]
    negative = {"page_content": "Ice melts.", "fmt_content": "Content: Ice melts.", "metadata": {"score": 0.5}}
    path = write(
        row(chat_history=history, hard_neg_docs=[negative], gold_answer=["At 100.", "100"], id="q1", more={"a": [1]}),
        row(gold_docs=[]),
    )
    first, second = load_examples(path)
    assert (first.id, first.question, first.answers) == ("q1", ROW["question"], ("At 100.", "100"))
    assert first.gold_passages == (Passage("Water boils at 100 degrees.", "Water"),)
    assert first.gold_passages[0].sources == ("a.html",)
    assert first.hard_negatives == (Passage("Ice melts."),)
    assert first.chat_history == (Turn("user", "Hello"), Turn("assistant", "Hi"))
    assert not first.unanswerable
    assert (second.id, second.answers, second.gold_passages) == ("train:2", ("At 100 degrees.",), ())
    assert (second.chat_history, second.hard_negatives) == ((), ())


def test_null_equals_a_missing_optional_field(write):
    nulls = dict.fromkeys(("hard_neg_docs", "chat_history", "id", "unanswerable"))
    docs = [{**DOC, "metadata": {"source": None, "title": None}}, {**DOC, "metadata": None}]
    assert load_examples(write(row(**nulls, gold_docs=docs))) == load_examples(
        write(row(gold_docs=[{"page_content": DOC["page_content"]}] * 2))
    )


def test_only_unanswerable_examples_may_lack_an_answer(write, problems):
    (example,) = load_examples(write(row(gold_answer=ABSENT, unanswerable=True)))
    assert (example.answers, example.unanswerable) == ((), True)
    assert load_examples(write(row(unanswerable=True)))[0].answers == ("At 100 degrees.",)
    for path in (write(row(gold_answer=ABSENT)), write(row(gold_answer=ABSENT, unanswerable=False))):
        assert problems(path) == ['1: field "gold_answer": expected text, got nothing']


def test_gz_has_the_same_examples(write):
    rows = [row(), row(gold_docs=[])]
    assert load_examples(write(*rows, name="train.jsonl.gz")) == load_examples(write(*rows))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question": ABSENT}, '"question": expected text, got nothing'),
        ({"question": None}, '"question": expected text, got null'),
        ({"question": ""}, '"question": expected text, got empty text'),
        ({"question": " \n\u00a0"}, '"question": expected text, got only white space'),
        ({"gold_answer": 3}, '"gold_answer": expected text, got number'),
        ({"gold_answer": True}, '"gold_answer": expected text, got true/false'),
        ({"gold_answer": []}, '"gold_answer": expected text or list of texts, got empty list'),
        ({"gold_answer": [], "unanswerable": True}, '"gold_answer": expected text or list of texts, got empty list'),
        ({"gold_answer": ["a", 2.5]}, '"gold_answer[1]": expected text, got number'),
        ({"gold_answer": ["a", " "]}, '"gold_answer[1]": expected text, got only white space'),
        ({"gold_docs": ABSENT}, '"gold_docs": expected list, got nothing'),
        ({"gold_docs": None}, '"gold_docs": expected list, got null'),
        ({"gold_docs": DOC}, '"gold_docs": expected list, got object'),
        ({"gold_docs": [DOC, "text"]}, '"gold_docs[1]": expected object, got text'),
        ({"gold_docs": [{}]}, '"gold_docs[0].page_content": expected text, got nothing'),
        ({"gold_docs": [{"page_content": " "}]}, '"gold_docs[0].page_content": expected text, got only white space'),
        ({"gold_docs": [{**DOC, "metadata": []}]}, '"gold_docs[0].metadata": expected object, got list'),
        (
            {"gold_docs": [{**DOC, "metadata": {"title": 1}}]},
            '"gold_docs[0].metadata.title": expected text, got number',
        ),
        ({"hard_neg_docs": [DOC, {}]}, '"hard_neg_docs[1].page_content": expected text, got nothing'),
        ({"chat_history": "Hello"}, '"chat_history": expected list, got text'),
        ({"chat_history": [{"speaker": "user"}]}, '"chat_history[0].message": expected text, got nothing'),
        ({"chat_history": [{"message": "Hi"}]}, '"chat_history[0].speaker": expected text, got nothing'),
        ({"id": 7.5}, '"id": expected text, got number'),
        ({"id": True}, '"id": expected text, got true/false'),
        ({"unanswerable": 1}, '"unanswerable": expected true/false, got number'),
    ],
)
def test_a_problem_has_the_field_and_both_types(write, problems, changes, problem):
    assert problems(write(row(), row(**changes))) == [f"2: field {problem}"]


def test_duplicate_ids_are_problems(write, problems):
    path = write(row(id="a"), row(id="train:3"), row(), row(id="a"))
    assert problems(path) == [
        f'3: field "id": "train:3" is already the id of {path}:2',
        f'4: field "id": "a" is already the id of {path}:1',
    ]


# Speakers


def history(*speakers):
    return row(chat_history=[{"speaker": speaker, "message": "m"} for speaker in speakers])


@pytest.mark.parametrize(
    ("speakers", "roles"),
    [
        (("user", "assistant"), "ua"),
        ((" HUMAN ", "System", "Human", "BOT"), "uaua"),
        (("User", "Clara", "user", "clara "), "uaua"),
        (("Clara", "user"), "au"),
        (("Me", "user", "It"), "uua"),
        (("gpt4 correct user", "GPT4 Correct Assistant"), "ua"),
        (("assistant",), "a"),
    ],
)
def test_speakers_become_roles(write, speakers, roles):
    prefixes = {"user_prefix": "GPT4 Correct User", "assistant_prefix": "GPT4 Correct Assistant"}
    if "Me" in speakers:
        prefixes = {"user_prefix": " me "}
    (example,) = load_examples(write(history(*speakers)), **prefixes)
    assert "".join(turn.role[0] for turn in example.chat_history) == roles


@pytest.mark.parametrize(
    ("speakers", "unknown"),
    [
        (("Ann", "Bob"), [0, 1]),
        (("Ann",), [0]),
        (("user", "Ann", "Bob"), [1, 2]),
        (("user", "assistant", "Ann"), [2]),
        (("Ann", "assistant"), [0]),
        (("GPT4 Correct User", "assistant"), [0]),
    ],
)
def test_an_unknown_speaker_is_a_problem(write, problems, speakers, unknown):
    expected = "user, human, assistant, system, bot, --user_prefix or --assistant_prefix"
    assert problems(write(history(*speakers))) == [
        f'1: field "chat_history[{i}].speaker": expected {expected}, got "{speakers[i].casefold()}"' for i in unknown
    ]


def test_the_other_speaker_is_chosen_for_each_row(write):
    first, second = load_examples(write(history("user", "Ann"), history("Bob", "user")))
    roles = [turn.role for turn in first.chat_history + second.chat_history]
    assert roles == ["user", "assistant", "assistant", "user"]


def test_examples_are_not_read_from_a_pickle(write):
    with pytest.raises(InputError, match=r"ends in \.jsonl or \.jsonl\.gz or \.json"):
        load_examples(write(ROW, name="document.pkl"))
