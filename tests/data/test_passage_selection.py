"""passage_selection: which passages an example reads, as a pure function of (seed, epoch, id)."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqa.data.passage_selection import REFUSAL_ANSWER, GeneratorInput, select_passages
from rqa.data.records import Example, Passage

P = [Passage(f"passage {i}") for i in range(12)]
ORDERS = ("gold_first", "ranked", "random")
EPOCHS = 600


def example(gold=(), negatives=(), id="q", **fields):
    golds, negatives = tuple(P[i] for i in gold), tuple(P[i] for i in negatives)
    return Example(id, "Who?", ("The cat.", "A cat."), golds, hard_negatives=negatives, **fields)


def read(example, candidates, k=3, *, seed=0, epoch=0, passage_order="gold_first", **options):
    found = [P[i] for i in candidates]
    return select_passages(example, found, k=k, seed=seed, epoch=epoch, passage_order=passage_order, **options)


def numbers(reading):
    return [P.index(passage) for passage in reading.passages]


def epochs(example, candidates, k=3, **options):
    """What is read in each of many epochs, as numbers."""
    return [numbers(read(example, candidates, k, epoch=epoch, **options)) for epoch in range(EPOCHS)]


def assert_uniform(counts, places):
    """Each place is taken about as often: Pearson's statistic is far below what a slope would make of it."""
    expected = EPOCHS / places
    assert sum((counts[place] - expected) ** 2 / expected for place in range(places)) < 5 * places
    assert sum(counts.values()) == EPOCHS


# What is read

subsets = st.lists(st.sampled_from(range(12)), unique=True, max_size=8)


@given(
    gold=st.lists(st.sampled_from(range(12)), max_size=4),
    negatives=subsets,
    candidates=subsets,
    k=st.integers(0, 6),
    hard=st.integers(0, 3),
    order=st.sampled_from(ORDERS),
    dropout=st.sampled_from([0.0, 0.5, 1.0]),
    epoch=st.integers(0, 5),
)
def test_gold_then_hard_negatives_then_candidates_are_read_up_to_k_and_one(
    gold, negatives, candidates, k, hard, order, dropout, epoch
):
    options = {"k": k, "epoch": epoch, "passage_order": order, "gold_dropout": dropout, "hard_negatives": hard}
    reading = read(example(gold, negatives), candidates, **options)
    distinct = dict.fromkeys  # keeps the first of each, in order
    size = max(k + 1, len(set(gold)))
    expected = list(distinct([*gold, *negatives[:hard], *candidates[:k]]))[:size]
    if reading.answer == REFUSAL_ANSWER:
        others = [i for i in distinct([*negatives[:hard], *candidates]) if i not in gold]
        expected = others[: len(expected)]
    else:
        assert dropout < 1 or not gold
    by_rank = [i for _, i in sorted(zip(reading.ranks, numbers(reading), strict=True))]
    assert by_rank == expected
    assert sorted(reading.ranks) == list(range(len(expected)))
    assert (reading.answer == REFUSAL_ANSWER) <= (dropout > 0 and bool(gold))


def test_without_retrieval_the_gold_alone_is_read():
    assert numbers(read(example([2, 0, 1]), [], k=0)) == [2, 0, 1]
    assert read(example([]), [], k=0) == GeneratorInput.from_ranked(example([]), [])


def test_a_passage_is_known_by_its_text():
    gold = replace(example(), gold_passages=(Passage("passage  1", "Another title"),))
    reading = read(gold, [0, 1, 2])
    assert [passage.title for passage in reading.passages] == ["Another title", "", ""]
    assert reading.passages[1:] == (P[0], P[2])


def test_a_reading_for_inference_is_ranked_as_it_is_given():
    asked = example([3])
    assert GeneratorInput.from_ranked(asked, iter(P[:3])) == GeneratorInput(asked, tuple(P[:3]), "The cat.", (0, 1, 2))
    assert GeneratorInput.from_ranked(asked, P[:1], "No.").answer == "No."
    assert GeneratorInput.from_ranked(replace(asked, answers=()), []) == GeneratorInput(
        replace(asked, answers=()), (), "", ()
    )


# In which order


