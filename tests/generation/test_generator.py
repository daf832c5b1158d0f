"""generator: the answers are those of the plain model, one by one, in every batch size and on more processes."""

import json
import sys
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from tiny_models import EOS, PAD, decoder, tokenizer
from world import PLACES, ROOT, hand_over, handed_over, launch, results_of, torchrun

from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.distributed.accelerator import make_accelerator
from rqa.generation.generator import Answer, Generator
from rqa.models.decoder import AnswerLM
from rqa.prompts.collators import ConcatenatedCollator
from rqa.prompts.decoder_prompt import ChatFormat, PromptBuilder

HISTORY = (Turn("user", "Hello."), Turn("assistant", "Ask."))
READINGS = [
    GeneratorInput.from_ranked(
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


def generator(lm, batch_size, builder=TEMPLATE, accelerator=None):
    accelerator = accelerator or Accelerator(cpu=True, mixed_precision="no")
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


def results(accelerator=None, *, is_sharded=False):
    """For batch sizes of many and of few batches: the file that a run would write, and the calls of this process."""
    found = []
    for batch_size in (2, 4, 9, 20):
        generate, calls = generator(language_model(), batch_size, accelerator=accelerator), []
        generate.is_sharded |= is_sharded
        plain = generate._generate
        generate._generate = lambda model, rows, plain=plain, calls=calls: (
            calls.append([row.num_prompt_tokens for row in rows]) or plain(model, rows)
        )
        found.append(("\n".join(json.dumps(asdict(answer)) for answer in generate(READINGS)), calls))
    return found


@pytest.mark.parametrize("processes", [2, 3])
def test_more_processes_write_the_file_of_one_and_answer_everything_once(tmp_path, processes):
    ranks = results_of(__file__, tmp_path, processes=processes)
    for (file, calls), *of_ranks in zip(results(), *(whole for whole, _ in ranks), strict=True):
        assert [found for found, _ in of_ranks] == [file] * processes
        repeated = calls[-1:] * (processes - len(calls))  # by those that have nothing to do
        assert sorted(chain.from_iterable(found for _, found in of_ranks)) == sorted(calls + repeated)
    assert_as_many_calls([sharded for _, sharded in ranks])


def assert_as_many_calls(ranks):
    """Weights that are spread over processes are gathered by all of them together, call by call."""
    for (file, calls), *of_ranks in zip(results(), *ranks, strict=True):
        assert [found for found, _ in of_ranks] == [file] * len(ranks)
        assert [len(found) for _, found in of_ranks] == [-(-len(calls) // len(ranks))] * len(ranks)
        assert {*map(tuple, calls)} == {tuple(call) for _, found in of_ranks for call in found}


@pytest.mark.slow
def test_under_zero_3_too_two_processes_write_the_file_of_one(tmp_path):
    config = tmp_path / "ds.json"
    config.write_text('{"zero_optimization": {"stage": 3}}')
    by = (*torchrun(2), str(ROOT / "tests/deepspeed_on_cpu.py"))
    launch(__file__, {str(tmp_path): str(config)}, by=by)
    assert_as_many_calls(handed_over(tmp_path, 2))


def main(folder, deepspeed=None):
    if deepspeed:
        accelerator = make_accelerator(bf16=False, deepspeed=deepspeed)
        assert accelerator.num_processes == 2
        found = results(accelerator)
    else:
        accelerator = Accelerator(cpu=True)
        found = results(), results(is_sharded=True)
    hand_over(found, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
