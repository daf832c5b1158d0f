"""The corpus: the same passages from every file format."""

import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rqa.data.corpus import open_passages
from rqa.data.passage_rows import _quick_row
from rqa.data.records import Passage
from rqa.errors import InputError


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


def test_rows_are_looked_up_by_id(write):
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
def test_every_format_has_the_same_passages(write, pickled, corpus):
    plain = open_passages(write(*corpus))
    for path in (write(*corpus, name="corpus.jsonl.gz"), pickled(*corpus)):
        store = open_passages(path)
        assert [(p, p.sources) for p in store] == [(p, p.sources) for p in plain]
        assert (store.duplicates, store.fingerprint) == (plain.duplicates, plain.fingerprint)


def test_the_fingerprint_covers_ids_and_titles_in_order(write):
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


def test_all_rows_are_checked_at_opening(write, problems, pickled):
    bad = [doc("A"), {"page_content": 1}, {}, doc(" ", 5), doc("A", 5), doc("A")]
    expected = [
        '2: field "page_content": expected text, got number',
        '3: field "page_content": expected text, got no such field; the row has no fields',
        '4: field "metadata.source": expected text, got number',
        '4: field "page_content": expected text, got only white space',
        '5: field "metadata.source": expected text, got number',
    ]
    assert problems(write(*bad), open_passages) == expected
    path = pickled(doc("A"), doc("B", "", 3), doc("\ud800"), doc("C", ["u"]), doc("D", "", {"a": {}}))
    assert [line[0] for line in problems(path, open_passages)] == ["2", "3", "4", "5"]


def test_other_metadata_of_a_pickle_is_ignored(write, pickled):
    extra = {
        "page_content": "A",
        "metadata": {
            **{"source": "1", "title": "t", "seq_num": 3, "score": float("nan"), "next": None},
            **{"tags": ["a", {"b": [1]}], "place": {"page": 1}, 7: "seven", "of": Document(page_content="B")},
        },
    }
    extra["metadata"]["itself"] = extra["metadata"]
    assert open_passages(pickled(extra))[:] == open_passages(write(doc("A", "1", "t")))[:]


@pytest.mark.parametrize("empty", ["", " \n"])
def test_passages_without_text_are_left_out_and_counted(write, pickled, caplog, empty):
    rows = [doc("A"), doc(empty, "1", "t"), doc("B"), doc(empty)]
    for path in (write(*rows), pickled(*rows)):
        caplog.clear()
        assert open_passages(path)[:] == open_passages(write(doc("A"), doc("B"), name="sound.jsonl"))[:]
        assert caplog.messages == [f"{path}: passages without text are left out: 2 rows, first {path}:2"]


def test_a_corpus_of_empty_passages_is_refused(write):
    with pytest.raises(InputError, match="expected at least one passage with text"):
        open_passages(write(doc(""), doc(" ")))


# Changes during a run


def replaced(path, content):
    path.unlink()
    path.write_bytes(content)


def keep_time(path, content):
    """Write without a trace, as a network file system may show it for seconds."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


TEXT_CHANGES = [
    lambda content: content[: len(content) // 2],
    lambda content: b"",
    lambda content: content[::-1],
    lambda content: b'{"page_content": "Other"}'.ljust(len(content)),
]


@pytest.mark.parametrize(
    ("write_over", "change"),
    [
        (Path.write_bytes, lambda content: content.replace(b"Sea", b"Air")),  # a title, with another time
        *((write_over, change) for write_over in (Path.write_bytes, keep_time) for change in TEXT_CHANGES),
    ],
)
def test_a_file_that_was_changed_is_an_error_and_no_other_text(write, write_over, change):
    path = write(*CORPUS)
    store, content = open_passages(path), path.read_bytes()
    expected = store[:]
    write_over(path, change(content))
    for row in (0, 1, 2):
        with pytest.raises(InputError, match=r"train\.jsonl: .* changed while it was read"):
            store[row]
    keep_time(path, content)
    assert open_passages(path)[:] == expected


def test_a_file_that_was_replaced_under_its_name_is_read_as_it_was(write):
    path = write(*CORPUS)
    store = open_passages(path)
    expected = store[:]
    replaced(path, b'{"page_content": "Other"}')
    assert store[:] == expected
    assert [passage.text for passage in open_passages(path)] == ["Other"]


def test_a_file_that_changes_while_it_is_opened_is_an_error(write, monkeypatch):
    path = write(*[doc(f"Passage {i}. " + "a" * 1000) for i in range(50)])
    monkeypatch.setattr("rqa.data.jsonl.BLOCK_BYTES", 10_000)
    seen, plain = [], _quick_row

    def read_and_change(line, *arguments):
        seen.append(line)
        if len(seen) == 20:
            path.write_bytes(path.read_bytes().replace(b"Passage 3", b"Message 3"))
        return plain(line, *arguments)

    monkeypatch.setattr("rqa.data.passage_rows._quick_row", read_and_change)
    with pytest.raises(InputError, match=r"train\.jsonl: .* changed while it was read"):
        open_passages(path)


@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "document.pkl"])
def test_a_packed_file_is_read_once(write, pickled, name):
    path = pickled(*CORPUS) if name == "document.pkl" else write(*CORPUS, name=name)
    store = open_passages(path)
    expected = store[:]
    path.write_bytes(b"")
    assert store[:] == expected


def test_an_empty_pickle_is_refused(pickled):
    with pytest.raises(InputError, match=r"document\.pkl: expected at least one row"):
        open_passages(pickled())
