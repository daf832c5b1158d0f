"""document.pkl: documents are read, and no code in the file runs."""

import os
import pickle
import random
import struct
import sys
import tracemalloc
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rqa.data import localrqa
from rqa.data.localrqa import UnsafePickleError, read_documents

MODULE = "local_rqa.schema.document"


@dataclass
class Document:
    page_content: Any
    fmt_content: Any = ""
    metadata: Any = field(default_factory=dict)


Document.__module__ = MODULE


@pytest.fixture(autouse=True)
def local_rqa(monkeypatch):
    module = ModuleType(MODULE)
    module.Document = Document
    for imported in ("local_rqa", "local_rqa.schema", MODULE):
        monkeypatch.setitem(sys.modules, imported, module)


@pytest.fixture
def read(tmp_path):
    def read(data: bytes) -> list[dict[str, Any]]:
        path = tmp_path / "document.pkl"
        path.write_bytes(data)
        return read_documents(path)

    return read


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A folder that the attacks create, relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "marker"


class Call:
    """Pickles as a call of `function`, which creates the folder `marker`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


MAKE = Call(os.mkdir, "marker")
EVAL = Call(eval, "__import__('os').mkdir('marker')")


def name(module: str, qualified: str) -> bytes:
    """The bytes that push a global, protocol 4."""
    pushed = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, qualified))
    return pushed + b"\x93"


OS, ALLOWED = os.mkdir.__module__, name(MODULE, "Document")
PAGE = b"\x8c\x0cpage_content\x8c\x01a"
METADATA = {"source": "u", "n": 3, "big": 2**40, "x": 0.5, "yes": True, "none": None}
SOUND = [Document("a", "f", METADATA), Document("b")]
PLAIN = [
    {"page_content": "a", "fmt_content": "f", "metadata": METADATA},
    {"page_content": "b", "fmt_content": "", "metadata": {}},
]

LIVE = {  # each of these creates the marker when pickle.loads reads it
    **{f"call, protocol {protocol}": pickle.dumps(MAKE, protocol) for protocol in range(6)},
    **{f"eval, protocol {protocol}": pickle.dumps(EVAL, protocol) for protocol in range(6)},
    "after a document": pickle.dumps([{"page_content": "x"}, EVAL], 2),
    "in metadata": pickle.dumps([{"metadata": {"a": EVAL}}], 4),
    "as a key": b"\x80\x04}" + name(OS, "mkdir") + b"\x8c\x06marker\x85RNs.",
    "INST": f"(S'marker'\ni{OS}\nmkdir\n.".encode(),
    "OBJ": f"(c{OS}\nmkdir\nS'marker'\no.".encode(),
    "in a frame": b"\x80\x04\x95" + struct.pack("<Q", 8) + name(OS, "mkdir") + b"\x8c\x06marker\x85R.",
    "after the call a list": b"\x80\x04" + name(OS, "mkdir") + b"\x8c\x06marker\x85R0].",
}
FOREIGN = {
    "same name in another module": b"\x80\x04" + name("evil", "Document") + b".",
    "sound but for the module": b"\x80\x04]" + name("evil", "Document") + b")\x81}" + PAGE + b"sba.",
    "another name in the module": b"\x80\x04]" + name(MODULE, "os") + b"a.",
    "through the class": b"\x80\x04]" + name(MODULE, "Document.__init__.__globals__") + b"a.",
    "getattr": b"\x80\x04" + name("builtins", "getattr") + b".",
    "GLOBAL": b"\x80\x02]cbuiltins\neval\na.",
    "numpy": b"\x80\x04" + name("numpy.core.multiarray", "_reconstruct") + b".",
    "EXT1": b"\x80\x02\x82\x01.",
    "PERSID": b"Pabc\n.",
    "BINPERSID": b"\x80\x02K\x01Q.",
}
MISUSED = {
    "calls the class": b"\x80\x04]" + ALLOWED + b")Ra.",
    "NEWOBJ_EX": b"\x80\x04]" + ALLOWED + b")}\x92a.",
    "attributes of the class": b"\x80\x04]" + ALLOWED + b"N}\x8c\x0c__setstate__" + ALLOWED + b"s\x86ba.",
    "state of the class": b"\x80\x04]" + ALLOWED + b"}\x8c\x01aNsba.",
    "the class itself": b"\x80\x04]" + ALLOWED + b"a.",
    "own __setstate__": b"\x80\x04]" + ALLOWED + b")\x81}\x8c\x0c__setstate__" + ALLOWED + b"sb}ba.",
    "a class that is text": b"\x80\x04]\x8c\x01a)\x81a.",
    "attribute that is no text": b"\x80\x04]" + ALLOWED + b")\x81}(" + PAGE + b"K\x01K\x02uba.",
    "contains itself": b"\x80\x04]\x94h\x00a.",
    "item of an empty list": b"\x80\x04]]K\x05K\x01sa.",
}
NESTED = {
    "lists": b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b".",
    "dicts": b"\x80\x04" + b"}K\x01" * 200_000 + b"N" + b"s" * 200_000 + b".",
    "documents": b"\x80\x04" + ALLOWED + b"\x94" + b"h\x00)\x81}K\x01" * 100_000 + b"N" + b"sb" * 100_000 + b".",
    "tuple as a key": b"\x80\x04})" + b"\x85" * 1_000_000 + b"Ns.",
}
BOMBS = {  # 2**24 would take 256 MB: enough to be measured, and survived without the check
    "LONG_BINPUT": b"\x80\x02]r" + struct.pack("<I", 2**24) + b".",
    "BINUNICODE": b"\x80\x04]X" + struct.pack("<I", 2**32 - 1) + b"a.",
    "BINUNICODE8": b"\x80\x04]\x8d" + struct.pack("<Q", 2**60) + b"a.",
    "BINBYTES8": b"\x80\x04]\x8e" + struct.pack("<Q", 2**60) + b"a.",
    "BYTEARRAY8": b"\x80\x05]\x96" + struct.pack("<Q", 2**30) + b"a.",
    "FRAME": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"].",
    "lists": b"\x80\x04](" + b"]" * 200_000 + b"e.",
    "dicts": b"\x80\x04](" + b"}" * 200_000 + b"e.",
    "marks": b"\x80\x04]" + b"(" * 200_000 + b".",
    "LONG4": b"\x80\x02]\x8b" + struct.pack("<i", 2**30) + b"a.",
}
NOT_A_PICKLE = {
    "empty": b"",
    "web page": b"<!DOCTYPE html><html>",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
    "gzip": b"\x1f\x8b\x08\x00abc",
    "no such protocol": b"\x80\x09].",
    "huge number as text": b"(I" + b"9" * 5_000 + b"\nl.",
    "frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 13) + b"].",
    "no such memo": b"\x80\x04]h\x05a.",
    "nothing on the stack": b"\x80\x04a.",
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_documents_of_every_protocol_that_needs_no_call(read, protocol):
    assert read(pickle.dumps(SOUND, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", [0, 1])
def test_refuses_protocols_that_need_a_call(read, protocol):
    with pytest.raises(UnsafePickleError, match="protocol 2 to 5"):
        read(pickle.dumps(SOUND, protocol))


def test_reads_many_documents_that_share_texts(read):
    documents = [Document(f"text {i}", "", {"source": SOUND[0].page_content}) for i in range(3_000)]
    assert [document["page_content"] for document in read(pickle.dumps(documents, 4))][-1] == "text 2999"


def test_lists_and_objects_in_metadata_are_read(read):
    metadata = {"tags": ["a", {"b": [1.5, None]}], "place": {"page": 1}, 3: "v"}
    metadata["itself"] = metadata
    [document] = read(pickle.dumps([Document("a", "", metadata)], 4))
    copy = document["metadata"]
    assert copy.pop("itself") is copy
    assert copy == {"tags": ["a", {"b": [1.5, None]}], "place": {"page": 1}, 3: "v"}


def test_missing_fields_have_the_defaults_of_the_class(read):
    document = Document("a")
    del document.fmt_content, document.metadata
    assert read(pickle.dumps([document], 4)) == [{"page_content": "a", "fmt_content": "", "metadata": {}}]


@pytest.mark.parametrize("attack", LIVE)
def test_the_attacks_are_live(marker, attack):
    pickle.loads(LIVE[attack])
    assert marker.exists()


@pytest.mark.parametrize("attack", LIVE)
def test_runs_nothing(read, marker, attack):
    with pytest.raises(UnsafePickleError):
        read(LIVE[attack])
    assert not marker.exists()


@pytest.mark.parametrize("attack", LIVE)
def test_the_scan_alone_is_enough(read, marker, monkeypatch, attack):
    monkeypatch.delattr(localrqa._Unpickler, "find_class")
    with pytest.raises(UnsafePickleError):
        read(LIVE[attack])
    assert not marker.exists()


@pytest.mark.parametrize("attack", LIVE)
def test_the_unpickler_alone_is_enough(read, marker, monkeypatch, attack):
    monkeypatch.setattr(localrqa, "_scan", len)
    with pytest.raises(UnsafePickleError):
        read(LIVE[attack])
    assert not marker.exists()


@pytest.mark.parametrize("data", [*FOREIGN.values(), *MISUSED.values(), *NOT_A_PICKLE.values()])
def test_refuses_anything_but_a_list_of_documents(read, data):
    with pytest.raises(UnsafePickleError, match=r"document\.pkl: expected the list of documents"):
        read(data)


@pytest.mark.parametrize("data", NESTED.values(), ids=NESTED)
def test_survives_deep_nesting(read, data):
    with pytest.raises(UnsafePickleError):
        read(data)


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_memory_is_bounded_by_the_size_of_the_file(read, data):
    tracemalloc.start()
    try:
        with pytest.raises(UnsafePickleError):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_no_load_changes_the_next(read, monkeypatch):
    monkeypatch.setattr(localrqa, "_scan", len)  # which would refuse this already
    with pytest.raises(UnsafePickleError):
        read(MISUSED["attributes of the class"])
    assert read(pickle.dumps(SOUND, 4)) == PLAIN


def test_refuses_a_file_truncated_at_any_byte_and_data_after_the_end(read):
    data = pickle.dumps(SOUND, 4)
    for end in range(len(data)):
        with pytest.raises(UnsafePickleError):
            read(data[:end])
    for more in (b"x", b".", data, pickle.dumps(MAKE)):
        with pytest.raises(UnsafePickleError, match="after its end"):
            read(data + more)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ({"a": 1}, "expected a list, got dict"),
        ("a", "expected a list, got str"),
        ([Document("a"), {"page_content": "a"}], "document 2: expected Document, got dict"),
        ([Document(3)], "document 1: page_content: expected str, got int"),
        ([Document("a", None)], "document 1: fmt_content: expected str, got NoneType"),
        ([Document("a", "", [])], "document 1: metadata: expected dict, got list"),
        ([Document(b"x")], "operation REDUCE|operation SHORT_BINBYTES"),
        ([Document("a", "", {"size": (1, 2)})], r'operation TUPLE2 at byte \d+ after the text "size"'),
        ([Document("a", "", {"date": date(2024, 1, 2)})], r"operation \w+ at byte \d+ after .*\.jsonl"),
    ],
)
def test_a_problem_has_the_document_and_the_field(read, documents, message):
    with pytest.raises(UnsafePickleError, match=message):
        read(pickle.dumps(documents, 4))


def test_refuses_missing_and_unknown_fields(read):
    less, more = Document("a"), Document("a")
    del less.page_content
    more.score = 1
    for document in (less, more):
        with pytest.raises(UnsafePickleError, match="document 1: expected fields page_content, fmt_content"):
            read(pickle.dumps([document], 4))


def test_a_mutated_file_is_read_or_refused(read, marker):
    rng = random.Random(0)
    live = [MAKE, *SOUND]
    sources = [pickle.dumps(value, protocol) for protocol in (2, 4, 5) for value in (SOUND, live)]
    num_read = 0
    for _ in range(4_000):
        try:
            documents = read(mutate(rng, rng.choice(sources)))
        except UnsafePickleError:
            continue
        num_read += 1
        for document in documents:
            assert [type(document[key]) for key in ("page_content", "fmt_content", "metadata")] == [str, str, dict]
            assert len(document) == 3
    assert not marker.exists()
    assert 100 < num_read < 3_000  # the mutations are neither all harmless nor all fatal


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Change, insert, remove or repeat a few bytes at one to three places."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(changed))
        end = start + rng.randint(0, 4)
        with_what = [rng.randbytes(rng.randint(0, 3)), b"", bytes(changed[start:end]) * 2, rng.choice(OPERATIONS)]
        changed[start:end] = rng.choice(with_what)
    return bytes(changed)


OPERATIONS = [
    name.encode("latin-1") for name in "(.0123IFJKLMNPQRSTUVXabcdeghijlopqrstu])}\x81\x82\x85\x86\x87\x8c\x93\x94"
]
