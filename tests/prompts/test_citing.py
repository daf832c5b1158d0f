"""Citations in encoded answers: at each number stands the gold passage that the file's number means."""

import random
import re
from dataclasses import replace

import pytest
from seq2seq_tokenizers import TOKENIZERS
from tiny_tokenizers import builder

from rqa.data.file_report import DataError
from rqa.data.passage_selection import GeneratorInput, select_passages
from rqa.data.records import Example, Passage, Turn
from rqa.evaluation.attribution import leave_one_out
from rqa.prompts.collators import ConcatenatedCollator, ParallelCollator
from rqa.prompts.decoder_prompt import PromptBuilder
from rqa.prompts.fid_prompt import PassagePromptBuilder

P = [Passage(f"Q{i} the water and the cat " * (1 + i % 3)) for i in range(10)]
GOLD = (P[4], P[7], P[2])
ANSWER = "Boil [1], the cat [3, 2] and [1][3]."
EXAMPLE = Example("a", "Who?", (ANSWER,), GOLD, hard_negatives=(P[8],), where="train.jsonl:1")
FORMATS = ("chatml's template", "mistral's flags", "headers's template")


def decoder_collator(budget=2048, citations=True, name="chatml's template"):
    built = builder(name)
    return ConcatenatedCollator(
        PromptBuilder(built.tokenizer, built.chat, max_prompt_length=budget), citations=citations
    )


def fid_collator(budget=512, citations=True, tokenizer=TOKENIZERS["t5"]):
    return ParallelCollator(PassagePromptBuilder(tokenizer(), budget, citations=citations), citations=citations)


def target_of(collator, row):
    return collator.builder.answer_text(row.answer)


def seen_in_prompts(collator, row):
    """Return the passages in the decoded prompts by number: the number in P, or None if the beginning is cut."""
    texts = [collator.builder.tokenizer.decode(ids) for ids in row.prompts]
    if isinstance(collator, ConcatenatedCollator):
        labels = re.findall(r"\[(\d+)\] ?(?:Q(\d+) )?", texts[0])
    else:
        label = re.compile(r"passage: (\d+)(?: context: Q(\d+) )?")
        labels = [found.groups() for text in texts if (found := label.search(text))]
    return {int(number): int(mark) if mark else None for number, mark in labels}


def inputs_of_epochs(example=EXAMPLE, epochs=6):
    candidates = [P[i] for i in (0, 7, 1, 5, 3, 6, 9)]
    return [
        select_passages(
            example, candidates, k=k, seed=0, epoch=epoch, passage_order=order, gold_dropout=0.3, hard_negatives=1
        )
        for k in (0, 2, 5)
        for order in ("ranked", "random", "gold_first")
        for epoch in range(epochs)
    ]


def cited_in_file(text, kept):
    """Return the numbers of citations in `text` that are in `kept`, in order."""
    return [int(number) for number in re.findall(r"\d+", text) if int(number) in kept]


@pytest.mark.parametrize("make", [decoder_collator, fid_collator])
def test_in_every_epoch_order_dropout_and_cut_a_number_means_its_gold_passage(make):
    rng, checked, removed = random.Random(0), 0, 0
    for item in inputs_of_epochs():
        [whole] = make().encode([item])
        least = len(make().encode([replace(item, passages=(), ranks=())])[0].prompts[0])
        longest = max(map(len, whole.prompts))
        for budget in (longest, *(rng.randint(least, longest) for _ in range(3))):
            collator = make(budget)
            [row] = collator.encode([item])
            seen, target = seen_in_prompts(collator, row), target_of(collator, row)
            if None in seen.values():
                continue  # cut before its first word is complete
            if item.answer != ANSWER:
                assert target == item.answer  # the refusal
                continue
            at = {index: number for number, index in seen.items()}
            kept = {number for number, passage in enumerate(GOLD, 1) if P.index(passage) in at}
            meant = [P.index(GOLD[number - 1]) for number in cited_in_file(ANSWER, kept)]
            assert [seen[int(number)] for number in re.findall(r"\d+", target)] == meant
            checked += 1
            removed += len(kept) < len(GOLD)
    assert checked > 100
    assert removed > 10 or make is fid_collator


def test_a_passage_that_is_cut_whole_is_not_cited_in_fusion_in_decoder():
    item = GeneratorInput.from_ranked(EXAMPLE, P)
    [question] = fid_collator().encode([replace(item, passages=(), ranks=())])
    for room, expected in ((0, "Boil, the cat and."), (200, "Boil [5], the cat [3, 8] and [5][3].")):
        collator = fid_collator(len(question.prompts[0]) + room)
        assert target_of(collator, *collator.encode([item])) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_two_orders_of_passages_differ_by_the_permutation_of_their_numbers(name):
    collator = decoder_collator(name=name)
    check_permutation(collator)


@pytest.mark.parametrize("tokenizer", [TOKENIZERS["t5"], TOKENIZERS["bart"]])
def test_in_fusion_in_decoder_too(tokenizer):
    check_permutation(fid_collator(tokenizer=tokenizer))


