"""Streams of a batch: each listener receives its own answer, and one that leaves costs the others nothing."""

import pytest
from tiny_generation import ENDS, INPUTS, MAX_NEW_TOKENS, generator, language_model
from tiny_seq2seq import save_seq2seq

from rqa.distributed.accelerator import make_accelerator
from rqa.generation import generator as generator_module
from rqa.generation.generator import Generator
from rqa.generation.streaming import Listener
from rqa.models import decoder
from rqa.models.auto import load_collator, load_generator


def streamed(generate, rows, **options):
    """Return the answers of a batch, and the pieces of each."""
    pieces = [[] for _ in rows]
    answers = generate.stream_batch(rows, [Listener(each.append, **options) for each in pieces])
    return answers, pieces


@pytest.mark.parametrize("end", ENDS)
def test_each_listener_receives_the_answer_of_its_own_question(end):
    builder, id = ENDS[end]
    generate = generator(language_model(id), 1, builder)
    expected = generate(INPUTS)
    rows = generate.collator.encode(INPUTS)
    for size in (1, 4, len(rows)):
        for start in range(0, len(rows), size):
            answers, pieces = streamed(generate, rows[start : start + size])
            assert answers == expected[start : start + size]
            assert ["".join(each) for each in pieces] == [answer.text for answer in answers]
    assert len({answer.num_tokens for answer in expected}) > 1
    assert max(map(len, pieces)) > 3


def test_answers_of_fusion_in_decoder_are_streamed_too(tmp_path):
    name = save_seq2seq(tmp_path / "seq2seq")
    accelerator = make_accelerator(bf16=False, deepspeed=None)
    collator = load_collator(name, is_fid=True, max_new_tokens=MAX_NEW_TOKENS)
    model = load_generator(accelerator, name, is_fid=True, attention="sdpa")
    generate = Generator(accelerator, model, collator, 1, MAX_NEW_TOKENS)
    answers, pieces = streamed(generate, collator.encode(INPUTS))
    assert answers == generate(INPUTS)
    assert ["".join(each) for each in pieces] == [answer.text for answer in answers]


def test_a_model_that_generates_in_parts_shows_each_answer_at_its_end(monkeypatch):
    generate = generator(language_model(), 1)
    expected = generate(INPUTS)
    for module in (generator_module, decoder):
        monkeypatch.setattr(module, "UNPADDED_MODELS", {"llama"})
    answers, pieces = streamed(generate, generate.collator.encode(INPUTS))
    assert answers == expected
    assert pieces == [[answer.text] for answer in expected]


def test_a_listener_that_leaves_changes_no_other_answer():
    generate = generator(language_model(), 1)
    expected = generate(INPUTS)
    rows = generate.collator.encode(INPUTS)
    pieces = [[] for _ in rows]
    leavers = {0, 3}
    listeners = [
        Listener(each.append, (lambda each=each: bool(each)) if i in leavers else (lambda: False))
        for i, each in enumerate(pieces)
    ]
    answers = generate.stream_batch(rows, listeners)
    for i, answer in enumerate(answers):
        if i not in leavers:
            assert (answer, "".join(pieces[i])) == (expected[i], expected[i].text)


def test_generation_ends_if_all_listeners_have_left(monkeypatch):
    generate = generator(language_model(), 1)
    generate.max_new_tokens = 10_000
    rows = generate.collator.encode(INPUTS[:2])
    answers, _ = streamed(generate, rows, has_left=lambda: True)
    assert {answer.num_tokens for answer in answers} == {1}


def test_a_limit_of_tokens_shortens_an_answer():
    generate = generator(language_model(), 1)
    rows = generate.collator.encode(INPUTS)
    answers, pieces = streamed(generate, rows, max_new_tokens=3)
    generate.max_new_tokens = 3
    assert answers == generate(INPUTS)
    assert ["".join(each) for each in pieces] == [answer.text for answer in answers]
