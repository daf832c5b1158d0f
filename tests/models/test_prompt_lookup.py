"""Prompt lookup: the answers of `generate`, token by token, in fewer passes."""

import pytest
import tiny_models
import torch
from architectures import EOS, OWN_VALUES, PAD, VOCABULARY, tiny_model
from tiny_generation import ENDS, INPUTS, generator, language_model
from torch import nn

from rqa.models import prompt_lookup
from rqa.models.decoder import AnswerLM
from rqa.models.prompt_lookup import LOOKUP_MODELS, can_look_up, generate_with_lookup

LENGTHS, NEW = (9, 3, 14, 6), 12
LIMITS = {"max_new_tokens": NEW, "eos_token_id": [EOS], "pad_token_id": PAD}


def prompts(seed=0):
    """Return prompts of several lengths, padded on the left, and their mask."""
    random = torch.Generator().manual_seed(seed)
    rows = [torch.randint(5, tiny_models.VOCABULARY, (length,), generator=random) for length in LENGTHS]
    longest = max(LENGTHS)
    ids = torch.stack([nn.functional.pad(row, (longest - len(row), 0), value=PAD) for row in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def partly_right(answers, monkeypatch):
    """Make the first candidates of each row right, and the next one wrong; their number differs by row and step."""

    def candidates(row):
        answer = next(answer for answer in answers if answer[: len(row.answer)] == row.answer)
        done, most = len(row.answer), row.limit - len(row.ids) - 1
        num_right = (7 * done + answer[0]) % 5
        return [*answer[done : done + num_right], VOCABULARY - 1, VOCABULARY - 2][:most]

    monkeypatch.setattr(prompt_lookup._Row, "candidates", candidates)


@pytest.mark.parametrize("model_type", sorted(LOOKUP_MODELS))
@torch.no_grad()
def test_every_family_generates_the_same_with_candidates_that_are_partly_right(model_type, monkeypatch):
    if model_type in ("mistral", "mixtral", "phi3", "starcoder2"):  # the default of these has a window
        monkeypatch.setitem(OWN_VALUES, model_type, {"sliding_window": None})
    model, batch, passes = tiny_model(model_type, is_fid=False), prompts(), []
    assert can_look_up(model)
    alone = [
        AnswerLM(model).generate(row[None, -length:], torch.ones(1, length, dtype=torch.long), **LIMITS)[0].tolist()
        for row, length in zip(batch["input_ids"], LENGTHS, strict=True)
    ]
    assert len({tuple(answer) for answer in alone}) == len(LENGTHS)
    partly_right(alone, monkeypatch)
    model.register_forward_hook(lambda *_: passes.append(1))
    together = generate_with_lookup(model, **batch, **LIMITS, num_candidates=6)
    assert together.tolist() == [answer + [PAD] * (together.shape[1] - len(answer)) for answer in alone]
    assert len(passes) < max(map(len, alone))


@pytest.mark.parametrize(("builder", "end"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_answers_are_those_of_a_generator_without_lookup(batch_size, builder, end):
    plain = generator(language_model(end), batch_size, builder)
    lookup = generator(language_model(end), batch_size, builder, prompt_lookup_tokens=8)
    assert lookup(INPUTS) == plain(INPUTS)


@pytest.mark.parametrize("num_tokens", [1, 2, 100])
def test_a_repeated_text_takes_few_passes(num_tokens):
    """A model whose answer depends on the last token alone repeats a cycle."""
    torch.manual_seed(0)
    lm, batch, passes = tiny_models.llama().eval(), prompts(), []
    for layer in lm.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
    options = {**LIMITS, "eos_token_id": [], "max_new_tokens": num_tokens}
    expected = AnswerLM(lm).generate(**batch, **{**options, "eos_token_id": None})
    lm.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        found = generate_with_lookup(lm, **batch, **options, num_candidates=8)
    assert found.tolist() == expected.tolist()
    assert found.shape[1] == num_tokens
    assert len(passes) <= num_tokens // 2 + 1


def test_models_with_a_window_or_without_positions_generate_token_by_token():
    for model in (tiny_models.mistral(), tiny_models.gemma2(), tiny_models.gpt2()):
        assert not can_look_up(model)
        assert generator(model, 4, prompt_lookup_tokens=8).prompt_lookup_tokens == 0


def test_streams_decode_token_by_token():
    pieces = []
    generate = generator(language_model(), 4, prompt_lookup_tokens=8)
    rows = generate.collator.encode(INPUTS[:1])
    assert generate.stream(rows[0], pieces.append) == generate(INPUTS[:1])[0]
    assert len(pieces) > 1


def test_stored_answers_are_used_only_with_the_same_number_of_candidates(tmp_path):
    plain, lookup = (generator(language_model(), 4, prompt_lookup_tokens=tokens) for tokens in (0, 8))
    plain.resumable(tmp_path)(INPUTS)
    assert not any(answer.is_stored for answer in lookup.resumable(tmp_path)(INPUTS))
    assert all(answer.is_stored for answer in lookup.resumable(tmp_path)(INPUTS))


@pytest.mark.parametrize("num_right", [0, 8])
@torch.no_grad()
def test_wrong_candidates_are_soon_left_out(num_right, monkeypatch):
    torch.manual_seed(0)
    lm, batch, sizes = tiny_models.llama().eval(), prompts(), []
    options = {**LIMITS, "eos_token_id": [], "max_new_tokens": 64}
    expected = AnswerLM(lm).generate(**batch, **{**options, "eos_token_id": None}).tolist()
    assert len({answer[0] for answer in expected}) == len(LENGTHS)

    def candidates(row):
        answer = next(answer for answer in expected if answer[0] == row.answer[0])
        done = len(row.answer)
        right = answer[done : done + 8]
        return right if num_right else [(token + 1) % tiny_models.VOCABULARY for token in right]

    monkeypatch.setattr(prompt_lookup._Row, "candidates", candidates)
    lm.register_forward_pre_hook(lambda _model, args: sizes.append(args[0].shape[1]))
    assert generate_with_lookup(lm, **batch, **options, num_candidates=8).tolist() == expected
    if num_right:
        assert len(sizes) <= 1 + 64 // 8
    else:
        assert len(sizes) == 64
        assert sum(sizes[1:]) <= 63 + 8
