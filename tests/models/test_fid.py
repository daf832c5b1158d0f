"""fid: losses, gradients and answers of the plain model over passages that are encoded one by one."""

import json
from functools import partial
from itertools import product

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from closeness import assert_same_gradients, close, gradients
from tiny_models import EOS, PAD, VOCABULARY, decoder, save_decoder
from tiny_seq2seq import SEQ2SEQ, T5_IDS, T5_SIZES, random_passages, save_seq2seq, seq2seq
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSeq2SeqLM,
    LEDConfig,
    LEDForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutput

import rqa.models.fid
from rqa.errors import InputError
from rqa.models.auto import load_collator
from rqa.models.decoder import max_positions
from rqa.models.fid import UNSUPPORTED_OPTIONS, FusionInDecoder, check_encoder_decoder, fid_attention

LENGTHS = [[9, 4, 17, 6], [12], [3, 20, 3]]  # tokens of each passage
ANSWERS = [5, 1, 7]
GENERATION = {"max_new_tokens": 8, "eos_token_id": EOS, "pad_token_id": PAD}


@pytest.fixture(autouse=True)
def _calls_of_several_passages(monkeypatch):
    """Make three calls for eight passages, so that there is padding."""
    monkeypatch.setattr(rqa.models.fid, "ENCODER_CALLS", 3)
    monkeypatch.setattr(rqa.models.fid, "CALL_POSITIONS", -1000)  # never fewer


@pytest.fixture(params=SEQ2SEQ)
def family(request):
    return request.param


def exact(family):
    """Return a model in float64, where gradients that cancel are not lost in rounding."""
    return seq2seq(family).double().eval()


def passages_alone(batch):
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def before(model, labels):
    """Return the input of the decoder: the answer, shifted to the right."""
    ids = torch.cat([torch.full((len(labels), 1), FusionInDecoder(model).start_id), labels[:, :-1]], 1)
    return ids.masked_fill(ids == -100, PAD)


def textbook(model, input_ids, attention_mask, labels):
    """Return the logits (B, T, V) of the published formulation: encode padded passages, concatenate, decode."""
    rows, passages, length = input_ids.shape
    visible = attention_mask.view(rows * passages, length).clone()
    visible[:, 0] = 1  # a missing passage is encoded as padding and masked in the decoder
    encoded = model.get_encoder()(input_ids=input_ids.view(rows * passages, length), attention_mask=visible)
    memory = encoded.last_hidden_state.view(rows, passages * length, -1)
    return model(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory),
        attention_mask=attention_mask.view(rows, passages * length),
        decoder_input_ids=before(model, labels),
    ).logits


def textbook_loss(model, batch):
    logits = textbook(model, **batch)
    return cross_entropy(logits.mT, batch["labels"], reduction="none", ignore_index=-100).sum(-1)


# The plain model


def test_one_passage_gives_the_loss_of_the_plain_model(family):
    model, batch = seq2seq(family).eval(), random_passages([[9], [12], [20]], ANSWERS)
    plain = {name: tensor.squeeze(1) for name, tensor in passages_alone(batch).items()}
    logits = model(**plain, decoder_input_ids=before(model, batch["labels"])).logits
    fid = FusionInDecoder(model)
    is_target = batch["labels"] != -100
    close(fid.logits(**batch)[is_target], logits[is_target])
    expected = cross_entropy(logits.mT, batch["labels"], reduction="none", ignore_index=-100).sum(-1)
    close(fid(**batch), expected)


def test_one_passage_gives_the_gradients_of_the_plain_model(family):
    model, batch = exact(family), random_passages([[9], [12], [20]], ANSWERS)
    weights = torch.tensor([1.0, -2.0, 0.5])  # each row's gradient, not only their sum
    plain = {name: tensor.squeeze(1) for name, tensor in passages_alone(batch).items()}
    logits = model(**plain, decoder_input_ids=before(model, batch["labels"])).logits
    losses = cross_entropy(logits.mT, batch["labels"], reduction="none", ignore_index=-100).sum(-1)
    (losses * weights).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    (FusionInDecoder(model)(**batch) * weights).sum().backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 1.3}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["greedy", "beams", "sampling", "two of two beams"],
)
def test_one_passage_gives_the_answers_of_the_plain_model(family, options):
    model, batch = seq2seq(family).eval(), passages_alone(random_passages([[9], [12], [20]], ANSWERS))
    fid = FusionInDecoder(model)
    plain = {name: tensor.squeeze(1) for name, tensor in batch.items()}
    torch.manual_seed(0)
    expected = model.generate(**plain, decoder_start_token_id=fid.start_id, forced_eos_token_id=None,
                              **{"do_sample": False} | GENERATION | options)  # fmt: skip
    assert len({tuple(row) for row in expected.tolist()}) > 1  # the answers depend on the passage
    torch.manual_seed(0)
    assert fid.generate(**batch, **GENERATION, **options).tolist() == expected[:, 1:].tolist()