def test_gold_alone_stands_in_its_own_order():
    for order in ("gold_first", "ranked"):
        assert numbers(read(example([5, 0, 3]), [], 0, passage_order=order)) == [5, 0, 3]


def test_gold_first_reads_in_the_order_of_the_ranks():
    for found in epochs(example([5, 0], [7]), [1, 0, 2], hard_negatives=1):
        assert found == [5, 0, 7, 1]


def test_ranked_reads_what_was_found_as_it_was_ranked():
    for found in epochs(example([2], [0]), [1, 0, 2, 3, 4], 3, hard_negatives=1, passage_order="ranked"):
        assert found == [1, 0, 2]


@pytest.mark.parametrize("beyond", [[], [9], [4, 9]])
def test_ranked_puts_a_gold_that_was_missed_anywhere(beyond):
    """As inference, which reads no more than the first k, would have missed it: nothing is learned from its place."""
    found = epochs(example([9]), [3, 1, 2, *beyond], passage_order="ranked")
    assert all([i for i in row if i != 9] == [3, 1, 2] for row in found)
    assert_uniform(Counter(row.index(9) for row in found), 4)


def test_random_puts_every_passage_anywhere():
    found = Counter(map(tuple, epochs(example([1]), [0, 1, 2, 3], passage_order="random")))
    assert_uniform(Counter({place: found[row] for place, row in enumerate(permutations([0, 1, 2]))}), 6)


# Refusals


@pytest.mark.parametrize(("gold", "hard"), list(product([[1], [9], [1, 9]], [0, 2])))
@pytest.mark.parametrize("order", ORDERS)
def test_a_dropped_gold_is_nowhere_and_the_number_does_not_tell(gold, hard, order):
    asked = example(gold, [8, gold[0]])
    options = {"hard_negatives": hard, "passage_order": order, "gold_dropout": 0.5}
    readings = [read(asked, [0, 1, 2, 3, 4, 5], epoch=epoch, **options) for epoch in range(60)]
    assert len({len(reading.passages) for reading in readings}) == 1
    for reading in readings:
        found = set(numbers(reading))
        assert reading.answer in ("The cat.", REFUSAL_ANSWER)
        assert found & set(gold) == (set(gold) if reading.answer == "The cat." else set())


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.7, 1.0])
def test_the_gold_is_dropped_at_its_rate(rate):
    answers = Counter(
        read(example([1]), [0, 1, 2], epoch=epoch, gold_dropout=rate, refusal_answer="No.").answer
        for epoch in range(EPOCHS)
    )
    assert answers.keys() <= {"The cat.", "No."}
    assert abs(answers["No."] - rate * EPOCHS) <= (4 * (rate * (1 - rate) * EPOCHS) ** 0.5)


def test_an_unanswerable_question_is_refused_with_all_that_it_has():
    asked = replace(example([1], unanswerable=True), answers=())
    reading = read(asked, [0, 2])
    assert (numbers(reading), reading.answer) == ([1, 0, 2], REFUSAL_ANSWER)
    assert read(asked, [0, 2], refusal_answer="No.").answer == "No."


def test_without_gold_nothing_is_dropped():
    assert read(example([]), [0, 1], gold_dropout=1.0).answer == "The cat."


# A pure function

KEYS = list(product((0, 1), range(4), ("a", "b", "train:1")))
PRINT = "import json, test_passages as test; print(json.dumps(test.sequence(test.KEYS)))"


def sequence(keys):
    """What questions read, by number: for each (seed, epoch, id)."""
    options = {"passage_order": "random", "gold_dropout": 0.3}
    return [
        numbers(read(example([9], id=id), range(6), 5, seed=seed, epoch=epoch, **options)) for seed, epoch, id in keys
    ]


def test_the_order_of_calls_does_not_matter_and_seed_epoch_and_id_do():
    assert sequence(KEYS) == sequence(KEYS[::-1])[::-1]
    assert len(set(map(tuple, sequence(KEYS)))) > 20  # of 24


@pytest.mark.parametrize("hash_seed", ["0", "7"])
def test_another_process_reads_the_same(hash_seed):
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
    run = [sys.executable, "-c", PRINT]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(found) == sequence(KEYS)
