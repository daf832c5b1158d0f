"""dense: retrieval equals brute force over the embeddings, and an index of other inputs is refused."""

import errno
import fcntl
import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Router, Transformer
from tiny_models import save_encoder
from world import PLACES, passage, write_jsonl

from rqa.data.corpus import open_passages
from rqa.errors import InputError
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.index import FaissIndex, StaleIndexError
from rqa.retrieval.opening import open_retriever

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


def test_recall_is_that_of_the_given_queries_also_of_an_existing_index(path, corpus, tmp_path, encoded, monkeypatch):
    monkeypatch.setattr("rqa.retrieval.index.MIN_RECALL", 0)  # the search effort stays
    monkeypatch.setattr("rqa.retrieval.index._set_search_effort", lambda index: None)  # one list
    encoder, recalls = Encoder(path, device=CPU), set()
    passages = encoder.encode_passages(corpus)
    for queries in (QUERIES[:1], QUERIES[1:], [corpus[0].text] * 2):
        index = open_on_cpu(corpus, path, tmp_path / "index", index_factory="IVF6,Flat", recall_queries=queries).index
        vectors = encoder.encode_queries(queries)
        exact = np.argsort(-vectors @ passages.T, kind="stable")[:, :10]
        found = index.search(vectors, 10)[1]
        share = np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
        assert index.recall == FaissIndex.load(tmp_path / "index").recall == pytest.approx(share)
        recalls.add(index.recall)
    assert len(recalls) == 3
    assert encoded == [len(corpus)] * 2  # here, and by the first opening
    with pytest.raises(InputError, match="--index_queries: no effect"):
        open_on_cpu(corpus, path, tmp_path / "flat", recall_queries=QUERIES)
    assert not (tmp_path / "flat/vectors").exists()


def test_queries_of_another_encoder_search_the_same_index(path, corpus, tmp_path, encoded):
    """Recall at build, hits and fingerprint are those of the encoder of queries; passages are embedded once."""
    other = save_encoder(tmp_path / "other", seed=1)
    alone = open_on_cpu(corpus, path, tmp_path / "index")
    pair = open_on_cpu(corpus, path, tmp_path / "index", query_encoder=other)
    assert encoded == [len(corpus)]
    scores = Encoder(other, device=CPU).encode_queries(QUERIES) @ Encoder(path, device=CPU).encode_passages(corpus).T
    for hits, row in zip(pair.retrieve(QUERIES, 3), scores, strict=True):
        assert [hit.passage for hit in hits] == [corpus[i] for i in np.argsort(-row, kind="stable")[:3]]
    assert pair.index.fingerprint == alone.index.fingerprint
    assert pair.fingerprint() != alone.fingerprint()
    same = open_on_cpu(corpus, path, tmp_path / "index", query_encoder=path)
    assert same.fingerprint() == alone.fingerprint()


# The index in its folder


@pytest.fixture
def encoded(monkeypatch):
    """The number of passages of each call of `encode_blocks`."""
    calls, plain = [], Encoder.encode_blocks
    monkeypatch.setattr(Encoder, "encode_blocks", lambda self, *args: calls.append(args[1]) or plain(self, *args))
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


def other_settings(folder, path, corpus, **values):
    copy = Path(shutil.copytree(path, folder / "settings"))
    file = copy / "config_sentence_transformers.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return corpus, str(copy), {}


def other_queries(folder, path, corpus):
    """Passages go through the same side of both encoders."""
    sides = [Path(each).with_name("plain") for each in (path, save_encoder(folder / "queries", seed=1))]
    document = [Transformer(str(sides[0]), max_seq_length=128), Pooling(32)]
    query = [Transformer(str(sides[1]), max_seq_length=128), Pooling(32)]
    router = SentenceTransformer(modules=[Router.for_query_document(query, document)], device="cpu")
    router.save(str(folder / "router"))
    return corpus, str(folder / "router"), {}


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
        ("encoder", other_queries),
        ("truncate_dim", partial(other_settings, truncate_dim=16)),
        ("similarity", partial(other_settings, similarity_fn_name="dot")),
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
    short_old, short_new = (re.sub("([0-9a-f]{12})[0-9a-f]{20,}", r"\1", each) for each in (old, new))
    assert f"\n  {field}: expected {short_new}, got {short_old}\n" in str(refused.value)
    assert f"{len(corpus)} vectors of dimension 32" in str(refused.value)
    assert len(FaissIndex.load(tmp_path / "index")) == len(corpus)  # unchanged


