"""collators: labels by position, in every chat format; rows do not depend on padding, other rows and order."""

import math
import re
from dataclasses import replace
from itertools import count, permutations

import pytest
import torch
from seq2seq_tokenizers import TOKENIZERS
from tiny_tokenizers import FORMATS, TEMPLATES, builder, chatml

from rqa.data.file_report import DataError
from rqa.data.passage_selection import GeneratorInput
from rqa.data.records import Example, Passage, Turn
from rqa.prompts.collators import IGNORE_INDEX, ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import ChatFormat, PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder
from rqa.prompts.text_tokenizer import TextTokenizer

HISTORY = (Turn("user", "Cats?"), Turn("assistant", "Yes."))
PASSAGES = (Passage("Boil the water, and the rest.", "Water"), Passage("Cats and dogs."), Passage("The end.</s>"))
ANSWERS = ("The cat.", "a <|im_end|> or </s>, and <|end_of_turn|>", "no", "A\n\nlonger 水 one.")


def example(i, answer=None):
    """Examples of different lengths, every second one with a history."""
    answer = ANSWERS[i] if answer is None else answer
    return Example(f"{i}", "Who?" * (i + 1), (answer,), chat_history=HISTORY * (i % 2), where=f"train.jsonl:{i + 1}")


INPUTS = [GeneratorInput.from_ranked(example(i), PASSAGES[:passages]) for i, passages in enumerate((1, 0, 3, 2))]


@pytest.fixture(params=FORMATS)
def collator(request):
    return ConcatenatedCollator(builder(request.param))


def truncating(collator, budget):
    """Return the same collator with a smaller `max_prompt_length`."""
    old = collator.builder
    return ConcatenatedCollator(PromptBuilder(old.tokenizer, old.chat, max_prompt_length=budget))


def test_targets_are_the_answer_the_end_of_the_turn_and_one_eos(collator):
    tokenizer, batch = collator.builder.tokenizer, collator(INPUTS)
    ends = {"", " ", "<|end_of_turn|>", "<|end|>", "#\n"}  # ends of a turn before eos
    headers = ("<|channel|>final<|message|>", "\n<think></think>\n", " ")  # of the template, between prompt and answer
    for labels, ids, answer in zip(batch["labels"], batch["input_ids"], ANSWERS, strict=True):
        targets = labels[labels != IGNORE_INDEX]
        assert targets.equal(ids[labels != IGNORE_INDEX])
        assert targets.tolist().count(tokenizer.eos_token_id) == 1
        text = tokenizer.decode(targets).removesuffix(tokenizer.eos_token)
        for header in headers:
            text = text.removeprefix(header)
        assert text.removeprefix(answer) in ends


def test_rows_are_prompt_then_answer_then_padding(collator):
    batch = collator(INPUTS)
    for row, item in enumerate(INPUTS):
        prompt, answer = collator.builder.prompt(item).ids, collator.builder.answer(item.answer)
        padding = batch["input_ids"].shape[1] - len(prompt) - len(answer)
        assert batch["input_ids"][row].tolist() == [*prompt, *answer, *[collator.pad_id] * padding]
        assert batch["labels"][row].tolist() == [*[IGNORE_INDEX] * len(prompt), *answer, *[IGNORE_INDEX] * padding]
    assert min(row.tolist()[::-1].index(answer[-1]) for row in batch["input_ids"]) == 0  # no needless padding


def test_prompts_are_left_padded_prefixes_of_the_training_rows(collator):
    rows, batch = collator(INPUTS)["input_ids"], collator.collate_prompts(collator.encode(INPUTS))
    lengths = batch["attention_mask"].sum(1)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(INPUTS), max(lengths))
    for row, ids, mask, length in zip(rows, batch["input_ids"], batch["attention_mask"], lengths, strict=True):
        assert mask.equal((torch.arange(len(mask)) >= len(mask) - length).long())
        assert ids[mask.bool()].equal(row[:length])
        assert (ids[~mask.bool()] == collator.pad_id).all()


def test_a_truncated_prompt_does_not_depend_on_the_answer(collator):
    lengths = [len(collator.builder.prompt(item).ids) for item in INPUTS]
    smaller = truncating(collator, lengths[1] + 9)
    others = [GeneratorInput.from_ranked(item.example, item.passages, "Another, longer answer.") for item in INPUTS]
    rows, prompts = smaller.encode(INPUTS), smaller.collate_prompts(smaller.encode(others))
    assert [row.truncated > 0 for row in rows] == [length > lengths[1] + 9 for length in lengths]
    for row, ids, mask in zip(rows, prompts["input_ids"], prompts["attention_mask"], strict=True):
        assert ids[mask.bool()].tolist() == row.prompts[0]


