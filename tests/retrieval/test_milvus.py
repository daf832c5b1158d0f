"""milvus: retrieval from a database equals brute force and FAISS, and an interrupted build loses nothing."""

import socket
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from milvus_server import MilvusServer
from pymilvus import MilvusClient
from tiny_models import save_encoder, save_reranker
from world import PLACES, passage, write_jsonl

from rqa.cli.retrieval_args import IndexArgs
from rqa.data.corpus import open_passages
from rqa.errors import InputError
from rqa.retrieval import milvus
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.index import StaleIndexError
from rqa.retrieval.opening import open_retriever
from rqa.timing import record_spans

ROWS = [passage(place, number) for number, place in enumerate(PLACES * 2)]
TIES = [{"page_content": text} for text in ("LAMP of Oslo", "lamp of oslo", "Lamp of Oslo", "LAMP OF OSLO")]
QUERIES = ["When was the lamp of Oslo lit?", "lima", "lamp of oslo", "1907?", "Lamp 3"]
KEY = "a-key-of-twenty-characters"
CPU = torch.device("cpu")
open_on_cpu = partial(open_retriever, device=CPU)


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda device: False)
    monkeypatch.setattr(milvus, "BLOCK", 4)
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)


@pytest.fixture
def server(tmp_path):
    with MilvusServer(tmp_path / "server.db") as server:
        yield server


@pytest.fixture
def encoded(monkeypatch):
    """The passages of each call of `encode_passages`."""
    calls, plain = [], Encoder.encode_passages
    monkeypatch.setattr(Encoder, "encode_passages", lambda self, block: calls.append([*block]) or plain(self, block))
    return calls


def corpus_of(folder, rows, name="corpus"):
    return open_passages(write_jsonl(folder / f"{name}.jsonl", rows))


@pytest.fixture
def corpus(tmp_path):
    return corpus_of(tmp_path, ROWS + TIES)


def assert_same_hits(retriever, other, k, queries=QUERIES):
    for hits, expected in zip(retriever.retrieve(queries, k), other.retrieve(queries, k), strict=True):
        assert [hit.passage for hit in hits] == [hit.passage for hit in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in expected], rtol=1e-5, atol=1e-6)


# Search


@pytest.mark.parametrize("is_server", [False, True])
def test_retrieval_from_a_database_equals_brute_force_and_faiss(path, corpus, tmp_path, server, is_server):
    store = server.url if is_server else str(tmp_path / "store")
    options = {"query_prefix": "query: ", "passage_prefix": "passage: "}
    retriever = open_on_cpu(corpus, path, tmp_path / "index", store=store, **options)
    flat = open_on_cpu(corpus, path, tmp_path / "flat", **options)
    encoder = Encoder(path, device=CPU, **options)
    scores = encoder.encode_queries(QUERIES) @ encoder.encode_passages(corpus).T
    for k in (1, 4, len(corpus), 50):
        assert_same_hits(retriever, flat, k)
        best = [np.argsort(-row, kind="stable")[:k] for row in np.round(scores, 6)]
        for hits, rows in zip(retriever.retrieve(QUERIES, k), best, strict=True):
            assert [hit.passage for hit in hits] == [corpus[i] for i in rows]
    assert retriever.retrieve([], 3) == []
    assert retriever.fingerprint() != flat.fingerprint()
    retriever.verify()


def test_ties_past_the_last_hit_are_in_order_of_the_corpus(path, tmp_path, server, monkeypatch):
    monkeypatch.setattr(milvus, "EXTRA_CANDIDATES", 1)
    texts = ["".join(c.upper() if i >> n & 1 else c for n, c in enumerate("lampof")) for i in range(40)]
    corpus = corpus_of(tmp_path, [{"page_content": text} for text in texts])
    monkeypatch.setattr(Encoder, "encode_passages", lambda self, block: np.ones((len(block), 32), np.float32))
    retriever = open_on_cpu(corpus, path, tmp_path / "index", store=server.url)
    rows, scores = retriever.search(QUERIES[:2], 3)
    assert rows.tolist() == [[0, 1, 2]] * 2
    assert (scores == scores[:, :1]).all()


def test_a_graph_is_searched_with_the_flag_of_the_index(path, corpus, tmp_path, server):
    graph, flat = (
        open_on_cpu(corpus, path, tmp_path / "index", store=server.url, index_factory=factory)
        for factory in ("HNSW8", "Flat")
    )
    for hits, expected in zip(graph.retrieve(QUERIES, 5), flat.retrieve(QUERIES, 5), strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in expected], rtol=1e-5)
    assert graph.fingerprint() != flat.fingerprint()
    kinds = {MilvusClient(server.url).describe_index(each.index.name, "vector")["index_type"] for each in (graph, flat)}
    assert kinds == {"HNSW", "FLAT"}