def check_permutation(collator):
    item = GeneratorInput.from_ranked(EXAMPLE, [P[i] for i in (4, 0, 7, 2)])
    first = target_of(collator, *collator.encode([item]))
    assert re.findall(r"\d+", first) == ["1", "4", "3", "1", "4"]
    for seed in range(10):
        order = random.Random(seed).sample(range(4), 4)
        passages = tuple(item.passages[i] for i in order)
        second = target_of(collator, *collator.encode([replace(item, passages=passages)]))
        numbers = [str(order.index(int(number) - 1) + 1) for number in re.findall(r"\d+", first)]
        assert second == re.sub(r"\d+", "{}", first).format(*numbers)


@pytest.mark.parametrize("make", [decoder_collator, fid_collator])
def test_without_the_flag_numbers_are_text(make):
    collator = make(citations=False)
    history = (Turn("user", "Why [1]?"), Turn("assistant", "So [1]."))
    for item in inputs_of_epochs(replace(EXAMPLE, chat_history=history)):
        [row] = collator.encode([item])
        prompt = collator.builder.prompt(item)
        assert row.prompts == ([prompt.ids] if isinstance(collator, ConcatenatedCollator) else prompt.ids)
        assert row.answer == collator.builder.answer(item.answer)
        assert "passage:" not in collator.builder.tokenizer.decode(row.prompts[0])


@pytest.mark.parametrize("make", [decoder_collator, fid_collator])
def test_citations_in_earlier_answers_are_removed(make):
    turns = (Turn("user", "Why [1]?"), Turn("assistant", "So [1]."))
    bare = (turns[0], Turn("assistant", "So."))
    collator = make()
    rows = [GeneratorInput.from_ranked(replace(EXAMPLE, chat_history=history), P[:2]) for history in (turns, bare)]
    first, second = collator.encode(rows)
    assert first == second


def test_equal_gold_passages_are_one_number():
    example = replace(EXAMPLE, gold_passages=(P[4], P[7], P[4]))
    [row] = decoder_collator().encode([select_passages(example, (), k=0, seed=0, epoch=0)])
    assert target_of(decoder_collator(), row) == "Boil [1], the cat [1, 2] and [1]."


def test_a_generated_answer_cites_its_prompt_also_without_one_of_the_passages():
    """A number without a passage stays as it was generated."""
    answered = GeneratorInput.from_ranked(EXAMPLE, P[:3], "The cat [1], and [3] [2] [9].")
    seen = []

    def losses(inputs):
        collator = decoder_collator()
        seen.extend(target_of(collator, row) for row in collator.encode(inputs))
        return [(1.0, 1) for _ in inputs]

    leave_one_out(losses, [answered])
    assert seen == [
        "The cat [1], and [3] [2] [9].",
        "The cat, and [2] [1] [9].",
        "The cat [1], and [2] [9].",
        "The cat [1], and [2] [9].",
    ]


# Errors before training


def problems(examples, collator=None, **options):
    try:
        (collator or decoder_collator()).check(examples, **options)
    except DataError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("answers", [False, True])
def test_a_citation_of_no_gold_passage_is_an_error_with_file_and_line(answers):
    right = [EXAMPLE, replace(EXAMPLE, answers=("No.",), gold_passages=())]
    wrong = [
        replace(EXAMPLE, answers=("It is [1].", "It is [4]."), where="train.jsonl:5"),
        replace(EXAMPLE, answers=("It is [0].",), where="train.jsonl:6"),
        replace(EXAMPLE, gold_passages=(), where="train.jsonl:7"),
        replace(EXAMPLE, gold_passages=(), unanswerable=True),
    ]
    first, second, third = problems([*right, *wrong], answers=answers)
    assert first.startswith('train.jsonl:5: field "gold_answer": expected citations [1] to [3]')
    assert "3 gold_docs, got [4]" in first
    assert re.search(r"train\.jsonl:6: .* got \[0\]", second)
    assert re.search(r"train\.jsonl:7: .* no gold_docs, got \[1\]", third)
    assert problems([*right, *wrong], decoder_collator(citations=False), answers=answers) == []
    [refusal] = problems(right, refusal_answer="Not in [1].")
    assert "--refusal_answer" in refusal


def test_an_answer_must_fit_with_the_longest_number():
    collator = fid_collator()
    length = len(collator.builder.answer(ANSWER))
    collator.max_answer_length = length
    assert problems([EXAMPLE], collator, answers=True, num_passages=9) == []
    [problem] = problems([EXAMPLE], collator, answers=True, num_passages=10)
    assert f"takes {length + 5} tokens" in problem  # a digit more for each of five numbers
    many = tuple(replace(P[0], text=f"other {i}") for i in range(10))
    row = collator.encode([select_passages(EXAMPLE, many, k=10, seed=1, epoch=3, passage_order="random")])[0]
    assert length < len(row.answer) <= length + 5
