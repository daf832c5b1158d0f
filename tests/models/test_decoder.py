"""decoder: the loss of a batch is plain cross-entropy, row by row, for every family of decoders; loading."""

import json

import pytest
import torch
from closeness import assert_same_gradients, gradients
from safetensors.torch import load_file, save_file
from tiny_models import DECODERS, EOS, PAD, decoder, llama, random_batch, save_decoder
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MambaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import rqa.models.decoder
from rqa.errors import InputError
from rqa.models.decoder import AnswerLM, check_context_length, context_length, max_positions

ROWS = [
    (9, 4),
    (3, 12),
    (14, 1),
    (6, 6),
    (1, 2),
]  # tokens of prompt and answer, longer than sliding windows of attention


@pytest.fixture(params=DECODERS)
def family(request):
    return request.param


def row_of(batch, i, prompt, answer):
    """Return one row alone, without padding."""
    return {name: tensor[i : i + 1, : prompt + answer] for name, tensor in batch.items()}


def plain_loss(lm, batch):
    """Return cross-entropy over whole sequences, in double precision, (B,)."""
    logits = lm(batch["input_ids"]).logits.double()
    losses = cross_entropy(logits[:, :-1].mT, batch["labels"][:, 1:], reduction="none", ignore_index=-100)
    return losses.sum(-1)


def test_the_loss_is_plain_cross_entropy_of_each_row_alone(family):
    lm, batch = decoder(family), random_batch(ROWS)
    alone = torch.cat([plain_loss(lm, row_of(batch, i, *row)) for i, row in enumerate(ROWS)])
    losses = AnswerLM(lm)(**batch)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.double(), plain_loss(lm, batch), rtol=1e-5, atol=1e-5)


def test_the_gradients_are_those_of_plain_cross_entropy_of_each_row_alone(family):
    lm, batch = decoder(family), random_batch(ROWS)
    weights = torch.tensor([1.0, 0.5, 2.0, -1.0, 3.0])  # each row's gradient, not only their sum
    sum(weights[i] * plain_loss(lm, row_of(batch, i, *row))[0] for i, row in enumerate(ROWS)).backward()
    expected = gradients(lm)
    lm.zero_grad()
    (AnswerLM(lm)(**batch) * weights).sum().backward()
    assert_same_gradients(gradients(lm), expected)


def test_padding_and_order_of_the_rows_change_no_loss(family):
    model, batch = AnswerLM(decoder(family)), random_batch(ROWS)
    losses = model(**batch)
    torch.testing.assert_close(model(**random_batch(ROWS, length=40)), losses, rtol=1e-5, atol=1e-5)
    order = [3, 0, 4, 2, 1]
    shuffled = {name: tensor[order] for name, tensor in batch.items()}
    torch.testing.assert_close(model(**shuffled), losses[order], rtol=1e-5, atol=1e-5)
    padding = batch["labels"].flip(1).ne(-100).cumsum(1).flip(1).eq(0)
    garbage = batch | {"input_ids": batch["input_ids"].masked_fill(padding, 77)}
    torch.testing.assert_close(model(**garbage), losses, rtol=1e-5, atol=1e-5)


def test_only_answer_positions_are_projected(family):
    lm, batch, rows = decoder(family), random_batch(ROWS), []
    lm.get_output_embeddings().register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1]))
    AnswerLM(lm)(**batch)
    assert rows == [(sum(answer for _, answer in ROWS),)]


@pytest.mark.parametrize(("family", "masked"), [("llama", False), ("gpt2", False), ("mixtral", True)])
def test_only_a_model_with_experts_gets_a_mask(family, masked):
    lm, batch, masks = decoder(family), random_batch(ROWS), []
    lm.register_forward_pre_hook(lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True)
    AnswerLM(lm)(**batch)
    expected = torch.tensor([[position < sum(row) for position in range(15)] for row in ROWS]).long()
    assert masks[0].equal(expected) if masked else masks == [None]


@pytest.mark.parametrize("rows", [[(5, 0)], [(5, 0), (4, 3), (1, 0)]], ids=["alone", "among others"])
def test_a_row_without_targets_has_no_loss_and_no_gradient(family, rows):
    lm = decoder(family)
    losses = AnswerLM(lm)(**random_batch(rows))
    assert [loss == 0 for loss in losses.tolist()] == [answer == 0 for _, answer in rows]
    losses[[i for i, (_, answer) in enumerate(rows) if not answer]].sum().backward()
    grads = gradients(lm)
    assert grads.keys() == {name for name, _ in lm.named_parameters()}  # DDP waits for each of them
    assert not any(gradient.any() or gradient.isnan().any() for gradient in grads.values())