@pytest.mark.parametrize("normalized", [False, True])
def test_an_encoder_for_inner_products_is_ranked_by_them(path, corpus, tmp_path, normalized):
    """The lengths of the vectors of a cosine encoder have no effect, those of a dot encoder do."""
    _, dot, _ = other_settings(tmp_path, path, corpus, similarity_fn_name="cosine" if normalized else "dot")
    retriever = open_on_cpu(corpus, dot, tmp_path / "index")
    model = SentenceTransformer(path, device="cpu")
    texts = [passage.content for passage in corpus]
    queries, passages = (model.encode(each, normalize_embeddings=normalized) for each in (QUERIES, texts))
    for hits, row in zip(retriever.retrieve(QUERIES, 5), queries @ passages.T, strict=True):
        best = np.argsort(-row, kind="stable")[:5]
        assert [hit.passage for hit in hits] == [corpus[i] for i in best]
        np.testing.assert_allclose([hit.score for hit in hits], row[best], rtol=1e-5, atol=1e-6)


def test_a_shorter_embedding_is_the_start_of_the_long_one(path, corpus, tmp_path):
    _, short, _ = other_settings(tmp_path, path, corpus, truncate_dim=16)
    for name in ("encode_queries", "encode_passages"):
        texts = QUERIES if name == "encode_queries" else corpus
        long, vectors = (getattr(Encoder(each, device=CPU), name)(texts)[:, :16] for each in (path, short))
        assert vectors.shape == (len(texts), 16)
        np.testing.assert_allclose(vectors, long / np.linalg.norm(long, axis=1, keepdims=True), rtol=1e-4, atol=1e-5)


def forbidden(folder):
    folder.mkdir()
    folder.chmod(0o500)
    return folder / "index"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder.write_text("") or folder, "got a file"),
        (lambda folder: folder.write_text("") or folder / "index", "Not a directory"),
        (lambda folder: Path("/proc/no/index"), "No such file"),
        pytest.param(forbidden, "Permission denied", marks=pytest.mark.skipif(os.geteuid() == 0, reason="as root")),
    ],
)
def test_a_folder_that_cannot_hold_an_index_is_refused_before_anything_is_embedded(
    path, corpus, tmp_path, encoded, make, reason
):
    index = make(tmp_path / "given")
    with pytest.raises(InputError, match=f"^{index}: expected a folder for the index, .*{reason}.*index_path"):
        open_on_cpu(corpus, path, index)
    assert not encoded


def test_a_file_in_place_of_the_index_is_refused_before_the_encoder_is_opened(corpus, tmp_path):
    (tmp_path / "index").write_text("")
    with pytest.raises(InputError, match="got a file"):
        open_on_cpu(corpus, "no/such-encoder", tmp_path / "index")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_embedded(
    path, corpus, tmp_path, encoded, monkeypatch
):
    """A read-only file system: the folder is there, and locks work."""

    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system", str(dir))

    (tmp_path / "empty").mkdir()
    open_on_cpu(corpus, path, tmp_path / "index")
    monkeypatch.setattr("rqa.retrieval.dense.tempfile.TemporaryFile", refuse)
    assert open_on_cpu(corpus, path, tmp_path / "index").retrieve(QUERIES, 3)
    with pytest.raises(InputError, match=r"empty: expected a folder .* got Read-only file system"):
        open_on_cpu(corpus, path, tmp_path / "empty")
    assert encoded == [len(corpus)]


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
        for file in (tmp_path / "first").glob("*.*"):
            shutil.copy(file, tmp_path / "index")
        os.close(first)
        assert second.result(timeout=60).retrieve(QUERIES, 3)
    assert not any("building" in message for message in caplog.messages)