def test_hybrid_retrieval_and_a_reranker_work_on_a_database(path, corpus, tmp_path, server):
    reranker = save_reranker(tmp_path / "reranker", Path(path).with_name("plain"))
    options = {"retriever": "hybrid", "reranker_model": reranker}
    retriever = open_on_cpu(corpus, path, tmp_path / "index", store=server.url, **options)
    assert_same_hits(retriever, open_on_cpu(corpus, path, tmp_path / "flat", **options), 5)
    with record_spans() as spans:
        retriever.retrieve(QUERIES, 3)
    assert {"embed", "search", "bm25", "fuse", "rerank"} == {span.stage for span in spans}


# Writing


def test_vectors_are_written_once_and_texts_stay_in_the_corpus(path, corpus, tmp_path, server, encoded):
    first, second = (open_on_cpu(corpus, path, tmp_path / "index", store=server.url) for _ in range(2))
    assert [len(block) for block in encoded] == [4] * (len(corpus) // 4) + [len(corpus) % 4] * bool(len(corpus) % 4)
    assert first.fingerprint() == second.fingerprint()
    client = MilvusClient(server.url)
    [name] = client.list_collections()
    [row] = client.query(name, filter=f'id == "{corpus[3].id}"')
    assert row.keys() == {"id", "content", "vector"}
    np.testing.assert_array_equal(row["vector"], np.float32(row["vector"]))


def test_a_changed_corpus_embeds_only_new_passages(path, corpus, tmp_path, server, encoded, caplog):
    caplog.set_level("INFO")
    old = open_on_cpu(corpus, path, tmp_path / "index", store=server.url)
    added, retitled = passage("Quito", 99), ROWS[5] | {"metadata": {"title": "Another"}}
    changed = corpus_of(tmp_path, [added, *ROWS[1:5], retitled, *ROWS[6:]], "changed")
    encoded.clear()
    new = open_on_cpu(changed, path, tmp_path / "index", store=server.url)
    assert sorted(each.title for block in encoded for each in block) == sorted([changed[0].title, "Another"])
    assert "2 embedded" in caplog.text
    assert_same_hits(new, open_on_cpu(changed, path, tmp_path / "flat"), len(changed))
    assert_same_hits(old, open_on_cpu(corpus, path, tmp_path / "flat-old"), 5)
    assert new.fingerprint() != old.fingerprint()


def test_vectors_of_other_inputs_are_never_mixed(path, corpus, tmp_path, server, encoded):
    options = [{}, {"passage_prefix": "passage: "}]
    encoders = [path, save_encoder(tmp_path / "weights", seed=1)]
    names = {
        open_on_cpu(corpus, encoder, tmp_path / "index", store=server.url, **each).index.name
        for each in options
        for encoder in encoders
    }
    assert len(names) == 4
    assert sum(map(len, encoded)) == 4 * len(corpus)


def test_a_build_that_is_interrupted_continues_where_it_was(path, corpus, tmp_path, server, encoded, monkeypatch):
    plain, writes = milvus.MilvusIndex.add, []

    def add(self, passages, vectors):
        if len(writes) == 2:
            raise KeyboardInterrupt
        plain(self, passages, vectors)
        writes.append(len(passages))

    monkeypatch.setattr(milvus.MilvusIndex, "add", add)
    with pytest.raises(KeyboardInterrupt):
        open_on_cpu(corpus, path, tmp_path / "index", store=server.url)
    monkeypatch.setattr(milvus.MilvusIndex, "add", plain)
    encoded.clear()
    retriever = open_on_cpu(corpus, path, tmp_path / "index", store=server.url)
    assert sum(map(len, encoded)) == len(corpus) - sum(writes)
    assert_same_hits(retriever, open_on_cpu(corpus, path, tmp_path / "flat"), len(corpus))


# Errors


@pytest.mark.parametrize("method", ["Upsert", "Search"])
def test_calls_that_fail_are_repeated(path, corpus, tmp_path, server, method):
    server.faults[method] = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]
    retriever = open_on_cpu(corpus, path, tmp_path / "index", store=server.url)
    assert_same_hits(retriever, open_on_cpu(corpus, path, tmp_path / "flat"), 5)
    assert server.faults[method] == []


