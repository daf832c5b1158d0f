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
        [problem] = problems(path)
        assert problem.startswith('1: field "gold_answer": expected text, got no such field; the row has "question", ')


def test_gz_has_the_same_examples(write):
    rows = [row(), row(gold_docs=[])]
    assert load_examples(write(*rows, name="train.jsonl.gz")) == load_examples(write(*rows))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question": ABSENT}, '"question": expected text, got no such field; the row has "gold_answer", "gold_docs"'),
        ({"question": None}, '"question": expected text, got null'),
        ({"question": ""}, '"question": expected text, got empty text'),
        ({"question": " \n\u00a0"}, '"question": expected text, got only white space'),
        ({"gold_answer": 3}, '"gold_answer": expected text, got number'),
        ({"gold_answer": True}, '"gold_answer": expected text, got true/false'),
        ({"gold_answer": []}, '"gold_answer": expected text or list of texts, got empty list'),
        ({"gold_answer": [], "unanswerable": True}, '"gold_answer": expected text or list of texts, got empty list'),
        ({"gold_answer": ["a", 2.5]}, '"gold_answer[1]": expected text, got number'),
        ({"gold_answer": ["a", " "]}, '"gold_answer[1]": expected text, got only white space'),
        ({"gold_docs": ABSENT}, '"gold_docs": expected list, got no such field; the row has "question", "gold_answer"'),
        ({"gold_docs": None}, '"gold_docs": expected list, got null'),
        ({"gold_docs": DOC}, '"gold_docs": expected list, got object'),
        ({"gold_docs": [DOC, "text"]}, '"gold_docs[1]": expected object, got text'),
        (
            {"gold_docs": [{}]},
            '"gold_docs[0].page_content": expected text, got no such field; the object has no fields',
        ),
        ({"gold_docs": [{"page_content": " "}]}, '"gold_docs[0].page_content": expected text, got only white space'),
        ({"gold_docs": [{**DOC, "metadata": []}]}, '"gold_docs[0].metadata": expected object, got list'),
        (
            {"gold_docs": [{**DOC, "metadata": {"title": 1}}]},
            '"gold_docs[0].metadata.title": expected text, got number',
        ),
        (
            {"hard_neg_docs": [DOC, {}]},
            '"hard_neg_docs[1].page_content": expected text, got no such field; the object has no fields',
        ),
        ({"chat_history": "Hello"}, '"chat_history": expected list, got text'),
        (
            {"chat_history": [{"speaker": "user"}]},
            '"chat_history[0].message": expected text, got no such field; the object has "speaker"',
        ),
        (
            {"chat_history": [{"message": "Hi"}]},
            '"chat_history[0].speaker": expected text, got no such field; the object has "message"',
        ),
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


# Messages of OpenAI

TURNS = [("user", "Which door is open by day?"), ("assistant", "The south door.")]


def openai(*turns, **fields):
    return row(chat_history=[{"role": role, "content": content, **fields} for role, content in turns])


def test_messages_of_openai_are_those_with_speakers(write):
    parts = [("user", [{"type": "text", "text": "Which door "}, {"text": "is open by day?"}]), TURNS[1]]
    ours = row(chat_history=[{"speaker": role, "message": content} for role, content in TURNS])
    for other in (openai(*TURNS), openai(*parts), openai(("User", TURNS[0][1]), ("model", TURNS[1][1]))):
        assert load_examples(write(other)) == load_examples(write(ours))
    [example] = load_examples(write(openai(("Ann", "a"), ("b", "b"))), user_prefix="ann", assistant_prefix="B")
    assert [turn.role for turn in example.chat_history] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("turn", "field", "words"),
    [
        ({"role": "system", "content": "Be brief."}, "role", ['got "system"', "Remove the message"]),
        ({"role": " Developer", "content": "Be brief."}, "role", ['got "developer"']),
        ({"role": "tool", "content": "42"}, "role", ['got "tool"']),
        ({"role": "Ann", "content": "a"}, "role", ["--user_prefix", 'got "ann"']),
        ({"role": "user", "content": None}, "content", ["expected text, got null"]),
        ({"role": "user", "content": []}, "content", ["empty list"]),
        ({"role": "user", "content": 3}, "content", ["expected text, got number"]),
        ({"role": "user"}, "content", ["no such field", '"role"']),
        ({"content": "a"}, "role", ["no such field", '"content"']),
        ({"role": "user", "message": "a"}, "role", ["got fields of both"]),
        ({"role": "user", "content": "a", "speaker": "user"}, "role", ["got fields of both"]),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "content[0].type", ['"image_url"']),
        ({"role": "user", "content": ["a"]}, "content[0]", ["expected object, got text"]),
    ],
)
def test_a_message_of_openai_that_is_no_turn_of_two_speakers_is_a_problem(write, problems, turn, field, words):
    """A system message is an instruction, which is the same for all examples; left out, it would be lost."""
    history = [{"role": "user", "content": "Hello"}, turn, {"role": "assistant", "content": "Hi"}]
    first, *_ = problems(write(row(chat_history=history)))
    assert first.startswith(f'1: field "chat_history[1].{field}": ')
    assert all(word in first for word in words), first


def test_a_system_message_is_not_the_other_speaker(write, problems):
    assert len(problems(write(openai(("system", "Be brief."), ("user", "Hello"))))) == 1


# Gold


def test_gold_passages_may_be_absent_if_a_retriever_finds_others(write, problems):
    for value in (ABSENT, None, []):
        [example] = load_examples(write(row(gold_docs=value)), gold_required=False)
        assert example.gold_passages == ()
    assert problems(write(row(gold_docs=ABSENT)))
    [example] = load_examples(write(row()), gold_required=False)
    assert example.gold_passages == (Passage("Water boils at 100 degrees.", "Water"),)


def test_an_empty_hard_negative_is_left_out_and_counted(write, caplog, problems):
    empty = {"page_content": " \n", "metadata": {"title": "Ice"}}
    path = write(row(hard_neg_docs=[empty, DOC, empty]), row(), row(hard_neg_docs=[empty]))
    first, second, third = load_examples(path)
    assert (len(first.hard_negatives), second.hard_negatives, third.hard_negatives) == (1, (), ())
    [record] = caplog.records
    assert "hard_neg_docs" in record.getMessage()
    assert f"2 rows, first {path}:1" in record.getMessage()
    assert problems(write(row(gold_docs=[empty])))  # the evidence of an example is not left out