def test_a_row_without_targets_does_not_change_other_rows(family):
    model = AnswerLM(decoder(family))
    batch = random_batch([(4, 3), (2, 5), (5, 0)])
    without = {name: tensor[:2] for name, tensor in batch.items()}
    torch.testing.assert_close(model(**batch)[:2], model(**without), rtol=1e-5, atol=1e-5)


class LlamaOfOld(LlamaForCausalLM):
    """A model without `logits_to_keep`."""

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return super().forward(input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_a_model_that_projects_every_position_gives_the_same_loss():
    lm, batch = decoder(), random_batch(ROWS)
    old = LlamaOfOld(lm.config)
    old.load_state_dict(lm.state_dict())
    torch.testing.assert_close(AnswerLM(old)(**batch), AnswerLM(lm)(**batch))


def test_gradient_checkpointing_gives_the_same_gradients(family, tmp_path):
    batch, path, grads = random_batch(ROWS), save_decoder(tmp_path, decoder(family)), []
    for checkpointing in (False, True):
        model = AnswerLM.from_pretrained(path, gradient_checkpointing=checkpointing).train()
        assert model.model.is_gradient_checkpointing == checkpointing
        model(**batch).sum().backward()
        grads.append(gradients(model))
    assert_same_gradients(*grads)


# Loading


def test_a_checkpoint_loads_as_it_was_saved_with_its_own_attention(family, tmp_path):
    lm, batch = decoder(family), random_batch(ROWS)
    model = AnswerLM.from_pretrained(save_decoder(tmp_path, lm))
    assert type(model.model) is type(lm)
    # only Gemma 2 has no sdpa: its attention scores are soft-capped
    assert model.model.config._attn_implementation == ("eager" if family == "gemma2" else "sdpa")
    torch.testing.assert_close(model(**batch), AnswerLM(lm)(**batch), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_checkpoint_is_trained_in_float32(tmp_path):
    lm = decoder().to(torch.bfloat16)
    model = AnswerLM.from_pretrained(save_decoder(tmp_path, lm))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, tensor in lm.state_dict().items():
        assert tensor.float().equal(model.model.state_dict()[name])


@pytest.mark.parametrize("missing", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_a_missing_tensor_is_an_error(tmp_path, missing):
    path = save_decoder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[missing]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"every weight of LlamaForCausalLM, .* lacks 1: {missing}$"):
        AnswerLM.from_pretrained(path)


def test_a_tensor_of_another_shape_is_an_error(tmp_path):
    path = save_decoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 56}))
    with pytest.raises(InputError, match=r"lacks 6: model\.layers\.0\.mlp\.down_proj\.weight, "):
        AnswerLM.from_pretrained(path)


@pytest.mark.parametrize("make", [lambda: llama(tied=True), lambda: decoder("gpt2"), lambda: decoder("gemma2")])
def test_tied_weights_are_not_missing(tmp_path, make):
    lm = make()
    model = AnswerLM.from_pretrained(save_decoder(tmp_path, lm))
    assert not {"lm_head.weight"} & load_file(tmp_path / "model.safetensors").keys()
    assert model.model.get_input_embeddings().weight is model.model.get_output_embeddings().weight


def test_other_checkpoints_are_an_error(tmp_path):
    with pytest.raises(InputError, match="no-such-folder: expected a checkpoint folder or a hub name"):
        AnswerLM.from_pretrained(str(tmp_path / "no-such-folder"))
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    with pytest.raises(InputError, match=r"t5: expected a decoder, got an encoder-decoder \(t5\)"):
        AnswerLM.from_pretrained(str(tmp_path / "t5"))


@pytest.mark.parametrize("make", [llama, lambda: decoder("gpt2")])
def test_rows_longer_than_the_context_length_are_an_error_before_loading(tmp_path, make):
    path = save_decoder(tmp_path, make())
    (tmp_path / "model.safetensors").unlink()
    limit = make().config.max_position_embeddings
    check_context_length(path, limit)
    with pytest.raises(InputError, match=f"at most {limit} tokens .*{limit + 1}.*--max_prompt_length"):
        check_context_length(path, limit + 1)


def test_a_model_without_positions_has_no_context_length(tmp_path):
    MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1).save_pretrained(tmp_path)
    check_context_length(str(tmp_path), 10**9)