# The published formulation


def test_losses_are_those_of_the_published_formulation(family):
    model, batch = seq2seq(family).eval(), random_passages(LENGTHS, ANSWERS)
    fid = FusionInDecoder(model)
    is_target = batch["labels"] != -100
    close(fid.logits(**batch)[is_target], textbook(model, **batch)[is_target])
    losses = fid(**batch)
    assert losses.dtype == torch.float32
    close(losses, textbook_loss(model, batch))


def test_gradients_are_those_of_the_published_formulation(family):
    model, batch = exact(family), random_passages(LENGTHS, ANSWERS)
    textbook_loss(model, batch).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    FusionInDecoder(model)(**batch).sum().backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_answers_are_those_of_the_published_formulation(family, options):
    """Greedy: the likeliest token of the textbook, one by one. Beams: over its encoder states."""
    model, batch = seq2seq(family).eval(), random_passages(LENGTHS, ANSWERS)
    passages = passages_alone(batch)
    answers = FusionInDecoder(model).generate(**passages, **GENERATION, **options)
    if options:
        encoded = model.get_encoder()(**{name: tensor.flatten(0, 1) for name, tensor in passages.items()})
        memory = encoded.last_hidden_state.view(len(LENGTHS), -1, encoded.last_hidden_state.shape[-1])
        start = FusionInDecoder(model).start_id
        expected = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=passages["attention_mask"].flatten(1),
            decoder_start_token_id=start, forced_eos_token_id=None, **GENERATION, **options,
        )[:, 1:]  # fmt: skip
    else:
        expected = torch.empty(len(LENGTHS), 0, dtype=torch.long)
        for _ in range(answers.shape[1]):
            padded = torch.cat([expected, torch.full((len(LENGTHS), 1), PAD)], 1)
            expected = torch.cat([expected, textbook(model, **passages, labels=padded)[:, -1:].argmax(-1)], 1)
        over = (expected == EOS).cumsum(1) - (expected == EOS).long() > 0
        expected = expected.masked_fill(over, PAD)
    assert len({tuple(row) for row in expected.tolist()}) > 1
    assert answers.tolist() == expected.tolist()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_answers_of_a_deeper_decoder_are_those_without_a_cache(options):
    """generate() of transformers makes a cache with as many layers as the encoder has."""
    passages = passages_alone(random_passages(LENGTHS, ANSWERS))
    config = T5Config(**T5_SIZES | {"num_decoder_layers": 3}, **T5_IDS, initializer_factor=1.0)
    for seed in range(5):
        torch.manual_seed(seed)
        fid = FusionInDecoder(T5ForConditionalGeneration(config).eval().double())
        expected = fid.generate(**passages, **GENERATION, **options, use_cache=False)
        assert fid.generate(**passages, **GENERATION, **options).equal(expected)
    assert len({tuple(row) for row in expected.tolist()}) > 1


# Invariances


def test_masked_passages_do_not_matter(family):
    fid, batch = FusionInDecoder(seq2seq(family).eval()), random_passages(LENGTHS, ANSWERS)
    garbage = batch["input_ids"].where(batch["attention_mask"].bool(), torch.tensor(77))
    close(fid(**batch | {"input_ids": garbage}), fid(**batch))
    masked = {name: tensor.clone() for name, tensor in batch.items()}
    masked["attention_mask"][0, 2] = 0
    without = random_passages(LENGTHS, ANSWERS)
    kept = [0, 1, 3]
    without = {name: tensor[:1, kept] if tensor.ndim == 3 else tensor[:1] for name, tensor in without.items()}
    close(fid(**masked)[:1], fid(**without))
    assert abs(fid(**masked)[0] - fid(**batch)[0]) > 1e-3  # unmasked passages matter


def test_padding_other_rows_and_passage_order_do_not_matter(family):
    fid, batch = FusionInDecoder(seq2seq(family).eval()), random_passages(LENGTHS, ANSWERS)
    losses = fid(**batch)
    close(fid(**random_passages(LENGTHS, ANSWERS, length=40)), losses)
    alone = [fid(**{name: tensor[i : i + 1] for name, tensor in batch.items()}) for i in range(3)]
    close(torch.cat(alone), losses)
    order = [2, 0, 3, 1]
    shuffled = {name: tensor[:, order] if tensor.ndim == 3 else tensor for name, tensor in batch.items()}
    close(fid(**shuffled), losses)


