"""encoder_checkpoint: every weight is loaded, or the checkpoint is refused before anything is embedded."""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.models import Dense, Pooling, Router, StaticEmbedding, Transformer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Model,
)

from rqa.data.records import Passage
from rqa.errors import InputError
from rqa.retrieval.encoder import Encoder, check_dimensions, open_encoders

TEXTS = ["When was the lamp of Oslo lit?", "lima", "It shines over Paris. " * 3, "1907?"]
CPU = torch.device("cpu")

encoder_of = partial(Encoder, device=CPU)
assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch):
    monkeypatch.setattr("rqa.retrieval.encoder.bf16_is_fast", lambda device: False)


@pytest.fixture(scope="module")
def plain(path):
    """A checkpoint of transformers alone."""
    return Path(path).with_name("plain")


@pytest.fixture
def copy(path, tmp_path):
    return Path(shutil.copytree(path, tmp_path / "copy"))


def embed(path):
    """Return the vectors of the texts as queries and as passages."""
    encoder = encoder_of(str(path))
    return encoder.encode_queries(TEXTS), encoder.encode_passages([Passage(text) for text in TEXTS])


def refusal(path):
    """Return the error of a checkpoint: one line that begins with its name."""
    with pytest.raises(InputError) as refused:
        embed(path)
    message = str(refused.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def save(folder, *modules):
    """Write a sentence-transformers checkpoint, and return its folder."""
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


def transformer(folder, **options):
    return Transformer(str(folder), max_seq_length=128, **options)


def test_texts_longer_than_the_positions_of_the_encoder_are_refused(copy):
    positions = json.loads((copy / "config.json").read_text())["max_position_embeddings"]
    edit(copy / "sentence_bert_config.json", max_seq_length=positions)
    embed(copy)
    edit(copy / "sentence_bert_config.json", max_seq_length=positions + 1)
    assert re.search(rf"max_seq_length of at most {positions}, .* got {positions + 1}", refusal(copy))


# Weights


def rewrite(file, change):
    save_file(change(load_file(file)), file, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: {f"_orig_mod.{key}": w[key] for key in w}, r"lacks 37 of 39: .* others, such as _orig_mod\.emb"),
        (lambda w: {key: w[key] for key in w if "layer.1" not in key}, r"lacks 16 of 39: encoder\.layer\.1\.att"),
        (lambda w: {}, r"lacks 37 of 39: embeddings"),
        (lambda w: w | {"embeddings.word_embeddings.weight": torch.zeros(7, 32)}, r"lacks 1 of 39: embeddings\.word"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(copy, change, expected, capfd):
    plain_loading = vars(PreTrainedModel)["from_pretrained"]
    rewrite(copy / "model.safetensors", change)
    assert re.search(expected, refusal(copy))
    assert "LOAD REPORT" not in capfd.readouterr().err
    assert vars(PreTrainedModel)["from_pretrained"] is plain_loading


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", slice(None, 500), slice(None, -1)])
def test_a_damaged_weights_file_is_refused_when_the_encoder_is_opened(copy, content):
    file = copy / "model.safetensors"
    file.write_bytes(content if isinstance(content, bytes) else file.read_bytes()[content])
    with pytest.raises(InputError, match=r"copy/model\.safetensors: expected a safetensors file"):
        encoder_of(str(copy))


def test_unused_weights_may_be_missing(copy, path):
    rewrite(copy / "model.safetensors", lambda w: {key: w[key] for key in w if "pooler" not in key})
    for vectors, expected in zip(embed(copy), embed(path), strict=True):
        assert_close(vectors, expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: {f"_orig_mod.{key}": w[key] for key in w}, r'Dense: Missing key\(s\) .* "linear.weight"'),
        (lambda w: {key: w[key][:8] for key in w}, "Dense: size mismatch for linear.weight"),
    ],
)
def test_weights_of_every_module_are_required(plain, tmp_path, change, expected):
    dense = save(tmp_path / "dense", transformer(plain), Pooling(32), Dense(32, 16))
    assert embed(dense)[0].shape == (len(TEXTS), 16)
    rewrite(dense / "2_Dense/model.safetensors", change)
    assert re.search(expected, refusal(dense))


