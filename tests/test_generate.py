"""rqa.generate: the answers are those of the plain model, one by one, in every batch size and on two processes."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_models import EOS, PAD, decoder, tokenizer
from world import PLACES, launch_two

from rqa.collators import ConcatenatedCollator
from rqa.data import Example, Passage, Turn
from rqa.decoder import AnswerLM
from rqa.generate import Answer, Generator
from rqa.passages import Reading
from rqa.prompts import ChatFormat, PromptBuilder

HISTORY = (Turn("user", "Hello."), Turn("assistant", "Ask."))
READINGS = [
    Reading.ranked(
        Example(place, f"Where is {place}?", ("There.",), chat_history=HISTORY * (number % 2)),
        [Passage(f"{place} is far. " * (number * 5 % 7))] * (number % 3),
    )
    for number, place in enumerate(PLACES[:9])
]
MAX_NEW_TOKENS = 14
OFTEN = 100  # a byte that the model says in the middle of some of its answers
TEMPLATE = PromptBuilder(tokenizer())
PREFIXES = PromptBuilder(tokenizer(), ChatFormat("User", "Assistant", " ", "<|user|>"))
ENDS = {"eos": (TEMPLATE, EOS), "separator": (PREFIXES, tokenizer().convert_tokens_to_ids("<|user|>"))}


def language_model(end=EOS, *, dropout=0.0):
    """A decoder that says `end` where it would have said OFTEN."""
    lm = decoder(dropout=dropout)
    with torch.no_grad():
        lm.lm_head.weight[[OFTEN, end]] = lm.lm_head.weight[[end, OFTEN]]
    return lm


def generator(lm, batch_size, builder=TEMPLATE):
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model = accelerator.prepare(AnswerLM(lm))
    return Generator(accelerator, model, ConcatenatedCollator(builder), batch_size, MAX_NEW_TOKENS)


def one_by_one(lm, builder=TEMPLATE):
    """What the plain model answers to each prompt alone."""
    answers, stops = [], {"eos_token_id": builder.stop_ids, "pad_token_id": PAD}
    for reading in READINGS:
        prompt = builder.prompt(reading).ids
        ids = lm.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, **stops)
        ids = ids[0, len(prompt) :].tolist()
        finished = ids[-1] in builder.stop_ids
        text = builder.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
        answers.append(Answer(text.strip(), len(ids), len(prompt), finished))
    return answers


@pytest.mark.parametrize(("builder", "end"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_answers_are_those_of_the_plain_model_one_by_one(batch_size, builder, end):
    expected = one_by_one(language_model(end), builder)
    assert generator(language_model(end), batch_size, builder)(READINGS) == expected
    assert {answer.finished for answer in expected} == {True, False}
    assert len({answer.text for answer in expected}) == len(READINGS)
    assert len({answer.num_tokens for answer in expected}) > 2


def test_answers_stand_in_the_order_of_the_readings():
    generate = generator(language_model(), 2)
    assert generate(READINGS[::-1]) == generate(READINGS)[::-1]
    assert generate([*READINGS[:1] * 3, *READINGS[:2]]) == generate(READINGS[:1]) * 4 + generate(READINGS[1:2])
    assert generate([]) == []


def test_the_reference_of_an_example_has_no_say():
    others = [replace(reading, answer="Elsewhere, and much longer.") for reading in READINGS]
    generate = generator(language_model(), 4)
    assert generate(others) == generate(READINGS)


def test_neither_dropout_nor_the_sampling_of_the_checkpoint_has_a_say():
    sampling = language_model(dropout=0.5).train()
    sampling.generation_config.update(
        do_sample=True, temperature=9.0, repetition_penalty=3.0, num_beams=2, min_length=9
    )
    assert generator(sampling, 4)(READINGS) == one_by_one(language_model())


@pytest.mark.parametrize(("builder", "end"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_longest_prompts_come_first_and_a_batch_ends_with_its_longest_answer(monkeypatch, batch_size, builder, end):
    sizes, plain = [], AnswerLM.generate

    def record(model, **batch):
        ids = plain(model, **batch)
        sizes.append((len(ids), batch["input_ids"].shape[1], ids.shape[1]))
        return ids

    monkeypatch.setattr(AnswerLM, "generate", record)
    answers = generator(language_model(end), batch_size, builder)(READINGS)
    answers.sort(key=lambda answer: -answer.num_prompt_tokens)
    batches = [answers[i : i + batch_size] for i in range(0, len(answers), batch_size)]
    assert sizes == [(len(b), b[0].num_prompt_tokens, max(answer.num_tokens for answer in b)) for b in batches]


def results():
    """For batch sizes of many and of few batches: the file that a run would write, and what this process answered."""
    found = []
    for batch_size in (2, 4, 9, 20):
        generate, answered = generator(language_model(), batch_size), []
        plain = generate._generate
        generate._generate = lambda model, rows, plain=plain, answered=answered: (
            answered.extend(len(row.prompt) for row in rows) or plain(model, rows)
        )
        found.append(("\n".join(json.dumps(asdict(answer)) for answer in generate(READINGS)), answered))
    return found


def test_two_processes_write_the_file_of_one_and_answer_everything_once(tmp_path):
    first, second = (json.loads(path.read_text()) for path in launch_two(__file__, tmp_path))
    for (file, of_first), (other_file, of_second), (expected, of_one) in zip(first, second, results(), strict=True):
        assert file == other_file == expected
        assert sorted(of_first + of_second) == sorted(of_one)
    assert [len(of_second) for _, of_second in second] == [4, 4, 0, 0]  # of 5, 3, 1 and 1 batches


if __name__ == "__main__":
    Path(sys.argv[1 + Accelerator(cpu=True).process_index]).write_text(json.dumps(results()))
