"""rerank: the order is that of the cross-encoder's scores, pair by pair; other checkpoints are refused."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_reranker
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from world import PLACES, passage, write_jsonl

from rqa.data.corpus import open_passages
from rqa.errors import InputError
from rqa.retrieval.opening import open_retriever
from rqa.retrieval.rerank import Reranker
from rqa.timing import record_spans

ROWS = [passage(place, number) for number, place in enumerate(PLACES * 2)]
QUERIES = ["When was the lamp of Oslo lit?", "lima", "It shines over Paris."]
CPU = torch.device("cpu")
open_on_cpu = partial(open_retriever, device=CPU)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return open_passages(write_jsonl(tmp_path_factory.mktemp("rerank") / "corpus.jsonl", ROWS))


@pytest.fixture
def reranker(path, tmp_path):
    return save_reranker(tmp_path / "reranker", Path(path).with_name("plain"))


def by_hand(reranker, query, text):
    """Return the logit of one pair, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(reranker)
    model = AutoModelForSequenceClassification.from_pretrained(reranker).eval()
    with torch.no_grad():
        return model(**tokenizer(query, text, return_tensors="pt")).logits.item()


@pytest.mark.parametrize(("k", "top"), [(1, 8), (5, 8), (12, 8)])
def test_the_order_is_that_of_the_scores_of_pairs(path, corpus, reranker, tmp_path, k, top):
    first = open_on_cpu(corpus, path, tmp_path / "index")
    both = open_on_cpu(corpus, path, tmp_path / "index", reranker_model=reranker, rerank_top=top)
    for query, hits in zip(QUERIES, both.retrieve(QUERIES, k), strict=True):
        [candidates] = first.retrieve([query], max(k, top))
        scores = {hit.passage: by_hand(reranker, query, hit.passage.content) for hit in candidates}
        assert [hit.passage for hit in hits] == sorted(scores, key=scores.__getitem__, reverse=True)[:k]
        np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.passage] for hit in hits], rtol=1e-4)
    assert both.retrieve([], 3) == []
    both.verify()


def test_another_cross_encoder_or_depth_is_another_retriever(path, corpus, reranker, tmp_path):
    other = save_reranker(tmp_path / "other", Path(path).with_name("plain"), seed=1)
    options = [
        {},
        {"reranker_model": reranker},
        {"reranker_model": other},
        {"reranker_model": reranker, "rerank_top": 9},
    ]
    opened = [open_on_cpu(corpus, path, tmp_path / "index", **each) for each in options]
    assert len({each.fingerprint() for each in opened}) == 4


def test_reranking_is_timed(path, corpus, reranker, tmp_path):
    retriever = open_on_cpu(corpus, path, tmp_path / "index", retriever="bm25", reranker_model=reranker)
    with record_spans() as spans:
        retriever.retrieve(QUERIES, 3)
    assert [span.stage for span in spans] == ["bm25"] * 3 + ["rerank"] * 3


def test_a_checkpoint_without_one_score_is_refused_before_anything_is_embedded(path, corpus, reranker, tmp_path):
    config = Path(reranker, "config.json")
    values = json.loads(config.read_text())
    two = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    for changes, got in ((two, "2 labels"), ({"architectures": ["BertModel"]}, "BertModel")):
        config.write_text(json.dumps(values | changes))
        with pytest.raises(InputError, match=rf"--reranker_model .*expected a cross-encoder.*got .*{got}"):
            open_on_cpu(corpus, path, tmp_path / "index", reranker_model=reranker)
    with pytest.raises(InputError, match=r"--reranker_model .*expected a cross-encoder"):
        open_on_cpu(corpus, path, tmp_path / "index", reranker_model=path)
    assert not Path(tmp_path, "index").exists()


def test_a_cross_encoder_that_lacks_weights_is_refused(reranker):
    file = Path(reranker, "model.safetensors")
    weights = load_file(file)
    del weights["classifier.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of .*classifier\.weight"):
        Reranker(reranker, device=CPU).scores("a", ["b"])


def test_a_pair_longer_than_the_model_reads_is_truncated(reranker):
    long = "the lamp of oslo " * 40
    assert np.isfinite(Reranker(reranker, device=CPU).scores("oslo", [long, long + "more"])).all()
