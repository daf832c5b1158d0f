"""hybrid: ranks are added; open_retriever combines the parts, and each search is timed."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from world import PLACES, passage, write_jsonl

from rqa.cli.retrieval_args import IndexArgs
from rqa.data.corpus import open_passages
from rqa.errors import InputError
from rqa.retrieval.hybrid import DEPTH, fuse
from rqa.retrieval.opening import open_retriever
from rqa.timing import record_spans

ROWS = [passage(place, number) for number, place in enumerate(PLACES * 2)]
QUERIES = ["When was the lamp of Oslo lit?", "lima", "nothing of it", "It shines over Paris."]
open_on_cpu = partial(open_retriever, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_passages(write_jsonl(tmp_path_factory.mktemp("hybrid") / "corpus.jsonl", ROWS))


rankings = st.lists(st.lists(st.integers(0, 12), unique=True, max_size=9), min_size=1, max_size=3)


@given(rankings, st.integers(0, 3))
def test_fusion_equals_the_sum_of_reciprocal_ranks(lists, padding):
    expected = {
        row: sum(1 / (60 + ranking.index(row) + 1) for ranking in lists if row in ranking)
        for row in {row for ranking in lists for row in ranking}
    }
    fused = fuse([np.array([*ranking, *[-1] * padding], np.int64) for ranking in lists])
    assert dict(fused) == pytest.approx(expected)
    assert [row for row, _ in fused] == sorted(expected, key=lambda row: (-dict(fused)[row], row))


@pytest.mark.parametrize("k", [1, 5, 50])
def test_hybrid_retrieval_fuses_the_lists_of_both(path, corpus, tmp_path, k):
    dense, words, both = (open_on_cpu(corpus, path, tmp_path, retriever=kind) for kind in ("dense", "bm25", "hybrid"))
    for query in QUERIES:
        [one], [two], [hits] = (
            each.retrieve([query], 10**6 if each is both else DEPTH) for each in (dense, words, both)
        )
        ranks = {}
        for ranking in (one, two):
            for rank, hit in enumerate(ranking, 1):
                ranks[hit.passage.id] = ranks.get(hit.passage.id, 0) + 1 / (60 + rank)
        assert {hit.passage.id: hit.score for hit in hits} == pytest.approx(ranks)
        assert both.retrieve([query], k) == [hits[:k]]
    assert len({each.fingerprint() for each in (dense, words, both)}) == 3
    both.verify()


def test_bm25_needs_no_encoder(corpus, tmp_path, caplog):
    caplog.set_level("INFO")
    retriever = open_on_cpu(corpus, "no/such/encoder", tmp_path, retriever="bm25")
    assert "--embedding_model is not used" in caplog.text
    assert retriever.retrieve(["lima"], 1)[0][0].passage.text == ROWS[PLACES.index("Lima")]["page_content"]


def test_an_index_of_vectors_is_built_beside_that_of_words(path, corpus, tmp_path):
    open_on_cpu(corpus, path, tmp_path, retriever="bm25")
    assert open_on_cpu(corpus, path, tmp_path).retrieve(QUERIES, 3) != []


def test_each_stage_is_timed(path, corpus, tmp_path):
    retriever = open_on_cpu(corpus, path, tmp_path, retriever="hybrid")
    with record_spans() as spans:
        retriever.retrieve(QUERIES, 3)
    questions = {}
    for span in spans:
        questions[span.stage] = questions.get(span.stage, 0) + span.questions
    assert questions == dict.fromkeys(("embed", "search", "bm25", "fuse"), len(QUERIES))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"retriever": "hybrid"}, "--embedding_model"),
        ({"bm25_stemmer": "english"}, "--bm25_stemmer english: no effect with --retriever dense"),
        ({"reranker_model": "x"}, "--reranker_model: expected --embedding_model or --retriever bm25 too"),
        ({"retriever": "bm25"}, "--full_dataset_file_path"),
        (
            {"retriever": "bm25", "full_dataset_file_path": "a.jsonl", "full_dataset_index_path": "i", "rerank_top": 0},
            "top",
        ),
    ],
)
def test_flags_that_cannot_work_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        IndexArgs(**flags).check()


@pytest.mark.parametrize(("flag", "package"), [("retriever", "bm25s"), ("bm25_stemmer", "Stemmer")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, flag, package):
    from importlib.util import find_spec

    monkeypatch.setattr("rqa.cli.parser.find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(InputError, match=rf'--{flag}.*{package}.*pip install "\.\[bm25\]"'):
        IndexArgs("corpus.jsonl", "index", retriever="bm25", bm25_stemmer="english").check()