def test_a_row_does_not_depend_on_the_rows_beside_it(collator):
    alone = [{name: rows[0].tolist() for name, rows in collator([item]).items()} for item in INPUTS]
    for order in [(0, 1, 2, 3), (2, 0), *permutations((1, 3, 0))]:
        batch = collator([INPUTS[i] for i in order])
        for name, rows in batch.items():
            for i, row in zip(order, rows.tolist(), strict=True):
                assert row[: len(alone[i][name])] == alone[i][name]
                assert set(row[len(alone[i][name]) :]) <= {collator.pad_id if name == "input_ids" else IGNORE_INDEX}


def test_encode_and_collate_equal_a_call(collator):
    rows = collator.encode(iter(INPUTS))
    batches = [
        (collator(INPUTS), collator.collate(rows)),
        (collator.collate_prompts(collator.encode(INPUTS)), collator.collate_prompts(rows)),
    ]
    for called, collated in batches:
        assert called.keys() == collated.keys()
        assert all(called[name].equal(collated[name]) for name in called)
    lengths = (collator(INPUTS)["labels"] != IGNORE_INDEX).sum(1) + collator.collate_prompts(collator.encode(INPUTS))[
        "attention_mask"
    ].sum(1)
    assert list(map(len, rows)) == lengths.tolist()


def test_an_empty_batch_is_one_position_without_a_target():
    collator = ConcatenatedCollator(builder("chatml's template"))
    empty = collator([])
    assert {name: tensor.tolist() for name, tensor in empty.items()} == {
        "input_ids": [[collator.pad_id]],
        "labels": [[IGNORE_INDEX]],
    }
    assert empty["input_ids"].dtype == empty["labels"].dtype == torch.int64


@pytest.mark.parametrize("name", TEMPLATES)
def test_padding_is_that_of_the_tokenizer_or_eos(name):
    tokenizer = builder(f"{name}'s template").tokenizer
    expected = tokenizer.eos_token_id if tokenizer.pad_token is None else tokenizer.pad_token_id
    assert ConcatenatedCollator(builder(f"{name}'s template")).pad_id == expected


def test_a_row_has_its_length_and_the_number_of_truncated_tokens_and_passages():
    collator = ConcatenatedCollator(builder("chatml's template"))
    (whole,) = collator.encode(INPUTS[:1])
    (row,) = truncating(collator, len(whole.prompts[0]) - 5).encode(INPUTS[:1])
    assert (len(whole), whole.truncated) == (len(whole.prompts[0]) + len(whole.answer), 0)
    assert (len(row), row.truncated) == (len(whole) - 5, 5)
    assert whole.num_passages == row.num_passages == 1


# Lengths that do not fit


def problems(collator, examples):
    with pytest.raises(DataError) as caught:
        collator.check(examples, answers=True)
    return str(caught.value).splitlines()


def test_answers_and_questions_that_do_not_fit_are_errors_with_file_and_line():
    built = builder("chatml's template")
    examples = [replace(example(i % 4, "the " * i), where=f"train.jsonl:{i + 1}") for i in range(30)]
    asked = [len(built.prompt(GeneratorInput.from_ranked(example, ())).ids) for example in examples]
    answered = [len(built.answer(example.answers[0])) for example in examples]
    collator = ConcatenatedCollator(PromptBuilder(built.tokenizer, max_prompt_length=asked[2]), answered[15])
    expected = []
    for i, (question, answer) in enumerate(zip(asked, answered, strict=True), 1):
        if question > asked[2]:
            expected.append(
                f"train.jsonl:{i}: instruction, history and question take {question} tokens, "
                f"--max_prompt_length is {asked[2]}"
            )
        if answer > answered[15]:
            expected.append(f"train.jsonl:{i}: the answer takes {answer} tokens, --max_answer_length is {answered[15]}")
    assert len(expected) > 20
    assert problems(collator, examples) == [*expected[:20], f"and {len(expected) - 20} more"]
    assert problems(collator, examples[:18]) == [line for line in expected if int(re.findall("[0-9]+", line)[0]) <= 18]


@pytest.mark.parametrize("kind", ["decoder", "fid"])
def test_a_bound_of_the_length_finds_the_problems_of_exact_lengths(monkeypatch, kind):
    if kind == "decoder":
        built = [PromptBuilder(builder("chatml's template").tokenizer, max_prompt_length=n) for n in range(20, 120, 7)]
    else:
        built = [PassagePromptBuilder(TOKENIZERS["t5"](), n) for n in range(5, 60, 5)]
    make = ConcatenatedCollator if kind == "decoder" else ParallelCollator
    examples = [replace(example(i % 4, "the ﷺ " * (i % 9)), where=str(i)) for i in range(16)]
    collators = [make(each, limit, 130) for each, limit in zip(built, count(3, 4), strict=False)]
    found = [check(collator, examples) for collator in collators]
    monkeypatch.setattr(TextTokenizer, "max_tokens", lambda self, text: math.inf)
    assert found == [check(collator, examples) for collator in collators]
    assert len({*found}) > 5