class Hostile:
    """A pickle that creates a folder when it is read as Python reads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("part", ["", "2_Dense"])
def test_pickled_weights_alone_are_loaded(plain, tmp_path, part, caplog):
    dense = save(tmp_path / "dense", transformer(plain), Pooling(32), Dense(32, 16))
    weights, file = load_file(dense / part / "model.safetensors"), dense / part / "pytorch_model.bin"
    torch.save(Hostile(tmp_path / "created"), file)
    expected, fingerprint = embed(dense), encoder_of(str(dense)).fingerprint()
    (dense / part / "model.safetensors").unlink()
    assert re.search(rf"{part}/?pytorch_model\.bin: expected weights, got a pickle that calls", refusal(dense))
    assert not (tmp_path / "created").exists()

    torch.save(weights, file)
    with caplog.at_level("INFO", "rqa"):
        assert_close(embed(dense)[1], expected[1])
    assert caplog.text.count("weights in the pickle format") == 1
    pickled = encoder_of(str(dense)).fingerprint()
    torch.save({name: weight + 1 for name, weight in weights.items()}, file)
    assert len({fingerprint, pickled, encoder_of(str(dense)).fingerprint()}) == 3
    torch.save({f"_orig_mod.{name}": weight for name, weight in weights.items()}, file)
    assert re.search(r"Missing key|the checkpoint lacks", refusal(dense))
    file.write_bytes(file.read_bytes()[:-1])
    assert re.search(r"pytorch_model\.bin: expected weights, got a damaged file", refusal(dense))


# Settings and tokenizers


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"initializer_range": None}, "'initializer_range' expected float, got NoneType"),
        ({"hidden_size": 32.0}, "'hidden_size' expected int, got float"),
        ({"num_attention_heads": 5}, r"32.* not a multiple of the number of attention heads \(5\)"),
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"_attn_implementation": "kernels-community/flash-attn"}, "got _attn_implementation .* download"),
        ({"use_kernels": True}, "got use_kernels true"),
    ],
)
def test_a_config_that_cannot_be_loaded_or_runs_code_is_refused(copy, values, expected):
    edit(copy / "config.json", **values)
    assert re.search(expected, refusal(copy))


@pytest.mark.parametrize("attention", ["flash_attention_2", "eager"])
def test_the_attention_of_the_checkpoint_is_replaced(copy, path, attention):
    """The package of flash attention is not there: with it the checkpoint could not be loaded."""
    edit(copy / "config.json", _attn_implementation=attention)
    edit(copy / "sentence_bert_config.json", model_args={"attn_implementation": attention})
    encoder = encoder_of(str(copy))
    assert encoder.model.transformers_model.config._attn_implementation == "sdpa"
    assert_close(encoder.encode_queries(TEXTS), embed(path)[0])


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.json", "{", "config.json: expected JSON"),
        ("modules.json", "[]", "modules.json: expected a list of modules, got none"),
        ("modules.json", '[{"type": "evil.Module", "path": "", "name": "0"}]', "evil.Module"),
        ("config_sentence_transformers.json", "[]", "expected a JSON object, got list"),
        ("config_sentence_transformers.json", '{"prompts": ["a"]}', '"prompts": expected texts by name'),
        ("config_sentence_transformers.json", '{"prompts": {"query": 1}}', '"prompts": expected texts by name'),
        ("config_sentence_transformers.json", '{"truncate_dim": 0}', '"truncate_dim": .* got 0'),
        ("config_sentence_transformers.json", '{"truncate_dim": "8"}', '"truncate_dim": .* got 8'),
        ("config_sentence_transformers.json", '{"similarity_fn_name": "maxsim"}', "cosine, dot, .* got maxsim"),
        ("config_sentence_transformers.json", '{"model_type": "SparseEncoder"}', "got a SparseEncoder"),
        ("adapter_config.json", "{}", "got an adapter"),
    ],
)
def test_settings_of_another_kind_are_refused(copy, file, content, expected):
    (copy / file).write_text(content)
    assert re.search(expected, refusal(copy))


def test_a_checkpoint_without_its_tokenizer_is_refused(copy):
    """transformers makes a tokenizer of special tokens alone: all texts of one length would get the same vector."""
    for file in (*copy.glob("token*"), *copy.glob("vocab*")):
        file.unlink()
    assert "expected a tokenizer of about 89 tokens, got one of 5" in refusal(copy)


def test_padding_without_a_padding_token_changes_nothing(tmp_path):
    decoder, tokenizer = tiny_models.decoder(), tiny_models.tokenizer()
    expected = []
    for name, pad in {"with": "<pad>", "without": None, "beyond": "[PAD]"}.items():
        tokenizer.pad_token = pad
        decoder.model.config.pad_token_id = None
        decoder.model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        checkpoint = save(
            tmp_path / f"{name}-pooled", transformer(tmp_path / name), Pooling(32, pooling_mode="lasttoken")
        )
        encoder = encoder_of(str(checkpoint))
        batched, alone = encoder.encode_queries(TEXTS), [encoder.encode_queries([text])[0] for text in TEXTS]
        assert_close(batched, alone)
        expected = expected or alone
        assert_close(batched, expected)


def test_a_token_without_an_embedding_is_refused_where_a_text_has_it(copy, path):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["[[new]]"])
    tokenizer.save_pretrained(copy)
    encoder = encoder_of(str(copy))
    assert_close(encoder.encode_queries(TEXTS), embed(path)[0])
    with pytest.raises(InputError, match=r"expected an embedding of every token, got 89 .*'\[\[new\]\]'"):
        encoder.encode_queries([*TEXTS, "[[new]]"])


# Models of other kinds


def tiny_t5(plain):
    vocabulary = json.loads((plain / "config.json").read_text())["vocab_size"]
    return T5Config(vocab_size=vocabulary, d_model=32, d_ff=48, num_layers=1, num_heads=2, d_kv=16)


def no_encoder(folder, plain, kind):
    """Write a checkpoint of another kind with its tokenizer."""
    small = {key: json.loads((plain / "config.json").read_text())[key] for key in ("vocab_size", *SIZES)}
    t5 = tiny_t5(plain)
    model = {
        "cross-encoder": lambda: BertForSequenceClassification(BertConfig.from_pretrained(plain)),
        "encoder-decoder": lambda: T5ForConditionalGeneration(t5),
        "encoder-decoder without its head": lambda: T5Model(t5),
        "decoder": tiny_models.decoder,
        "decoder without its head": lambda: tiny_models.decoder().model,
        "questions alone": lambda: DPRQuestionEncoder(DPRConfig(**small)).eval(),
        "passages alone": lambda: DPRContextEncoder(DPRConfig(**small)).eval(),
    }[kind]()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return model


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")


@pytest.mark.parametrize(
    "kind",
    [
        *("cross-encoder", "encoder-decoder", "encoder-decoder without its head", "decoder"),
        *("decoder without its head", "questions alone", "passages alone"),
    ],
)
def test_a_model_of_another_kind_is_refused_when_the_encoder_is_opened(plain, tmp_path, kind):
    no_encoder(tmp_path / "model", plain, kind)
    with pytest.raises(InputError, match=f"expected a sentence encoder, got .* {kind.partition(' without')[0]}"):
        encoder_of(str(tmp_path / "model"))


def test_a_cross_encoder_of_sentence_transformers_is_refused(plain, tmp_path):
    no_encoder(tmp_path / "model", plain, "cross-encoder")
    CrossEncoder(str(tmp_path / "model"), device="cpu").save_pretrained(str(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"expected a .*, got .*[Cc]ross-?[Ee]ncoder"):
        encoder_of(str(tmp_path / "saved"))


def test_a_plain_encoder_is_embedded_with_a_warning(plain, tmp_path, caplog):
    with torch.random.fork_rng():
        BertForMaskedLM(BertConfig.from_pretrained(plain)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path)
    queries, passages = embed(tmp_path)
    assert_close(queries, passages)
    assert [message for message in caplog.messages if "means over its tokens" in message]


def test_the_encoder_of_an_encoder_decoder_is_embedded(plain, tmp_path):
    """Neither its configuration nor its tokenizer limits the number of tokens."""
    with torch.random.fork_rng():
        model = T5EncoderModel(tiny_t5(plain)).eval()
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        means = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    for vectors in embed(tmp_path):
        assert_close(vectors, [mean / mean.norm() for mean in means])


def test_an_encoder_whose_sides_have_other_dimensions_is_refused(plain, tmp_path):
    sides = [[transformer(plain), Pooling(32), Dense(32, size)] for size in (16, 8)]
    assert "queries of dimension 16 and passages of 8" in refusal(save(tmp_path, Router.for_query_document(*sides)))


# Asymmetric encoders


def test_queries_and_passages_go_through_their_own_side(plain, path, tmp_path):
    other = tiny_models.save_encoder(tmp_path / "other", seed=1)
    sides = [[transformer(folder), Pooling(32)] for folder in (plain, Path(other).with_name("plain"))]
    queries, passages = embed(save(tmp_path / "router", Router.for_query_document(*sides)))
    assert_close(queries, embed(path)[0])
    assert_close(passages, embed(other)[1])
    assert np.abs(queries - passages).max() > 0.1


def test_a_dpr_pair_is_embedded_as_in_the_original(plain, tmp_path):
    """The output for the first token, [SEP] between title and text, one segment (Karpukhin et al., 2020)."""
    names = {"query": "questions alone", "passage": "passages alone"}
    models = {side: no_encoder(tmp_path / side, plain, kind) for side, kind in names.items()}
    tokenizer = AutoTokenizer.from_pretrained(plain)
    passages, queries = open_encoders(*(str(tmp_path / side) for side in ("passage", "query")), device=CPU)
    rows = [Passage("It shines\nover Paris.", "The lamp"), Passage("lima\nA lamp.")]
    texts = {"query": [(text,) for text in TEXTS], "passage": [(rows[0].title, rows[0].text), (rows[1].text,)]}
    expected = {}
    for side, pairs in texts.items():
        ids = [tokenizer(*pair, return_tensors="pt").input_ids for pair in pairs]
        with torch.no_grad():
            expected[side] = [models[side](each).pooler_output[0].numpy() for each in ids]
        if side == "passage":
            numbers = [passages.count_passage_tokens(row.content) for row in rows]
            assert numbers[0] == ids[0].shape[1]
            assert numbers[1] >= ids[1].shape[1]
    assert_close(queries.encode_queries(TEXTS), expected["query"])
    assert_close(passages.encode_passages(rows), expected["passage"])


def test_a_dpr_checkpoint_that_lacks_weights_is_refused(plain, tmp_path):
    no_encoder(tmp_path, plain, "passages alone")
    rewrite(tmp_path / "model.safetensors", lambda w: {key: w[key] for key in list(w)[1:]})
    with pytest.raises(InputError, match=rf"^{tmp_path}: .* lacks 1 of "):
        encoder_of(str(tmp_path), side="passage").encode_passages([Passage("a")])


def test_a_pair_that_does_not_belong_together_is_refused(plain, path, tmp_path):
    for kind in ("questions alone", "passages alone"):
        no_encoder(tmp_path / kind.split()[0], plain, kind)
    questions, passages = str(tmp_path / "questions"), str(tmp_path / "passages")
    for pair, expected in (
        ((questions, passages), f"{questions}: expected an encoder of passages, got DPRQuestionEncoder"),
        ((passages, passages), f"{passages}: expected an encoder of questions, got DPRContextEncoder"),
        ((passages, path), f"--query_encoder {path}: expected the similarity of --embedding_model, dot, got cosine"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(expected)}"):
            open_encoders(*pair, device=CPU)
    small = save(tmp_path / "small", transformer(plain), Pooling(32), Dense(32, 8))
    with pytest.raises(InputError, match=f"^--query_encoder {small}: expected vectors of 32 dimensions .*, got 8"):
        check_dimensions(*open_encoders(path, str(small), device=CPU))


def test_a_side_that_lacks_weights_is_refused(plain, tmp_path):
    sides = [[transformer(plain), Pooling(32)] for _ in range(2)]
    router = save(tmp_path, Router.for_query_document(*sides))
    rewrite(tmp_path / "query_0_Transformer/model.safetensors", lambda w: {key: w[key] for key in list(w)[1:]})
    assert "lacks 1 of 39" in refusal(router)


def test_static_embeddings_are_means_of_their_table(plain, tmp_path, caplog):
    tokenizer = AutoTokenizer.from_pretrained(plain)
    static = StaticEmbedding(tokenizer, embedding_dim=24)
    table = static.embedding.weight.detach().double()
    encoder = encoder_of(str(save(tmp_path, static)))
    for text, vector in zip(TEXTS, encoder.encode_queries(TEXTS), strict=True):
        mean = table[tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0)
        assert_close(vector, mean / mean.norm())
    assert_close(encoder.encode_passages([Passage(text) for text in TEXTS]), encoder.encode_queries(TEXTS))
    assert not [message for message in caplog.messages if "truncated" in message]


def test_truncated_passages_are_counted_beside_static_embeddings_of_queries(plain, tmp_path, caplog):
    static = StaticEmbedding(AutoTokenizer.from_pretrained(plain), embedding_dim=32)
    router = save(tmp_path, Router.for_query_document([static], [transformer(plain), Pooling(32)]))
    encoder, long = encoder_of(str(router)), "a " * 300
    encoder.encode_queries([long])
    assert not [message for message in caplog.messages if "truncated" in message]
    encoder.encode_passages([Passage(long), Passage("b")])
    assert ["1 of 2 texts" in message for message in caplog.messages if "truncated" in message] == [True]
