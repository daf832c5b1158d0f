"""dense: retrieval equals brute force over the embeddings, and an index of other inputs is refused."""

import fcntl
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import save_encoder
from world import PLACES, passage, write_jsonl

from rqa.data.corpus import open_passages
from rqa.retrieval.dense import open_retriever
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.index import FaissIndex, StaleIndexError

ROWS = [passage(place, number) for number, place in enumerate(PLACES * 2)]
QUERIES = ["When was the lamp of Oslo lit?", "lima", "It shines over Paris. " * 3, "1907?", "Lamp 3"]
CPU = torch.device("cpu")

open_on_cpu = partial(open_retriever, device=CPU)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda device: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("retriever")


@pytest.fixture(scope="module")
def corpus(folder):
    return open_passages(write_jsonl(folder / "corpus.jsonl", ROWS))


@pytest.mark.parametrize("k", [1, 4, len(ROWS), 50])
def test_retrieving_equals_brute_force_over_the_embeddings(path, corpus, folder, k):
    options = {"query_prefix": "query: ", "passage_prefix": "passage: "}
    retriever = open_on_cpu(corpus, path, folder / "prefixed", **options)
    encoder = Encoder(path, device=CPU, **options)
    scores = encoder.encode_queries(QUERIES) @ encoder.encode_passages(corpus).T
    for hits, row in zip(retriever.retrieve(QUERIES, k), scores, strict=True):
        best = np.argsort(-row, kind="stable")[:k]
        assert [hit.passage for hit in hits] == [corpus[i] for i in best]
        np.testing.assert_allclose([hit.score for hit in hits], row[best], rtol=1e-5, atol=1e-6)


def test_hits_are_distinct(path, corpus, folder):
    retriever = open_on_cpu(corpus, path, folder / "index")
    assert retriever.retrieve([], 3) == []
    (hits,) = retriever.retrieve(QUERIES[:1], 2 * len(corpus))
    assert sorted(hit.passage.id for hit in hits) == sorted(passage.id for passage in corpus)


# The index in its folder


@pytest.fixture
def encoded(monkeypatch):
    """The number of passages of each call of `encode_passages`."""
    calls, plain = [], Encoder.encode_passages
    monkeypatch.setattr(
        Encoder, "encode_passages", lambda self, passages: calls.append(len(passages)) or plain(self, passages)
    )
    return calls


def test_an_index_is_built_once_and_then_loaded(path, with_config, corpus, tmp_path, encoded, progress):
    built, loaded = (open_on_cpu(corpus, path, tmp_path / "index") for _ in range(2))
    assert encoded == [len(corpus)]
    assert [name for name, *_ in progress].count("building the index") == 1
    assert loaded.retrieve(QUERIES, 5) == built.retrieve(QUERIES, 5)
    assert loaded.fingerprint() == built.fingerprint()
    copy = with_config(path, tmp_path / "copy")
    Path(copy, "README.md").write_text("Other words.")
    other = open_on_cpu(corpus, copy, tmp_path / "index")
    assert encoded == [len(corpus)]  # the same checkpoint in another folder
    assert other.fingerprint() == built.fingerprint()


def test_another_query_prefix_needs_no_other_index(path, corpus, tmp_path, encoded):
    built, other = (open_on_cpu(corpus, path, tmp_path / "index", query_prefix=prefix) for prefix in ("", "q: "))
    assert encoded == [len(corpus)]
    assert built.fingerprint() != other.fingerprint()
    assert other.retrieve(["Oslo"], 5) == built.retrieve(["q: Oslo"], 5)


def other_corpus(folder, path, corpus, rows=ROWS[1:]):
    return open_passages(write_jsonl(folder / "other.jsonl", rows)), path, {}


def other_titles(folder, path, corpus):
    return other_corpus(folder, path, corpus, [row | {"metadata": {"title": "Another"}} for row in ROWS])


def other_weights(folder, path, corpus):
    return corpus, save_encoder(folder / "weights", seed=1), {}


def other_pooling(folder, path, corpus):
    return corpus, save_encoder(folder / "pooling", pooling="cls"), {}


def other_length(folder, path, corpus):
    model = SentenceTransformer(path, device="cpu")
    model.max_seq_length = 16
    model.save(str(folder / "length"))
    return corpus, str(folder / "length"), {}


def other_flags(folder, path, corpus, **options):
    return corpus, path, options


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("corpus", other_corpus),
        ("corpus", other_titles),
        ("encoder", other_weights),
        ("encoder", other_pooling),
        ("encoder", other_length),
        ("passage_prefix", partial(other_flags, passage_prefix="p: ")),
        ("factory", partial(other_flags, index_factory="SQ8")),
    ],
)
def test_an_index_of_other_inputs_is_refused(path, corpus, tmp_path, field, change):
    built = open_on_cpu(corpus, path, tmp_path / "index")
    passages, encoder, options = change(tmp_path, path, corpus)
    with pytest.raises(StaleIndexError) as refused:
        open_on_cpu(passages, encoder, tmp_path / "index", **options)
    other = open_on_cpu(passages, encoder, tmp_path / "other", **options)
    old, new = (json.dumps(retriever.index.provenance[field]) for retriever in (built, other))
    assert old != new
    assert other.fingerprint() != built.fingerprint()
    assert f"\n  {field}: expected {new}, got {old}\n" in str(refused.value)
    assert len(FaissIndex.load(tmp_path / "index")) == len(corpus)  # unchanged


def test_two_processes_build_one_index(path, corpus, tmp_path, caplog):
    """The second process waits, and loads the index of the first."""
    caplog.set_level("INFO")
    open_on_cpu(corpus, path, tmp_path / "first")
    (tmp_path / "index").mkdir()
    first = os.open(tmp_path / "index", os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    caplog.clear()
    with ThreadPoolExecutor() as pool:
        second = pool.submit(open_on_cpu, corpus, path, tmp_path / "index")
        while not any("waiting for another process" in message for message in caplog.messages):
            assert not second.done()
            time.sleep(0.01)
        for file in (tmp_path / "first").iterdir():
            shutil.copy(file, tmp_path / "index")
        os.close(first)
        assert second.result(timeout=60).retrieve(QUERIES, 3)
    assert not any("building" in message for message in caplog.messages)