def test_a_call_that_always_fails_is_an_error(path, corpus, tmp_path, server, monkeypatch):
    monkeypatch.setattr(milvus, "TIMEOUT", 0.5)
    server.faults["Upsert"] = [grpc.StatusCode.UNAVAILABLE] * 999
    with pytest.raises(InputError, match=rf"--store {server.url}: .*UNAVAILABLE.*Check that the server runs"):
        open_on_cpu(corpus, path, tmp_path / "index", store=server.url)


def test_the_key_comes_from_the_environment_and_is_in_no_message(path, corpus, tmp_path, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    with MilvusServer(tmp_path / "server.db", key=KEY) as server:
        open_it = partial(open_on_cpu, corpus, path, tmp_path / "index", store=server.url, store_key_name="OTHER")
        for key in ("", f"{KEY[:-1]}x"):
            monkeypatch.setenv("OTHER", key)
            with pytest.raises(InputError, match="Set OTHER to a key of the server") as problem:
                open_it()
            assert not key or key not in str(problem.value)
        monkeypatch.setenv("OTHER", KEY)
        assert len(open_it().retrieve(QUERIES[:1], 3)[0]) == 3
    assert KEY[:-1] not in caplog.text


def test_a_refused_connection_is_an_error(path, corpus, tmp_path, encoded):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=r"--store http://127.0.0.1:\d+: .*Check that the server runs"):
        open_on_cpu(corpus, path, tmp_path / "index", store=f"http://127.0.0.1:{port}")
    assert not encoded


def test_a_file_in_place_of_the_folder_is_an_error(path, corpus, tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(InputError, match="expected a URL or a folder"):
        open_on_cpu(corpus, path, tmp_path / "index", store=str(tmp_path / "store"))


def test_a_collection_that_is_deleted_or_changed_is_an_error(path, corpus, tmp_path, server):
    retriever, client = open_on_cpu(corpus, path, tmp_path / "index", store=server.url), MilvusClient(server.url)
    name = retriever.index.name
    with pytest.raises(InputError, match="dimension of the index, 32, got 3"):
        retriever.index.search(np.ones((1, 3), np.float32), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(milvus, "MAX_HITS", 2)
        with pytest.raises(InputError, match="at most 2"):
            retriever.retrieve(QUERIES, 3)
    client.delete(name, ids=[corpus[0].id])
    with pytest.raises(StaleIndexError, match=f"expected in {name} {len(corpus)} vectors, got {len(corpus) - 1}"):
        retriever.verify()
    foreign = "0" * 32
    client.upsert(name, [{"id": foreign, "content": "", "vector": [1.0] * 32}])
    with pytest.raises(StaleIndexError, match=f"ids of the corpus, got {foreign}"):
        retriever.retrieve(QUERIES, len(corpus))
    client.drop_collection(name)
    with pytest.raises(InputError, match="collection was deleted: run"):
        retriever.retrieve(QUERIES, 3)
    client.create_collection(name, dimension=32)
    with pytest.raises(StaleIndexError, match="Delete the collection"):
        open_on_cpu(corpus, path, tmp_path / "index", store=server.url)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"retriever": "bm25"}, "no effect without vectors"),
        ({"embedding_model": ""}, "no effect without vectors"),
        ({"store": "", "store_key_name": "OTHER"}, "--store_key_name OTHER: no effect without --store"),
        ({"store_key_name": "my-key"}, "--store_key_name: expected the name of an environment variable"),
        ({"store": "http://user:secret@host:1"}, r"--store: expected http\(s\)://HOST"),
        ({"store": "localhost:19530"}, r"--store: expected http\(s\)://HOST:PORT or a folder"),
        ({"index_factory": "IVF64,Flat"}, "--index_factory: expected auto, Flat or HNSW32 with --store, got IVF64"),
    ],
)
def test_flags_of_a_database_that_cannot_work_are_refused(flags, message):
    values = {"embedding_model": "e", "full_dataset_file_path": "c", "full_dataset_index_path": "i", "store": "folder"}
    IndexArgs(**values).check()
    with pytest.raises(InputError, match=message) as problem:
        IndexArgs(**values | flags).check()
    assert "secret" not in str(problem.value)
    assert "my-key" not in str(problem.value)


@pytest.mark.parametrize("package", ["pymilvus", "milvus_lite"])
def test_a_missing_package_of_the_database_is_named_with_its_extra(monkeypatch, package):
    from importlib.util import find_spec

    monkeypatch.setattr("rqa.cli.parser.find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(InputError, match=rf'--store.*{package}.*pip install "\.\[milvus\]"'):
        IndexArgs("corpus.jsonl", "index", embedding_model="e", store="folder").check()