@pytest.mark.parametrize("calls", [1, 2, 3, 8, 100])
def test_the_number_of_encoder_calls_does_not_matter(family, calls, monkeypatch):
    model, batch, found = exact(family), random_passages(LENGTHS, ANSWERS), []
    for number in (calls, 4):
        monkeypatch.setattr(rqa.models.fid, "ENCODER_CALLS", number)
        sizes, hook = calls_of(model)
        losses = FusionInDecoder(model)(**batch)
        losses.sum().backward()
        hook.remove()
        assert len(sizes) == min(number, 8)  # there are eight passages
        assert sum(size for size, _ in sizes) == 8
        found.append((losses, gradients(model)))
        model.zero_grad()
    close(found[0][0], found[1][0])
    assert_same_gradients(found[0][1], found[1][1])


def calls_of(model):
    """Return a list that collects (passages, length) of each encoder call, and its hook."""
    sizes = []
    hook = model.get_encoder().register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return sizes, hook


def test_passages_of_similar_length_share_a_call(monkeypatch):
    monkeypatch.setattr(rqa.models.fid, "ENCODER_CALLS", 4)
    model, batch = seq2seq().eval(), random_passages(LENGTHS, ANSWERS)
    sizes, _ = calls_of(model)
    FusionInDecoder(model)(**batch)
    assert sizes == [(2, 20), (2, 12), (2, 6), (2, 3)]  # of 20 17 12 9 6 4 3 3


def test_calls_compute_the_fewest_positions_with_those_that_a_call_costs(monkeypatch):
    model, batch, costs = FusionInDecoder(seq2seq().eval()), random_passages(LENGTHS, ANSWERS), {}
    sizes, _ = calls_of(model.model)
    for calls in range(1, 9):
        monkeypatch.setattr(rqa.models.fid, "ENCODER_CALLS", calls)
        model(**batch)
        costs[len(sizes)] = sum(size * length for size, length in sizes)
        sizes.clear()
    assert [*costs] == [*range(1, 9)]
    best = set()
    for cost in (0, 5, 20, 1000):
        monkeypatch.setattr(rqa.models.fid, "CALL_POSITIONS", cost)
        model(**batch)
        best.add(len(sizes))
        assert costs[len(sizes)] + cost * len(sizes) == min(costs[calls] + cost * calls for calls in costs)
        sizes.clear()
    assert len(best) == 4


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_small_encoder_batch_changes_nothing_even_with_dropout(family, size, dropout, monkeypatch):
    """Activations are computed again in the backward pass, with the same random numbers."""
    model, batch, found = seq2seq(family, dropout=dropout).train(), random_passages(LENGTHS, ANSWERS), []
    monkeypatch.setattr(
        rqa.models.fid, "ENCODER_CALLS", -(-8 // size)
    )  # the same calls, and so the same random numbers
    for encoder_batch_size in (None, size):
        torch.manual_seed(3)
        sizes, hook = calls_of(model)
        losses = FusionInDecoder(model, encoder_batch_size=encoder_batch_size)(**batch)
        losses.sum().backward()
        hook.remove()
        assert max(number for number, _ in sizes) <= size
        assert len(sizes) == -(-8 // size) * (2 if encoder_batch_size else 1)
        found.append((losses, gradients(model)))
        model.zero_grad()
    assert found[0][0].equal(found[1][0])
    assert_same_gradients(found[1][1], found[0][1])


def test_encoder_calls_without_passages_change_nothing(family):
    model, batch, found = exact(family), random_passages([[9]], [3]), []
    for sync_encoder_calls in (False, True):
        sizes, hook = calls_of(model)
        losses = FusionInDecoder(model, sync_encoder_calls=sync_encoder_calls)(**batch)
        losses.sum().backward()
        hook.remove()
        assert len(sizes) == (2 if sync_encoder_calls else 1)
        found.append((losses, gradients(model)))
        model.zero_grad()
    close(found[0][0], found[1][0])
    assert_same_gradients(found[1][1], found[0][1])


def test_gradient_checkpointing_gives_the_same_gradients(family, tmp_path):
    batch, path, found = random_passages(LENGTHS, ANSWERS), save_seq2seq(tmp_path, seq2seq(family)), []
    for checkpointing in (False, True):
        model = FusionInDecoder.from_pretrained(path, gradient_checkpointing=checkpointing).train()
        model(**batch).sum().backward()
        found.append(gradients(model))
    assert_same_gradients(*found)


def test_an_example_without_passages_does_not_change_other_rows(family):
    fid = FusionInDecoder(seq2seq(family).eval())
    batch, mates = random_passages([[9, 4], [0, 0]], [3, 2]), random_passages([[9, 4]], [3])
    losses = fid(**batch)
    close(losses[:1], fid(**mates))
    assert losses.isfinite().all()
    generated = fid.generate(**passages_alone(batch), **GENERATION)
    alone = fid.generate(**passages_alone(mates), **GENERATION)
    assert generated[0, : alone.shape[1]].tolist() == alone[0].tolist()
    assert fid(**random_passages([[0, 0], [0, 0]], [3, 2], length=4)).isfinite().all()


def test_a_row_without_targets_has_no_loss_and_no_gradient(family):
    model = seq2seq(family).eval()
    losses = FusionInDecoder(model)(**random_passages([[5], [7]], [0, 3]))
    assert [loss == 0 for loss in losses.tolist()] == [True, False]
    losses[0].backward()
    found = gradients(model)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}  # DDP waits for each
    assert not any(gradient.any() or gradient.isnan().any() for gradient in found.values())


# Checkpoints


def test_checkpoints_are_loaded_and_saved_as_the_plain_class(family, tmp_path):
    model, batch = seq2seq(family).eval(), random_passages(LENGTHS, ANSWERS)
    loaded = FusionInDecoder.from_pretrained(save_seq2seq(tmp_path / "before", model)).eval()
    assert loaded.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    close(loaded(**batch), FusionInDecoder(model)(**batch))
    loaded.model.save_pretrained(tmp_path / "after")
    again, loading = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "after", output_loading_info=True)
    assert type(again) is type(model)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    close(textbook_loss(again.eval(), batch), textbook_loss(model, batch))


