"""passage_selection: the passages of a training example are a pure function of (seed, epoch, id)."""

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
    retrieved = [P[i] for i in candidates]
    return select_passages(example, retrieved, k=k, seed=seed, epoch=epoch, passage_order=passage_order, **options)


def numbers(item):
    return [P.index(passage) for passage in item.passages]


def epochs(example, candidates, k=3, **options):
    """Return the passages of each of many epochs, as numbers."""
    return [numbers(read(example, candidates, k, epoch=epoch, **options)) for epoch in range(EPOCHS)]


def assert_uniform(counts, places):
    """Check that each place is about as frequent: Pearson's statistic is far below that of a slope."""
    expected = EPOCHS / places
    assert sum((counts[place] - expected) ** 2 / expected for place in range(places)) < 5 * places
    assert sum(counts.values()) == EPOCHS


# Passages

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
def test_gold_then_hard_negatives_then_candidates_up_to_k_plus_1(
    gold, negatives, candidates, k, hard, order, dropout, epoch
):
    options = {"k": k, "epoch": epoch, "passage_order": order, "gold_dropout": dropout, "hard_negatives": hard}
    item = read(example(gold, negatives), candidates, **options)
    distinct = dict.fromkeys  # keeps the first of each, in order
    size = max(k + 1, len(set(gold)))
    expected = list(distinct([*gold, *negatives[:hard], *candidates[:k]]))[:size]
    if item.answer == REFUSAL_ANSWER:
        others = [i for i in distinct([*negatives[:hard], *candidates]) if i not in gold]
        expected = others[: len(expected)]
    else:
        assert dropout < 1 or not gold
    by_rank = [i for _, i in sorted(zip(item.ranks, numbers(item), strict=True))]
    assert by_rank == expected
    assert sorted(item.ranks) == list(range(len(expected)))
    assert (item.answer == REFUSAL_ANSWER) <= (dropout > 0 and bool(gold))


def test_without_retrieval_only_gold_is_read():
    assert numbers(read(example([2, 0, 1]), [], k=0)) == [2, 0, 1]
    assert read(example([]), [], k=0) == GeneratorInput.from_ranked(example([]), [])


def test_passages_with_equal_text_are_one():
    gold = replace(example(), gold_passages=(Passage("passage  1", "Another title"),))
    item = read(gold, [0, 1, 2])
    assert [passage.title for passage in item.passages] == ["Another title", "", ""]
    assert item.passages[1:] == (P[0], P[2])


def test_from_ranked_keeps_the_order():
    question = example([3])
    assert GeneratorInput.from_ranked(question, iter(P[:3])) == GeneratorInput(
        question, tuple(P[:3]), "The cat.", (0, 1, 2), (P[3].id,)
    )
    answered = GeneratorInput.from_ranked(question, P[:1], "No.")
    assert (answered.answer, answered.citable_ids) == ("No.", (P[0].id,))  # it cites the prompt, a reference cites gold
    assert GeneratorInput.from_ranked(replace(question, answers=()), []) == GeneratorInput(
        replace(question, answers=()), (), "", (), (P[3].id,)
    )


# In which order


def test_gold_alone_keeps_its_order():
    for order in ("gold_first", "ranked"):
        assert numbers(read(example([5, 0, 3]), [], 0, passage_order=order)) == [5, 0, 3]


def test_gold_first_is_the_order_of_the_ranks():
    for order in epochs(example([5, 0], [7]), [1, 0, 2], hard_negatives=1):
        assert order == [5, 0, 7, 1]


def test_ranked_keeps_the_order_of_the_candidates():
    for order in epochs(example([2], [0]), [1, 0, 2, 3, 4], 3, hard_negatives=1, passage_order="ranked"):
        assert order == [1, 0, 2]


@pytest.mark.parametrize("beyond", [[], [9], [4, 9]])
def test_ranked_puts_missing_gold_at_a_random_place(beyond):
    """Gold beyond the first k is missing too, as at inference. Its place teaches nothing."""
    orders = epochs(example([9]), [3, 1, 2, *beyond], passage_order="ranked")
    assert all([i for i in row if i != 9] == [3, 1, 2] for row in orders)
    assert_uniform(Counter(row.index(9) for row in orders), 4)


def test_random_puts_every_passage_at_a_random_place():
    counts = Counter(map(tuple, epochs(example([1]), [0, 1, 2, 3], passage_order="random")))
    assert_uniform(Counter({place: counts[row] for place, row in enumerate(permutations([0, 1, 2]))}), 6)


# Refusals


@pytest.mark.parametrize(("gold", "hard"), list(product([[1], [9], [1, 9]], [0, 2])))
@pytest.mark.parametrize("order", ORDERS)
def test_dropped_gold_leaves_no_trace_in_the_number_of_passages(gold, hard, order):
    question = example(gold, [8, gold[0]])
    options = {"hard_negatives": hard, "passage_order": order, "gold_dropout": 0.5}
    items = [read(question, [0, 1, 2, 3, 4, 5], epoch=epoch, **options) for epoch in range(60)]
    assert len({len(item.passages) for item in items}) == 1
    for item in items:
        passages = set(numbers(item))
        assert item.answer in ("The cat.", REFUSAL_ANSWER)
        assert passages & set(gold) == (set(gold) if item.answer == "The cat." else set())


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.7, 1.0])
def test_gold_is_dropped_at_its_rate(rate):
    answers = Counter(
        read(example([1]), [0, 1, 2], epoch=epoch, gold_dropout=rate, refusal_answer="No.").answer
        for epoch in range(EPOCHS)
    )
    assert answers.keys() <= {"The cat.", "No."}
    assert abs(answers["No."] - rate * EPOCHS) <= (4 * (rate * (1 - rate) * EPOCHS) ** 0.5)


def test_an_unanswerable_question_keeps_its_passages():
    question = replace(example([1], unanswerable=True), answers=())
    item = read(question, [0, 2])
    assert (numbers(item), item.answer) == ([1, 0, 2], REFUSAL_ANSWER)
    assert read(question, [0, 2], refusal_answer="No.").answer == "No."


def test_without_gold_no_refusal_is_trained():
    assert read(example([]), [0, 1], gold_dropout=1.0).answer == "The cat."


# A pure function

KEYS = list(product((0, 1), range(4), ("a", "b", "train:1")))
PRINT = "import json, test_passage_selection as test; print(json.dumps(test.sequence(test.KEYS)))"


def sequence(keys):
    """Return the passages, as numbers, for each (seed, epoch, id)."""
    options = {"passage_order": "random", "gold_dropout": 0.3}
    return [
        numbers(read(example([9], id=id), range(6), 5, seed=seed, epoch=epoch, **options)) for seed, epoch, id in keys
    ]


def test_passages_depend_on_seed_epoch_and_id_but_not_on_earlier_calls():
    assert sequence(KEYS) == sequence(KEYS[::-1])[::-1]
    assert len(set(map(tuple, sequence(KEYS)))) > 20  # of 24


@pytest.mark.parametrize("hash_seed", ["0", "7"])
def test_another_process_selects_the_same(hash_seed):
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
    run = [sys.executable, "-c", PRINT]
    printed = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(printed) == sequence(KEYS)
