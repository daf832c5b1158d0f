"""dense: what is found is what brute force over the embeddings finds; an index of anything else is refused."""

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
from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer
from tiny_models import save_encoder
from transformers import AutoModel, AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from world import PLACES, passage, write_jsonl

from rqa.data.corpus import open_passages
from rqa.data.records import Example, Passage, Turn
from rqa.errors import InputError
from rqa.retrieval.dense import open_retriever
from rqa.retrieval.encoder import Encoder
from rqa.retrieval.index import FaissIndex, StaleIndexError
from rqa.retrieval.retrieve import build_query

ROWS = [passage(place, number) for number, place in enumerate(PLACES * 2)]
QUERIES = ["When was the lamp of Oslo lit?", "lima", "It shines over Paris. " * 3, "1907?", "Lamp 3"]
PASSAGES = [Passage(f"{place} is far. " * (number % 5 + 1), f"Title {number}") for number, place in enumerate(PLACES)]
CPU = torch.device("cpu")

encoder_of = partial(Encoder, device=CPU)
assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    monkeypatch.setattr("rqa.retrieval.dense.bf16_is_fast", lambda device: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("retriever")


@pytest.fixture(scope="module")
def path(folder):
    return save_encoder(folder / "sentences")


@pytest.fixture(scope="module")
def corpus(folder):
    return open_passages(write_jsonl(folder / "corpus.jsonl", ROWS))


def with_config(path, copy, **values):
    """A copy of a checkpoint whose config says something else."""
    SentenceTransformer(path, device="cpu").save(str(copy))
    config = Path(copy, "config_sentence_transformers.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    return str(copy)


# Embedding


def test_texts_that_fill_the_encoders_window_are_told(path, caplog):
    """It holds 128 tokens, of which two are the encoder's own; each of these characters is one."""
    encoder_of(path).encode_queries(["a " * 125, "b", *["c " * 126, "d " * 300] * 3])
    [message] = [message for message in caplog.messages if "window" in message]
    assert message.startswith("6 of 8 texts fill the encoder's window of 128 tokens")
    caplog.clear()
    encoder_of(path).encode_queries(["a " * 125, "b"])
    assert not [message for message in caplog.messages if "window" in message]


def mean_pooled(folder, text):
    """What transformers alone makes of a text: (D,), the mean over its tokens, of length 1."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        vector = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).double()
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("kind", ["encoder", "plain"])
def test_a_text_is_embedded_by_the_mean_of_its_tokens_at_length_one(path, kind):
    plain = Path(path).parent / "plain"
    vectors = encoder_of(str(plain.with_name(kind))).encode_queries(QUERIES)
    assert_close(vectors, [mean_pooled(plain, query) for query in QUERIES])
    assert vectors.dtype == np.float32


def test_a_passage_is_embedded_as_title_newline_text(path):
    encoder = encoder_of(path)
    texts = [f"{passage.title}\n{passage.text}" for passage in PASSAGES]
    assert_close(encoder.encode_passages(PASSAGES), encoder.encode_queries(texts))
    assert_close(encoder.encode_passages([Passage("No title.")]), encoder.encode_queries(["No title."]))
    assert np.abs(encoder.encode_queries(texts) - encoder.encode_queries([p.text for p in PASSAGES])).max() > 0.1


def test_an_embedding_depends_neither_on_batch_size_nor_on_order(path):
    alone = np.concatenate([encoder_of(path).encode_passages([passage]) for passage in PASSAGES])
    for batch_size in (1, 5, 64):
        encoder = encoder_of(path, batch_size=batch_size)
        assert_close(encoder.encode_passages(PASSAGES), alone)
        assert_close(encoder.encode_passages(PASSAGES[::-1])[::-1], alone)


def test_passages_but_not_queries_are_embedded_in_bfloat16_where_that_is_fast(path, monkeypatch):
    encoder, content = encoder_of(path), [passage.content for passage in PASSAGES]
    exact = encoder.encode_passages(PASSAGES), encoder.encode_queries(content)
    monkeypatch.setattr("rqa.retrieval.dense.bf16_is_fast", lambda device: device == CPU)
    quick = encoder.encode_passages(PASSAGES)
    assert 1e-5 < 1 - (quick * exact[0]).sum(1).min() < 1e-2
    assert_close(np.linalg.norm(quick, axis=1), 1)
    np.testing.assert_array_equal(encoder.encode_queries(content), exact[1])


@pytest.mark.parametrize("name", ["document", "passage"])
@pytest.mark.parametrize(
    "flags",
    [{}, {"query_prefix": "ask "}, {"passage_prefix": "text "}, dict.fromkeys(("query_prefix", "passage_prefix"), "")],
)
def test_prefixes_are_those_of_the_checkpoint_unless_flags_say_otherwise(path, tmp_path, name, flags):
    prompts = {"query": "query: ", name: "read: "}
    copy = with_config(path, tmp_path / "copy", prompts=prompts, default_prompt_name="query")
    expected = {"query_prefix": "query: ", "passage_prefix": "read: "} | flags
    bare, encoder = encoder_of(path), encoder_of(copy, **flags)
    assert {name: getattr(encoder, name) for name in expected} == expected
    assert_close(encoder.encode_queries(QUERIES), bare.encode_queries([expected["query_prefix"] + q for q in QUERIES]))
    texts = [expected["passage_prefix"] + passage.content for passage in PASSAGES]
    assert_close(encoder.encode_passages(PASSAGES), bare.encode_queries(texts))


def test_a_checkpoint_without_prompts_has_no_prefixes(path):
    encoder = encoder_of(path)
    assert (encoder.query_prefix, encoder.passage_prefix) == ("", "")


def test_a_checkpoint_of_the_hub_is_that_of_its_cache(path, tmp_path, monkeypatch):
    """Laid out as a download leaves it, with another runtime's files beside."""
    repository = tmp_path / "models--some--encoder"
    shutil.copytree(path, repository / "snapshots/0123")
    (repository / "snapshots/0123/onnx").mkdir()
    (repository / "snapshots/0123/onnx/config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123")
    monkeypatch.setattr(
        "rqa.retrieval.dense.snapshot_download",
        partial(snapshot_download, cache_dir=tmp_path, local_files_only=True),
    )
    hub, here = encoder_of("some/encoder"), encoder_of(path)
    assert hub.fingerprint() == here.fingerprint()
    np.testing.assert_array_equal(hub.encode_queries(QUERIES), here.encode_queries(QUERIES))


def test_weights_are_whole_where_deepspeed_shards_what_is_loaded(path, monkeypatch):
    """Under ZeRO-3 transformers loads a model with empty weights; the retriever is not DeepSpeed's."""
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    seen, plain = [], SentenceTransformer.__init__
    monkeypatch.setattr(
        SentenceTransformer,
        "__init__",
        lambda self, *args, **options: seen.append(is_deepspeed_zero3_enabled()) or plain(self, *args, **options),
    )
    try:
        assert is_deepspeed_zero3_enabled()
        model = encoder_of(path).model
        assert is_deepspeed_zero3_enabled()
    finally:
        unset_hf_deepspeed_config()
    assert seen == [False]
    assert config.is_zero3()
    assert all(parameter.numel() for parameter in model.parameters())


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected a checkpoint, found a folder without config"):
        encoder_of(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no-such-folder: neither a checkpoint folder nor a model of the hub"):
        encoder_of(str(tmp_path / "no-such-folder"))


# Retrieving


@pytest.mark.parametrize("k", [1, 4, len(ROWS), 50])
def test_retrieving_equals_brute_force_over_the_embeddings(path, corpus, folder, k):
    options = {"query_prefix": "query: ", "passage_prefix": "passage: "}
    retriever = open_retriever(corpus, path, folder / "prefixed", device=CPU, **options)
    encoder = encoder_of(path, **options)
    scores = encoder.encode_queries(QUERIES) @ encoder.encode_passages(corpus).T
    for hits, row in zip(retriever.retrieve(QUERIES, k), scores, strict=True):
        best = np.argsort(-row, kind="stable")[:k]
        assert [hit.passage for hit in hits] == [corpus[i] for i in best]
        assert_close([hit.score for hit in hits], row[best])


def test_hits_are_distinct_and_no_query_has_none(path, corpus, folder):
    retriever = open_retriever(corpus, path, folder / "index", device=CPU)
    assert retriever.retrieve([], 3) == []
    (hits,) = retriever.retrieve(QUERIES[:1], 2 * len(corpus))
    assert sorted(hit.passage.id for hit in hits) == sorted(passage.id for passage in corpus)


HISTORY = tuple(Turn(role, f"{role} {i}") for i in range(3) for role in ("user", "assistant"))


@pytest.mark.parametrize("users", [0, 1, 2, 3])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 9])
def test_a_query_is_the_question_after_the_last_messages_of_the_user(users, turns):
    example = Example("1", "Who?", ("I.",), chat_history=HISTORY[: 2 * users])
    expected = [f"user {i}" for i in range(users) if i >= users - turns]
    assert build_query(example, history_turns=turns) == "\n".join([*expected, "Who?"])
    assert build_query(example) == build_query(example, history_turns=1)


# The index in its folder


@pytest.fixture
def encoded(monkeypatch):
    """How many passages were embedded, call by call."""
    calls, plain = [], Encoder.encode_passages
    monkeypatch.setattr(
        Encoder, "encode_passages", lambda self, passages: calls.append(len(passages)) or plain(self, passages)
    )
    return calls


def test_an_index_is_built_once_and_then_loaded(path, corpus, tmp_path, encoded):
    built, loaded = (open_retriever(corpus, path, tmp_path / "index", device=CPU) for _ in range(2))
    assert encoded == [len(corpus)]
    assert loaded.retrieve(QUERIES, 5) == built.retrieve(QUERIES, 5)
    assert loaded.fingerprint() == built.fingerprint()
    copy = with_config(path, tmp_path / "copy")
    Path(copy, "README.md").write_text("Other words.")
    other = open_retriever(corpus, copy, tmp_path / "index", device=CPU)
    assert encoded == [len(corpus)]  # the same checkpoint in another folder
    assert other.fingerprint() == built.fingerprint()


def test_another_prefix_of_queries_needs_no_other_vectors(path, corpus, tmp_path, encoded):
    built, other = (
        open_retriever(corpus, path, tmp_path / "index", device=CPU, query_prefix=prefix) for prefix in ("", "q: ")
    )
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
def test_an_index_of_anything_else_is_refused_and_both_are_told(path, corpus, tmp_path, field, change):
    built = open_retriever(corpus, path, tmp_path / "index", device=CPU)
    passages, encoder, options = change(tmp_path, path, corpus)
    with pytest.raises(StaleIndexError) as refused:
        open_retriever(passages, encoder, tmp_path / "index", device=CPU, **options)
    other = open_retriever(passages, encoder, tmp_path / "other", device=CPU, **options)
    old, new = (json.dumps(retriever.index.provenance[field]) for retriever in (built, other))
    assert old != new
    assert other.fingerprint() != built.fingerprint()
    assert f"\n  {field}: the index has {old}, now given is {new}\n" in str(refused.value)
    assert len(FaissIndex.load(tmp_path / "index")) == len(corpus)  # it is still there


def test_of_two_runs_that_need_an_index_one_builds_it(path, corpus, tmp_path, caplog):
    """The other waits, and loads what was built meanwhile."""
    caplog.set_level("INFO")
    open_retriever(corpus, path, tmp_path / "theirs", device=CPU)
    (tmp_path / "index").mkdir()
    theirs = os.open(tmp_path / "index", os.O_RDONLY)
    fcntl.flock(theirs, fcntl.LOCK_EX)
    caplog.clear()
    with ThreadPoolExecutor() as pool:
        ours = pool.submit(open_retriever, corpus, path, tmp_path / "index", device=CPU)
        while not any("waiting for another process" in message for message in caplog.messages):
            assert not ours.done()
            time.sleep(0.01)
        for file in (tmp_path / "theirs").iterdir():
            shutil.copy(file, tmp_path / "index")
        os.close(theirs)
        assert ours.result(timeout=60).retrieve(QUERIES, 3)
    assert not any("building" in message for message in caplog.messages)