def check(collator, examples):
    try:
        collator.check(examples, answers=True)
    except DataError as error:
        return str(error)
    return ""


def test_passages_and_answers_of_unanswerable_questions_are_not_checked():
    built = builder("chatml's template")
    length = max(len(built.prompt(GeneratorInput.from_ranked(example(i), ())).ids) for i in range(4))
    collator = ConcatenatedCollator(PromptBuilder(built.tokenizer, max_prompt_length=length), 40)
    fits = [replace(example(i), gold_passages=PASSAGES) for i in range(4)]
    unanswerable = [replace(example(0), answers=answers, unanswerable=True) for answers in ((), ("the " * 50,))]
    collator.check([*fits, *unanswerable], answers=True, refusal_answer="No.")
    collator.check([example(0, "the " * 50)])  # a reference of evaluation alone


def refusal_and_limit():
    """Return a collator, a refusal that is one token too long for it, and its length."""
    built, refusal = builder("chatml's template"), "It is not stated. " * 3
    length = len(built.answer(refusal))
    return ConcatenatedCollator(built, length - 1), refusal, length


@pytest.mark.parametrize(
    ("unanswerable", "gold_dropout", "answers", "is_refused"),
    [
        (True, 0.0, True, True),
        (False, 0.1, True, True),
        (False, 0.0, True, False),  # not a target
        (True, 0.0, False, False),  # evaluation
    ],
)
def test_a_refusal_is_checked_if_it_is_a_target(unanswerable, gold_dropout, answers, is_refused):
    collator, refusal, length = refusal_and_limit()
    examples = [example(0), replace(example(2), unanswerable=unanswerable, where="train.jsonl:7")]
    options = {"answers": answers, "gold_dropout": gold_dropout, "refusal_answer": refusal}
    if not is_refused:
        return collator.check(examples, **options)
    with pytest.raises(DataError) as error:
        collator.check(examples, **options)
    who = "train.jsonl:7: it is unanswerable, and its refusal" if unanswerable else "--refusal_answer: it"
    assert str(error.value) == f"{who} takes {length} tokens, --max_answer_length is {length - 1}"
    collator.max_answer_length = length
    collator.check(examples, **options)
    return None


BUILDERS = {
    "decoder": PromptBuilder(builder("chatml's template").tokenizer, max_prompt_length=300),
    "fid": PassagePromptBuilder(TOKENIZERS["t5"]()),
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_reference_longer_than_the_models_positions_is_an_error_with_file_and_line(kind):
    make = {"decoder": ConcatenatedCollator, "fid": ParallelCollator}[kind]
    long = replace(example(0), answers=("a lamp " * 40, "a lamp " * 500), where="test.jsonl:4")
    length = len(BUILDERS[kind].answer(long.answers[0]))
    prompt = 300 if kind == "decoder" else 0
    make(BUILDERS[kind], 10, prompt + length).check([example(1), long])
    make(BUILDERS[kind], 10, None).check([long])
    short = make(BUILDERS[kind], 10, prompt + length - 1)
    has = f"{'beside --max_prompt_length 300 ' * (kind == 'decoder')}the model has positions for {length - 1}"
    with pytest.raises(DataError) as error:
        short.check([example(1), long])
    assert str(error.value) == f"test.jsonl:4: the answer takes {length} tokens, {has}"
    with pytest.raises(DataError) as error:
        short.check([replace(example(0), unanswerable=True)], refusal_answer=long.answers[0])
    assert str(error.value) == f"train.jsonl:1: it is unanswerable, and its refusal takes {length} tokens, {has}"
    short.check([replace(long, unanswerable=True), replace(long, answers=())])  # another reference, or none


# Cache


@pytest.fixture
def prompted(monkeypatch):
    """Return the list of questions whose prompts are built."""
    questions, plain = [], PromptBuilder.prompt
    monkeypatch.setattr(
        PromptBuilder,
        "prompt",
        lambda self, item: questions.append(item.example.question) or plain(self, item),
    )
    return questions


def test_an_equal_input_is_encoded_once(prompted):
    collator = ConcatenatedCollator(builder("chatml's template"))
    others = [replace(INPUTS[2], answer="no."), replace(INPUTS[2], passages=PASSAGES[::-1])]
    rows = collator.encode([*INPUTS, *others])
    assert len(prompted) == len(INPUTS) + len(others)
    again = [replace(item, example=replace(item.example)) for item in [*others, *INPUTS]]
    assert collator.encode(again) == [*rows[4:], *rows[:4]]
    assert len(prompted) == len(INPUTS) + len(others)
    assert rows == [ConcatenatedCollator(builder("chatml's template")).encode([item])[0] for item in [*INPUTS, *others]]


def test_the_least_recently_used_rows_are_evicted(monkeypatch, prompted):
    first, second, third, _ = INPUTS
    collator = ConcatenatedCollator(builder("chatml's template"))
    sizes = [len(row) for row in ConcatenatedCollator(builder("chatml's template")).encode([first, second, third])]
    monkeypatch.setattr("rqa.prompts.collators.CACHE_TOKEN_BUDGET", sum(sizes) - 1)
    collator.encode([first, second])
    del prompted[:]
    collator.encode([first])
    collator.encode([third])
    collator.encode([third, first])
    assert prompted == [third.example.question]  # the second was evicted
    collator.encode([second])
    assert prompted == [third.example.question, second.example.question]


# Fusion-in-decoder

MASKED = ("input_ids", "attention_mask")


@pytest.fixture(params=TOKENIZERS)
def parallel(request):
    return ParallelCollator(PassagePromptBuilder(TOKENIZERS[request.param]()))


def test_each_passage_has_its_own_prompt_and_a_missing_one_is_masked(parallel):
    batch = parallel(INPUTS)  # of 1, 0, 3 and 2 passages
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["input_ids"].shape[:2] == (4, 3)
    assert batch["attention_mask"].any((0, 1)).all()  # no needless padding
    for row, item in enumerate(INPUTS):
        texts = parallel.builder.prompt(item).ids
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(*(batch[n][row] for n in MASKED), strict=True)]
        assert prompts == texts + [[]] * (3 - len(texts))
        assert len(texts) == max(1, len(item.passages))  # without passages only the question
    for ids, mask in zip(*(batch[name].flatten(0, 1) for name in MASKED), strict=True):
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padded on the right
        assert set(ids[~mask.bool()].tolist()) <= {parallel.pad_id}


