"""Generator: the answers of the plain model, one by one, for every batch size and number of ranks."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny_tokenizers
import torch
from accelerate import Accelerator
from tiny_generation import ENDS, INPUTS, MAX_NEW_TOKENS, TEMPLATE, generator, language_model
from tiny_models import PAD, tokenizer
from world import DEEPSPEED_ON_CPU, hand_over, handed_over, launch, results_of, torchrun

from rqa.distributed.accelerator import make_accelerator
from rqa.generation.generator import Answer
from rqa.models.decoder import AnswerLM
from rqa.prompts.decoder_prompt import PromptBuilder


def one_by_one(lm, builder=TEMPLATE):
    """Return the answers of the plain model to each prompt alone."""
    answers, stops = [], {"eos_token_id": builder.stop_ids, "pad_token_id": PAD}
    for item in INPUTS:
        prompt = builder.prompt(item)
        ids = lm.generate(torch.tensor([prompt.ids]), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, **stops)
        ids = ids[0, len(prompt.ids) :].tolist()
        finished = ids[-1] in builder.stop_ids
        text = builder.tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True).strip()
        answers.append(Answer(text, len(ids), len(prompt.ids), finished, prompt.truncated, prompt.num_passages))
    return answers


@pytest.mark.parametrize(("builder", "end"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_answers_are_those_of_the_plain_model_one_by_one(batch_size, builder, end):
    expected = one_by_one(language_model(end), builder)
    assert generator(language_model(end), batch_size, builder)(INPUTS) == expected
    assert {answer.finished for answer in expected} == {True, False}
    assert len({answer.text for answer in expected}) == len(INPUTS)
    assert len({answer.num_tokens for answer in expected}) > 2
    assert [answer.num_passages for answer in expected] == [len(item.passages) for item in INPUTS]


def test_each_prompt_is_built_once_also_if_passages_are_truncated(monkeypatch):
    shortest = max(len(TEMPLATE.prompt(replace(item, passages=(), ranks=())).ids) for item in INPUTS)
    builder = PromptBuilder(tokenizer(), max_prompt_length=shortest + 9)
    expected, built, plain = one_by_one(language_model(), builder), [], PromptBuilder.prompt
    monkeypatch.setattr(PromptBuilder, "prompt", lambda self, item: built.append(item) or plain(self, item))
    answers = generator(language_model(), 4, builder)(INPUTS)
    assert answers == expected
    assert built == INPUTS
    assert {answer.truncated > 0 for answer in answers} == {True, False}
    assert any(answer.num_passages < len(item.passages) for answer, item in zip(answers, INPUTS, strict=True))


def test_reasoning_is_no_part_of_an_answer_or_of_its_stream(monkeypatch):
    """The model generates the same text for every question, and the prompt opens no block."""
    builder = PromptBuilder(tiny_tokenizers.hybrid())
    for text, answer, reasoning in [
        ("<think>\nOne.\n</think>\n\nYes </think>.<|im_end|>", "Yes </think>.", "One."),
        ("<think>One, tw", "", "One, tw"),
        ("Yes.<|im_end|>", "Yes.", ""),
    ]:
        ids, pieces = torch.tensor([builder.tokenizer(text)["input_ids"]]), []

        def generate(_model, input_ids, streamer=None, ids=ids, **_options):
            if streamer is not None:
                for value in (input_ids, *ids[0].split(1)):
                    streamer.put(value)
                streamer.end()
            return ids.repeat(len(input_ids), 1)

        monkeypatch.setattr(AnswerLM, "generate", generate)
        made = generator(language_model(), 4, builder)
        answers = made(INPUTS)
        assert {(one.text, one.reasoning, one.num_tokens) for one in answers} == {(answer, reasoning, ids.shape[1])}
        assert made.stream(made.collator.encode(INPUTS[:1])[0], pieces.append) == answers[0]
        assert "".join(pieces) == answer


def test_answers_are_in_the_order_of_the_inputs():
    generate = generator(language_model(), 2)
    assert generate(INPUTS[::-1]) == generate(INPUTS)[::-1]
    assert generate([*INPUTS[:1] * 3, *INPUTS[:2]]) == generate(INPUTS[:1]) * 4 + generate(INPUTS[1:2])
    assert generate([]) == []


def test_the_reference_does_not_change_the_answer():
    others = [replace(item, answer="Elsewhere, and much longer.") for item in INPUTS]
    generate = generator(language_model(), 4)
    assert generate(others) == generate(INPUTS)


def test_dropout_and_the_generation_config_are_ignored():
    sampling = language_model(dropout=0.5).train()
    sampling.generation_config.update(
        do_sample=True, temperature=9.0, repetition_penalty=3.0, num_beams=2, min_length=9
    )
    assert generator(sampling, 4)(INPUTS) == one_by_one(language_model())


@pytest.mark.parametrize(("builder", "end"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_longest_prompts_are_first_and_a_batch_ends_with_its_longest_answer(monkeypatch, batch_size, builder, end):
    sizes, plain = [], AnswerLM.generate

    def record(model, **batch):
        ids = plain(model, **batch)
        sizes.append((len(ids), batch["input_ids"].shape[1], ids.shape[1]))
        return ids

    monkeypatch.setattr(AnswerLM, "generate", record)
    answers = generator(language_model(end), batch_size, builder)(INPUTS)
    answers.sort(key=lambda answer: -answer.num_prompt_tokens)
    batches = [answers[i : i + batch_size] for i in range(0, len(answers), batch_size)]
    assert sizes == [(len(b), b[0].num_prompt_tokens, max(answer.num_tokens for answer in b)) for b in batches]


def results(accelerator=None):
    """Return for several batch sizes the answers as a file, the prompt lengths of each call, and the forward passes."""
    runs = []
    for batch_size, prompt_lookup_tokens in ((1, 0), (2, 0), (9, 0), (20, 0), (2, 8)):
        lm, passes = language_model(), []
        lm.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        generate, calls = generator(lm, batch_size, TEMPLATE, accelerator, prompt_lookup_tokens), []
        plain = generate._answers
        generate._answers = lambda rows, plain=plain, calls=calls: (
            calls.append([row.num_prompt_tokens for row in rows]) or plain(rows)
        )
        runs.append(("\n".join(json.dumps(asdict(answer)) for answer in generate(INPUTS)), calls, len(passes)))
    return runs


def assert_same_files_and_equally_many_calls(ranks):
    for (file, calls, _), *of_ranks in zip(results(), *ranks, strict=True):
        assert [rank_file for rank_file, *_ in of_ranks] == [file] * len(ranks)
        calls += calls[-1:] * (-len(calls) % len(ranks))
        assert [rank_calls for _, rank_calls, _ in of_ranks] == [
            calls[rank :: len(ranks)] for rank in range(len(ranks))
        ]


@pytest.mark.parametrize("num_ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_answers_are_byte_identical_on_more_ranks(tmp_path, num_ranks):
    assert_same_files_and_equally_many_calls(results_of(__file__, tmp_path, processes=num_ranks))


@pytest.mark.slow
def test_answers_are_byte_identical_under_zero_3(tmp_path):
    config = tmp_path / "ds.json"
    config.write_text('{"zero_optimization": {"stage": 3}}')
    launch(__file__, {str(tmp_path): str(config)}, by=(*torchrun(2), DEEPSPEED_ON_CPU))
    ranks = handed_over(tmp_path, 2)
    assert_same_files_and_equally_many_calls(ranks)
    first, second = ([passes for *_, passes in runs] for runs in ranks)
    assert first == second  # each forward pass gathers the weights, so that every rank takes part


def main(folder, deepspeed=None):
    accelerator = make_accelerator(bf16=False, deepspeed=deepspeed) if deepspeed else Accelerator(cpu=True)
    assert accelerator.num_processes > 1
    hand_over(results(accelerator), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
