"""Every row is checked at the door, and every way of storing a corpus gives the same passages."""

import gzip
import json
import pickle
import sys
from types import ModuleType

import pytest

from rqa.data.corpus import open_passages
from rqa.data.jsonl import DataError
from rqa.data.records import Passage, Turn, load_examples
from rqa.errors import InputError

DOC = {"page_content": "Water boils at 100 degrees.", "metadata": {"source": "a.html", "title": "Water"}}
ROW = {"question": "When does water boil?", "gold_answer": "At 100 degrees.", "gold_docs": [DOC]}
ABSENT = object()


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="train.jsonl"):
        """Write rows, each an object or the bytes of a line, and return the path."""
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        data = b"".join(line + b"\n" for line in lines)
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


def row(**changes):
    return {name: value for name, value in {**ROW, **changes}.items() if value is not ABSENT}


def problems(path, read=load_examples, **options):
    """Read a file that must be refused; return the problems without the path."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


# Examples


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


def test_null_in_an_optional_field_is_absence(write):
    nulls = dict.fromkeys(("hard_neg_docs", "chat_history", "id", "unanswerable"))
    docs = [{**DOC, "metadata": {"source": None, "title": None}}, {**DOC, "metadata": None}]
    assert load_examples(write(row(**nulls, gold_docs=docs))) == load_examples(
        write(row(gold_docs=[{"page_content": DOC["page_content"]}] * 2))
    )


def test_only_an_unanswerable_example_may_lack_an_answer(write):
    (example,) = load_examples(write(row(gold_answer=ABSENT, unanswerable=True)))
    assert (example.answers, example.unanswerable) == ((), True)
    assert load_examples(write(row(unanswerable=True)))[0].answers == ("At 100 degrees.",)
    for path in (write(row(gold_answer=ABSENT)), write(row(gold_answer=ABSENT, unanswerable=False))):
        assert problems(path) == ['1: field "gold_answer": expected text, found nothing']


def test_gz_gives_the_same_examples(write):
    rows = [row(), row(gold_docs=[])]
    assert load_examples(write(*rows, name="train.jsonl.gz")) == load_examples(write(*rows))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"question": ABSENT}, '"question": expected text, found nothing'),
        ({"question": None}, '"question": expected text, found null'),
        ({"question": ""}, '"question": expected text, found empty text'),
        ({"question": " \n\u00a0"}, '"question": expected text, found only white space'),
        ({"gold_answer": 3}, '"gold_answer": expected text, found number'),
        ({"gold_answer": True}, '"gold_answer": expected text, found true/false'),
        ({"gold_answer": []}, '"gold_answer": expected text or list of texts, found empty list'),
        ({"gold_answer": [], "unanswerable": True}, '"gold_answer": expected text or list of texts, found empty list'),
        ({"gold_answer": ["a", 2.5]}, '"gold_answer[1]": expected text, found number'),
        ({"gold_answer": ["a", " "]}, '"gold_answer[1]": expected text, found only white space'),
        ({"gold_docs": ABSENT}, '"gold_docs": expected list, found nothing'),
        ({"gold_docs": None}, '"gold_docs": expected list, found null'),
        ({"gold_docs": DOC}, '"gold_docs": expected list, found object'),
        ({"gold_docs": [DOC, "text"]}, '"gold_docs[1]": expected object, found text'),
        ({"gold_docs": [{}]}, '"gold_docs[0].page_content": expected text, found nothing'),
        ({"gold_docs": [{"page_content": " "}]}, '"gold_docs[0].page_content": expected text, found only white space'),
        ({"gold_docs": [{**DOC, "metadata": []}]}, '"gold_docs[0].metadata": expected object, found list'),
        (
            {"gold_docs": [{**DOC, "metadata": {"title": 1}}]},
            '"gold_docs[0].metadata.title": expected text, found number',
        ),
        ({"hard_neg_docs": [DOC, {}]}, '"hard_neg_docs[1].page_content": expected text, found nothing'),
        ({"chat_history": "Hello"}, '"chat_history": expected list, found text'),
        ({"chat_history": [{"speaker": "user"}]}, '"chat_history[0].message": expected text, found nothing'),
        ({"chat_history": [{"message": "Hi"}]}, '"chat_history[0].speaker": expected text, found nothing'),
        ({"id": 7.5}, '"id": expected text, found number'),
        ({"id": True}, '"id": expected text, found true/false'),
        ({"unanswerable": 1}, '"unanswerable": expected true/false, found number'),
    ],
)
def test_names_the_field_and_both_types(write, changes, problem):
    assert problems(write(row(), row(**changes))) == [f"2: field {problem}"]


def test_ids_are_distinct(write):
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
def test_a_speaker_that_could_be_either_is_a_problem(write, speakers, unknown):
    found = problems(write(history(*speakers)))
    assert [line.partition(": cannot tell")[0] for line in found] == [
        f'1: field "chat_history[{i}].speaker"' for i in unknown
    ]


def test_the_other_speaker_is_found_for_each_row(write):
    first, second = load_examples(write(history("user", "Ann"), history("Bob", "user")))
    roles = [turn.role for turn in first.chat_history + second.chat_history]
    assert roles == ["user", "assistant", "assistant", "user"]


# Passages


class Document:
    def __init__(self, **fields):
        self.__dict__.update(fields)


Document.__module__ = "local_rqa.schema.document"


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    module = ModuleType(Document.__module__)
    module.Document = Document
    for name in ("local_rqa", "local_rqa.schema", Document.__module__):
        monkeypatch.setitem(sys.modules, name, module)

    def pickled(*documents):
        path = tmp_path / "document.pkl"
        path.write_bytes(pickle.dumps([Document(**document) for document in documents], 4))
        return path

    return pickled


def doc(text, source="", title=""):
    return {"page_content": text, "metadata": {"source": source, "title": title}}


CORPUS = [doc("A b", "1"), doc("C", "2", "Sea"), doc("A  b\n", "3"), doc("D"), doc("A b", "1"), doc("A b", "4", "Bee")]


def test_a_store_is_a_sequence_of_passages(write):
    store = open_passages(write(doc("A"), doc("B", "b.html", "Bee"), doc("C")))
    texts = ["A", "B", "C"]
    assert len(store) == 3
    assert [passage.text for passage in store] == texts
    assert [store[i].text for i in (-3, -2, -1)] == texts
    for index in (slice(1), slice(-2, None), slice(None, None, -1), slice(5, 9)):
        assert [passage.text for passage in store[index]] == texts[index]
    for index in (3, -4):
        with pytest.raises(IndexError):
            store[index]
    assert (store[1].title, store[1].sources, store.duplicates) == ("Bee", ("b.html",), 0)
    assert Passage("C") in store


def test_rows_are_found_by_id(write):
    store = open_passages(write(*CORPUS))
    assert [store.row_of(passage.id) for passage in store] == [0, 1, 2]
    assert store.row_of(Passage("A b ").id) == 0
    assert store.row_of(Passage("E").id) is None
    assert store.row_of("no id") is None


def test_one_text_is_one_passage_with_all_its_sources(write):
    store = open_passages(write(*CORPUS))
    assert [(passage.text, passage.title) for passage in store] == [("A b", ""), ("C", "Sea"), ("D", "")]
    assert [passage.sources for passage in store] == [("1", "3", "4"), ("2",), ()]
    assert store[-3].sources == ("1", "3", "4")
    assert store.duplicates == 3


@pytest.mark.parametrize("corpus", [CORPUS, [doc("\u2028\u00e9\U0001f600", "s"), doc("e\u0301"), doc("\u00e9")]])
def test_every_format_gives_the_same_store(write, pickled, corpus):
    plain = open_passages(write(*corpus))
    for path in (write(*corpus, name="corpus.jsonl.gz"), pickled(*corpus)):
        store = open_passages(path)
        assert [(p, p.sources) for p in store] == [(p, p.sources) for p in plain]
        assert (store.duplicates, store.fingerprint) == (plain.duplicates, plain.fingerprint)


def test_the_fingerprint_is_of_ids_and_titles_in_order(write):
    def fingerprint(*rows):
        return open_passages(write(*rows)).fingerprint

    same = fingerprint(doc("A", "1", "t"), doc("B"))
    assert len(bytes.fromhex(same)) == 32
    assert fingerprint(doc("A", "2", "t"), doc("B"), doc("A", "3", "u")) == same
    assert fingerprint(doc(" A ", "1", "t"), {"page_content": "B", "more": 1}) == same
    others = [
        fingerprint(doc("B"), doc("A", "", "t")),
        fingerprint(doc("A", "", "u"), doc("B")),
        fingerprint(doc("A"), doc("B", "", "t")),
        fingerprint(doc("A", "", "t")),
        fingerprint(doc("A", "", f"t\n{Passage('B').id} ")),
        fingerprint(doc("A", "", f"t\n{Passage('B').id} 0 ")),
    ]
    assert len({same, *others}) == 7


def test_all_rows_are_checked_at_opening(write, pickled):
    bad = [doc("A"), {"page_content": 1}, {}, doc(" "), doc("A", 5), doc("A")]
    expected = [
        '2: field "page_content": expected text, found number',
        '3: field "page_content": expected text, found nothing',
        '4: field "page_content": expected text, found only white space',
        '5: field "metadata.source": expected text, found number',
    ]
    assert problems(write(*bad), open_passages) == expected
    path = pickled(doc("A"), doc(" "), doc("B", "", 3), doc("\ud800"))
    assert [line[0] for line in problems(path, open_passages)] == ["2", "3", "4"]


def test_other_metadata_of_a_pickle_is_ignored(write, pickled):
    extra = {**DOC, "metadata": {**DOC["metadata"], "seq_num": 3, "score": float("nan"), "next": None}}
    assert open_passages(pickled(extra))[:] == open_passages(write(DOC))[:]


def test_a_pickle_is_refused_where_it_is_empty_or_has_examples(pickled):
    with pytest.raises(InputError, match=r"document\.pkl: the file is empty"):
        open_passages(pickled())
    with pytest.raises(InputError, match=r"ends in \.jsonl or \.jsonl\.gz or \.json$"):
        load_examples(pickled(DOC))