BERT = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 24, "pad_token_id": 1,
}  # fmt: skip
FROM_PADDING = {
    **dict.fromkeys("camembert data2vec-text ibert mpnet roberta roberta-prelayernorm".split(), BERT),
    **dict.fromkeys(("xlm-roberta", "xlm-roberta-xl"), BERT),
    "longformer": BERT | {"attention_window": 4},
    "luke": BERT | {"entity_vocab_size": 4, "entity_emb_size": 4},
    "xmod": BERT | {"languages": ["en_XX"], "default_language": "en_XX"},
}
LEARNED = {
    "bert": BERT,
    "opt": BERT | {"ffn_dim": 16, "word_embed_proj_dim": 16},
    "gpt2": {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24},
}


@pytest.mark.parametrize("kind", [*FROM_PADDING, *LEARNED])
def test_the_context_length_is_the_longest_input_of_a_model(kind):
    config = AutoConfig.for_model(kind, **(FROM_PADDING | LEARNED)[kind])
    last, model = context_length(config), AutoModel.from_config(config).eval()
    assert last == max_positions(config) == (22 if kind in FROM_PADDING else 24)
    model(torch.full((1, last), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, last + 1), 5))


def test_rotary_positions_are_unlimited_and_learned_ones_are_not(family, tmp_path):
    config = decoder(family).config
    assert max_positions(config) == (2048 if family == "gpt2" else None)
    assert check_context_length(save_decoder(tmp_path, decoder(family)), 2048) == max_positions(config)


def test_a_decoder_with_rotary_positions_reads_beyond_its_context_length():
    lm = decoder()
    assert AnswerLM(lm)(**random_batch([(context_length(lm.config) - 3, 9)])).isfinite().all()


# Generation


def left_padded(prompts):
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def test_generation_equals_that_of_the_plain_model_row_by_row(family):
    lm = decoder(family).eval()
    rows = random_batch([(9, 0), (3, 0), (21, 0), (14, 0)], seed=3)["input_ids"].tolist()
    prompts = [[id for id in row if id != PAD] for row in rows]
    generated = AnswerLM(lm).generate(**left_padded(prompts), max_new_tokens=12, eos_token_id=EOS, pad_token_id=PAD)
    alone = [
        lm.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=EOS, pad_token_id=PAD)
        for prompt in prompts
    ]
    assert len({tuple(row[0].tolist()[len(p) :]) for row, p in zip(alone, prompts, strict=True)}) > 1
    for row, expected, prompt in zip(generated.tolist(), alone, prompts, strict=True):
        expected = expected[0].tolist()[len(prompt) :]
        assert row == expected + [PAD] * (len(row) - len(expected))


@pytest.mark.parametrize("calls_of_other_ranks", [0, 2, 5])
def test_a_family_whose_answers_change_with_padding_generates_by_length(monkeypatch, calls_of_other_ranks):
    """Every rank makes equally many calls: one with fewer lengths repeats the last one."""
    lm, prompts = decoder("llama").eval(), [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15], [16]]
    options = {"max_new_tokens": 6, "eos_token_id": EOS, "pad_token_id": PAD, "num_beams": 2, "num_return_sequences": 2}
    expected = AnswerLM(lm).generate(**left_padded(prompts), **options)
    shapes, plain = [], rqa.models.decoder.generate_ids

    def generate_ids(model, input_ids, attention_mask, synced_gpus=False, **others):
        assert attention_mask.all()
        shapes.append(tuple(input_ids.shape))
        return plain(model, input_ids=input_ids, attention_mask=attention_mask, **others)

    monkeypatch.setattr(rqa.models.decoder, "generate_ids", generate_ids)
    monkeypatch.setattr(rqa.models.decoder, "UNPADDED_MODELS", {"llama"})
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda calls, op: calls.clamp_(min=calls_of_other_ranks))
    found = AnswerLM(lm).generate(**left_padded(prompts), **options, synced_gpus=True)
    assert found.tolist() == expected.tolist()
    assert shapes == [(1, 1), (2, 3), (1, 5), (1, 5), (1, 5)][: max(3, calls_of_other_ranks)]


def test_the_checkpoint_keeps_its_generation_config(tmp_path):
    lm = decoder()
    lm.generation_config.repetition_penalty = 1.5
    model = AnswerLM.from_pretrained(save_decoder(tmp_path / "before", lm))
    model.generate(**left_padded([[5, 6]]), max_new_tokens=2)
    model.model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "generation_config.json").read_text() for name in ("before", "after"))
    assert before == after
    assert json.loads(after)["repetition_penalty"] == 1.5


def test_the_wrapped_model_is_unchanged(family):
    lm = decoder(family)
    model = AnswerLM(lm)
    assert model.model is lm
    assert model.config is lm.config
    assert {f"model.{name}" for name in lm.state_dict()} == model.state_dict().keys()
    assert isinstance(lm, AutoModelForCausalLM._model_mapping[type(lm.config)])
