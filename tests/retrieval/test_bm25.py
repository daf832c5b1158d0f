"""bm25: the scores are those of the formula; an index is built for other inputs, and in place of a damaged one."""

import math
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import PLACES, passage, write_jsonl

from rqa.data.corpus import open_passages
from rqa.errors import InputError
from rqa.retrieval import bm25
from rqa.retrieval.bm25 import BM25Retriever, best, open_bm25_retriever

ROWS = [passage(place, number) for number, place in enumerate(PLACES * 2)]
QUERIES = ["When was the lamp of Oslo lit?", "lima lima", "nothing of it", "", "Oslo: 1907", "1907?", "a"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_passages(write_jsonl(tmp_path_factory.mktemp("bm25") / "corpus.jsonl", ROWS))


def by_formula(corpus, query, k1=1.5, b=0.75):
    """Return BM25 with the inverse document frequency of Lucene, as in Robertson and Zaragoza, 2009, equation 3.15."""
    documents = [Counter(re.findall(r"\w\w+", each.content.lower())) for each in corpus]
    lengths = [sum(words.values()) for words in documents]
    mean, scores = sum(lengths) / len(lengths), np.zeros(len(documents))
    for word in re.findall(r"\w\w+", query.lower()):
        df = sum(word in words for words in documents)
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for i, words in enumerate(documents):
            tf = words[word]
            scores[i] += idf * tf / (tf + k1 * (1 - b + b * lengths[i] / mean))
    return scores


@pytest.mark.parametrize("k", [1, 4, len(ROWS), 50])
def test_bm25_equals_its_formula(corpus, tmp_path, k):
    retriever = open_bm25_retriever(corpus, tmp_path)
    for query, hits in zip(QUERIES, retriever.retrieve(QUERIES, k), strict=True):
        expected = by_formula(corpus, query)
        np.testing.assert_allclose(retriever.scores(query), expected, rtol=1e-5)
        scores = retriever.scores(query)
        order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0][:k]
        assert [hit.passage for hit in hits] == [corpus[int(i)] for i in order]
        assert [hit.score for hit in hits] == scores[order].tolist()
    assert retriever.retrieve([], 3) == []


@given(st.lists(st.sampled_from([0.0, 0.5, 0.5, 1.0, 2.5]), max_size=30), st.integers(1, 40))
def test_the_best_rows_are_those_of_a_sort(values, k):
    scores = np.array(values, np.float32)
    rows, top = best(scores, k)
    expected = sorted((i for i, score in enumerate(values) if score > 0), key=lambda i: (-values[i], i))[:k]
    assert rows.tolist() == expected
    assert top.tolist() == [values[i] for i in expected]


def test_words_of_one_stem_are_one_word(corpus, tmp_path):
    rows = [{"page_content": text} for text in ("Lamps are shining", "A harbour", "Die Lampen")]
    texts = open_passages(write_jsonl(tmp_path / "stems.jsonl", rows))
    found = {}
    for stemmer in ("", "english", "german"):
        [hits] = open_bm25_retriever(texts, tmp_path / "index", stemmer=stemmer).retrieve(["lamp shines"], 3)
        found[stemmer] = [texts.row_of(hit.passage.id) for hit in hits]
    assert found == {"": [], "english": [0], "german": [2]}
    with pytest.raises(InputError, match=r"--bm25_stemmer: expected one of .*english.*, got 'klingon'"):
        open_bm25_retriever(corpus, tmp_path / "index", stemmer="klingon")


def test_an_index_is_built_once_and_again_for_other_inputs(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("rqa.retrieval.bm25._build", counted := _counted())
    first = open_bm25_retriever(corpus, tmp_path)
    again = open_bm25_retriever(corpus, tmp_path)
    assert counted.calls == 1
    assert again.retrieve(QUERIES, 5) == first.retrieve(QUERIES, 5)
    assert again.fingerprint() == first.fingerprint()
    stemmed = open_bm25_retriever(corpus, tmp_path, stemmer="english")
    fewer = open_passages(write_jsonl(tmp_path / "fewer.jsonl", ROWS[:-1]))
    other = open_bm25_retriever(fewer, tmp_path)
    assert counted.calls == 3
    assert len({each.fingerprint() for each in (first, stemmed, other)}) == 3


def _counted():
    """Return a function that builds as before, and counts its calls."""
    plain = bm25._build

    def counted(*args):
        counted.calls += 1
        return plain(*args)

    counted.calls = 0
    return counted


def test_a_damaged_index_is_built_again(corpus, tmp_path, caplog):
    expected = open_bm25_retriever(corpus, tmp_path).retrieve(QUERIES, 5)
    [folder] = tmp_path.glob("bm25-*")
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        middle = len(content) // 2
        for harmed in (content[:-9], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]):
            path.write_bytes(harmed)
            caplog.clear()
            assert open_bm25_retriever(corpus, tmp_path).retrieve(QUERIES, 5) == expected, path.name
            assert "built again" in caplog.text, path.name


def test_of_two_threads_one_builds(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("rqa.retrieval.bm25._build", counted := _counted())
    with ThreadPoolExecutor(2) as pool:
        opened = [*pool.map(lambda _: open_bm25_retriever(corpus, tmp_path), range(2))]
    assert counted.calls == 1
    assert all(isinstance(each, BM25Retriever) for each in opened)


def test_a_corpus_without_words_is_refused(tmp_path):
    signs = open_passages(write_jsonl(tmp_path / "signs.jsonl", [{"page_content": "? !"}, {"page_content": "a b"}]))
    with pytest.raises(InputError, match="expected passages with words of two or more letters, got none"):
        open_bm25_retriever(signs, tmp_path / "index")


def test_a_passage_without_words_is_never_retrieved(tmp_path):
    rows = [{"page_content": "? !"}, {"page_content": "a lamp"}, {"page_content": "…"}]
    texts = open_passages(write_jsonl(tmp_path / "some.jsonl", rows))
    retriever = open_bm25_retriever(texts, tmp_path / "index")
    assert [hit.passage.text for hit in retriever.retrieve(["lamp ?"], 3)[0]] == ["a lamp"]
