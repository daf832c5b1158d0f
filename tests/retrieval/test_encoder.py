"""encoder: vectors equal those of transformers, and prefixes and precision are as configured."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from world import PLACES

from rqa.data.records import Passage
from rqa.errors import InputError
from rqa.retrieval.encoder import Encoder

QUERIES = ["When was the lamp of Oslo lit?", "lima", "It shines over Paris. " * 3, "1907?", "Lamp 3"]
PASSAGES = [Passage(f"{place} is far. " * (number % 5 + 1), f"Title {number}") for number, place in enumerate(PLACES)]
CPU = torch.device("cpu")

encoder_of = partial(Encoder, device=CPU)
assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda device: False)


def test_truncated_texts_are_counted_in_a_warning(path, caplog):
    """The encoder holds 128 tokens, two of them its own; each of these characters is one token."""
    encoder_of(path).encode_queries(["a " * 125, "b", *["c " * 126, "d " * 300] * 3])
    [message] = [message for message in caplog.messages if "truncated" in message]
    assert message.startswith("6 of 8 texts")
    assert "128 tokens" in message
    caplog.clear()
    encoder_of(path).encode_queries(["a " * 125, "b"])
    assert not [message for message in caplog.messages if "truncated" in message]


def test_the_tokens_of_a_passage_are_those_that_the_model_reads(path):
    """With the prefix and the special tokens, also of passages that are longer than the limit of 128."""
    encoder, lengths = encoder_of(path, passage_prefix="read: ", batch_size=1), []
    hook = encoder.model[-1].register_forward_hook(
        lambda _, inputs, __: lengths.append(inputs[0]["input_ids"].shape[1])
    )
    passages = [*PASSAGES, Passage(""), Passage("a " * 120), Passage("a " * 200)]
    for passage in passages:
        encoder.encode_passages([passage])
    hook.remove()
    assert encoder.max_passage_tokens == 128
    assert [min(encoder.count_passage_tokens(each.content), 128) for each in passages] == lengths
    assert encoder.count_passage_tokens("a " * 200) == encoder.count_passage_tokens("a " * 120) + 80


def test_embedding_and_hashing_show_progress(path, progress, capsys):
    encoder = encoder_of(path, batch_size=5)
    encoder.encode_passages(PASSAGES)
    encoder.encode_queries(QUERIES)
    encoder.fingerprint()
    (num_passages, num_queries) = (len(PASSAGES), len(QUERIES))
    assert ("embedding passages", num_passages, num_passages) in progress
    assert ("embedding queries", num_queries, num_queries) in progress
    assert any(name == f"hashing {path}" and done == total > 0 for name, done, total in progress)
    assert "Batches" not in capsys.readouterr().err  # the bar of sentence-transformers


def mean_pooled(folder, text):
    """Return the vector (D,) that transformers alone computes: the mean over tokens, normalized."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        vector = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).double()
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("kind", ["encoder", "plain"])
def test_vectors_are_normalized_means_over_tokens(path, kind):
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


def test_vectors_depend_neither_on_batch_size_nor_on_order(path):
    alone = np.concatenate([encoder_of(path).encode_passages([passage]) for passage in PASSAGES])
    for batch_size in (1, 5, 64):
        encoder = encoder_of(path, batch_size=batch_size)
        assert_close(encoder.encode_passages(PASSAGES), alone)
        assert_close(encoder.encode_passages(PASSAGES[::-1])[::-1], alone)


def test_only_passages_are_embedded_in_bfloat16(path, monkeypatch):
    encoder, content = encoder_of(path), [passage.content for passage in PASSAGES]
    exact = encoder.encode_passages(PASSAGES), encoder.encode_queries(content)
    monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda device: device == CPU)
    bf16 = encoder.encode_passages(PASSAGES)
    assert 1e-5 < 1 - (bf16 * exact[0]).sum(1).min() < 1e-2
    assert_close(np.linalg.norm(bf16, axis=1), 1)
    np.testing.assert_array_equal(encoder.encode_queries(content), exact[1])


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
@pytest.mark.parametrize(
    "flags",
    [{}, {"query_prefix": "ask "}, {"passage_prefix": "text "}, dict.fromkeys(("query_prefix", "passage_prefix"), "")],
)
def test_flags_override_the_prefixes_of_the_checkpoint(path, with_config, tmp_path, name, flags):
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


def test_prompts_under_other_names_are_named_in_a_warning(path, with_config, tmp_path, caplog):
    copy = with_config(path, tmp_path / "copy", prompts={"web_query": "Instruct: ", "query": "", "document": ""})
    encoder_of(copy)
    assert ["web_query" in message and "--query_prefix" in message for message in caplog.messages] == [True]
    caplog.clear()
    encoder_of(copy, query_prefix="Instruct: ")
    encoder_of(path)
    assert not caplog.messages


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_another_similarity_is_a_warning(path, with_config, tmp_path, caplog, similarity):
    copy = with_config(path, tmp_path / "copy", similarity_fn_name=similarity)
    assert_close(encoder_of(copy).encode_queries(QUERIES), encoder_of(path).encode_queries(QUERIES))
    assert [similarity in message and "cosine" in message for message in caplog.messages] == [True]


def test_a_hub_name_is_loaded_from_the_cache(path, tmp_path, monkeypatch):
    """The cache holds files of another runtime too."""
    repository = tmp_path / "models--some--encoder"
    shutil.copytree(path, repository / "snapshots/0123")
    (repository / "snapshots/0123/onnx").mkdir()
    (repository / "snapshots/0123/onnx/config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub, here = encoder_of("some/encoder"), encoder_of(path)
    assert hub.fingerprint() == here.fingerprint()
    np.testing.assert_array_equal(hub.encode_queries(QUERIES), here.encode_queries(QUERIES))


def test_weights_are_not_sharded_under_zero_3(path, monkeypatch):
    """Under ZeRO-3 transformers loads models with empty weights; DeepSpeed must not shard the retriever."""
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


def test_anything_but_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "no-such-folder"):
        with pytest.raises(InputError, match=f"{name}: expected a checkpoint"):
            encoder_of(str(tmp_path / name))