def test_the_generation_config_is_ignored(family):
    model, batch = seq2seq(family).eval(), passages_alone(random_passages(LENGTHS, ANSWERS))
    fid = FusionInDecoder(model)
    expected = fid.generate(**batch, **GENERATION).tolist()
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.min_new_tokens = 8
    assert fid.generate(**batch, **GENERATION).tolist() == expected
    assert model.generation_config.no_repeat_ngram_size == 1


# Errors


@pytest.mark.parametrize("name", UNSUPPORTED_OPTIONS)
def test_an_unsupported_option_is_an_error(name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        FusionInDecoder(seq2seq()).generate(**passages_alone(random_passages([[3]], [1])), **{name: 1})


def test_other_checkpoints_are_an_error(tmp_path):
    path = save_decoder(tmp_path / "llama")
    with pytest.raises(InputError, match=r"expected an encoder-decoder .* got a decoder \(llama\)"):
        check_encoder_decoder(path, 100, 100)
    with pytest.raises(InputError, match="no-such-folder: expected a checkpoint folder or a hub name"):
        check_encoder_decoder(str(tmp_path / "no-such-folder"), 100, 100)
    with pytest.raises(InputError, match="llama: expected an encoder-decoder"):
        FusionInDecoder.from_pretrained(path)


@pytest.mark.parametrize("family", ["bart", "two_berts"])
def test_passages_and_answers_longer_than_the_context_length_are_an_error(tmp_path, family):
    path = save_seq2seq(tmp_path, seq2seq(family))
    check_encoder_decoder(path, 512, 512)
    with pytest.raises(InputError, match=r"at most 512 tokens in the encoder, got 513.*--max_passage_length"):
        check_encoder_decoder(path, 513, 512)
    with pytest.raises(InputError, match=r"at most 512 tokens in the decoder, got 513.*--max_answer_length or"):
        check_encoder_decoder(path, 512, 513)


def test_t5_has_no_context_length(tmp_path):
    check_encoder_decoder(save_seq2seq(tmp_path), 10**6, 10**6)


def led():
    """Return a model with 20 encoder positions and 12 decoder positions."""
    sizes = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": EOS}
    windows = {"max_encoder_position_embeddings": 20, "max_decoder_position_embeddings": 12, "attention_window": 4}
    return LEDForConditionalGeneration(LEDConfig(**ids, **sizes, **windows, d_model=8))


def test_led_has_two_context_lengths(tmp_path):
    path = save_seq2seq(tmp_path, led())
    assert max_positions(check_encoder_decoder(path, 20, 12)) == 12
    with pytest.raises(InputError, match=r"at most 20 tokens in the encoder, got 21.*--max_passage_length"):
        check_encoder_decoder(path, 21, 12)
    with pytest.raises(InputError, match=r"at most 12 tokens in the decoder, got 13.*--max_answer_length or"):
        check_encoder_decoder(path, 20, 13)


@pytest.mark.parametrize("make", [*(partial(seq2seq, name) for name in SEQ2SEQ), led], ids=[*SEQ2SEQ, "led"])
def test_an_answer_may_use_all_positions_of_the_decoder(make):
    fid = FusionInDecoder(make().eval())
    positions = max_positions(fid.config)
    assert positions == {"bart": 512, "encoder-decoder": 512, "led": 12}.get(fid.config.model_type)
    assert fid(**random_passages([[9]], [positions or 600])).isfinite().all()
    if positions:
        with pytest.raises((IndexError, RuntimeError)):
            fid(**random_passages([[9]], [positions + 1]))


def test_a_loaded_collator_has_the_positions_of_the_checkpoint(tmp_path):
    lm = save_decoder(tmp_path / "gpt2", decoder("gpt2"))
    assert load_collator(lm, max_prompt_length=1000).max_positions == 2048
    for name, positions in {"t5": None, "bart": 512}.items():
        assert load_collator(save_seq2seq(tmp_path / name, seq2seq(name)), is_fid=True).max_positions == positions


@pytest.mark.parametrize(
    ("source", "is_alone"),
    [("generation_config.json", False), *product(("config.json", "bos", "nothing"), (False, True))],
)
def test_the_start_token_of_the_files_is_that_of_the_model(tmp_path, source, is_alone):
    path = save_seq2seq(tmp_path, seq2seq("bart"))
    for name in ("generation_config.json", "config.json"):
        values = json.loads((tmp_path / name).read_text())
        values["decoder_start_token_id"] = 7 if name == source else None
        values["bos_token_id"] = 7 if source == "bos" else None
        (tmp_path / name).write_text(json.dumps(values))
    if is_alone:
        (tmp_path / "generation_config.json").unlink()
    if source == "nothing":
        with pytest.raises(InputError, match=r"expected a decoder_start_token_id in config.json"):
            check_encoder_decoder(path, 100, 100)
        with pytest.raises(InputError, match=r"expected a decoder_start_token_id in config.json"):
            FusionInDecoder.from_pretrained(path)
    else:
        check_encoder_decoder(path, 100, 100)
        assert FusionInDecoder.from_pretrained(path).start_id == 7


@pytest.mark.parametrize("value", [-1, 10**6, "x", {"a": 1}, float("nan"), True])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_start_token_that_is_no_token_is_an_error(tmp_path, name, value):
    path = save_seq2seq(tmp_path)
    for file in ("generation_config.json", "config.json"):
        values = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(values | {"decoder_start_token_id": value if file == name else None}))
    with pytest.raises(InputError, match=r"decoder_start_token_id"):
        check_encoder_decoder(path, 100, 100)