def test_targets_of_fusion_in_decoder_are_the_answer_and_one_eos(parallel):
    batch = parallel(INPUTS)
    for labels, item in zip(batch["labels"], INPUTS, strict=True):
        targets = labels[labels != IGNORE_INDEX].tolist()
        assert targets == parallel.builder.answer(item.answer)
        assert targets.count(parallel.builder.eos_id) == 1
        assert labels.tolist() == targets + [IGNORE_INDEX] * (len(labels) - len(targets))
    assert batch["labels"].shape[1] == max(len(parallel.builder.answer(item.answer)) for item in INPUTS)


def test_prompts_of_fusion_in_decoder_are_equal_in_training_and_generation(parallel):
    batch, prompts = parallel(INPUTS), parallel.collate_prompts(parallel.encode(INPUTS))
    assert prompts.keys() == set(MASKED)
    assert all(batch[name].equal(tensor) for name, tensor in prompts.items())


def test_the_length_of_a_row_is_that_of_all_its_prompts(parallel):
    for row, item in zip(parallel.encode(INPUTS), INPUTS, strict=True):
        texts = parallel.builder.prompt(item).ids
        assert row.num_prompt_tokens == sum(map(len, texts))
        assert len(row) == row.num_prompt_tokens + len(parallel.builder.answer(item.answer))


def test_an_empty_batch_of_fusion_in_decoder_is_one_position_without_a_target(parallel):
    batch = parallel.collate([])
    assert batch["input_ids"].tolist() == [[[parallel.pad_id]]]
    assert batch["attention_mask"].tolist() == [[[1]]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX]]


def test_too_long_questions_and_answers_of_fusion_in_decoder_are_errors_with_line():
    built = PassagePromptBuilder(TOKENIZERS["t5"](), 24)
    collator = ParallelCollator(built, 12)
    with pytest.raises(DataError) as error:
        collator.check([example(0), example(1, "no"), example(2, "x" * 12)], answers=True)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["train.jsonl:2", "train.jsonl:3"]
    assert "history and question take" in lines[0]
    assert "the answer takes 14 tokens, --max_answer_length is 12" in lines[1]


def test_strings_that_look_like_control_tokens_are_one_warning_in_training(caplog):
    chat = ChatFormat("<|user|>", "[INST]", "\n", "<|im_end|>")
    examples = [Example(str(i), "Who?", ("Yes.",)) for i in range(3)]
    for answers, expected in ((True, 1), (False, 0)):
        caplog.clear()
        ConcatenatedCollator(PromptBuilder(chatml(), chat)).check(examples, answers=answers)
        assert ["<|user|>, [INST] look like" in record.getMessage() for record in caplog.records] == [True] * expected