def test_t5_in_float16_or_with_flash_attention_is_an_error(family):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator, config = Accelerator(cpu=True), seq2seq(family).config
    accelerator.state._mixed_precision = "fp16"
    if family in ("t5", "mt5", "umt5"):
        with pytest.raises(InputError, match=r"mixed precision fp16: .* 65504"):
            fid_attention(config, accelerator)
        accelerator.state._mixed_precision = "bf16"
        with pytest.raises(InputError, match=r"--use_flash_attention true: .* bias"):
            fid_attention(config, accelerator, use_flash_attention=True)
        assert fid_attention(config, accelerator) == "eager"
    else:
        assert fid_attention(config, accelerator) is None
    accelerator.state._mixed_precision = "no"
    assert fid_attention(config, accelerator) is None


# Precision


def test_bfloat16_is_near_float32(family):
    """Losses are finite too: bfloat16 has the exponents of float32."""
    fid, batch = FusionInDecoder(seq2seq(family).eval()), random_passages(LENGTHS, ANSWERS)
    with torch.autocast("cpu", torch.bfloat16):
        losses = fid(**batch)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, fid(**batch), rtol=0.2, atol=0.5)


def test_the_start_token_is_that_of_the_model():
    starts = {family: FusionInDecoder(seq2seq(family)).start_id for family in SEQ2SEQ}
    assert starts == {"t5": PAD, "mt5": PAD, "umt5": PAD, "bart": EOS, "two_berts": 1, "t5gemma": 1}
