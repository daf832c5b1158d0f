"""batching: every example once an epoch, the same updates in every layout, a resume that is a position."""

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa.training import batching
from rqa.training.batching import (
    BatchLayout,
    epoch_order,
    num_positions,
    plan_steps,
    steps_per_epoch,
    training_batches,
)

WHOLE_WINDOW, WINDOW = batching.WINDOW, 96  # rows; here few, so that an epoch has several windows


@pytest.fixture(autouse=True, scope="module")
def _small_windows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "WINDOW", WINDOW)
        yield


class Row(int):
    """An example's position, as long as its row is: many are short, few are long."""

    def __len__(self):
        return int(20 * 1.005 ** (self * 7919 % 1000))


def collate(rows):
    return {"rows": list(rows)}


def updates(n, layout, **options):
    """What one process collates: lists of positions, which each batch names as its examples."""
    encode = lambda epoch, rows: [Row(row) for row in rows]  # noqa: E731
    for update in training_batches(n, layout, encode, collate, **{"seed": 0} | options):
        assert all(batch["examples"] == batch["rows"] for batch in update)
        yield [batch["rows"] for batch in update]


def global_updates(n, micro_batch, accumulation, processes, count, **options):
    """Of each of the first updates, every process's micro-batches."""
    layouts = [BatchLayout(micro_batch, accumulation, processes, rank) for rank in range(processes)]
    return list(islice(zip(*(updates(n, layout, **options) for layout in layouts), strict=True), count))


def examples(update):
    """The examples of an update, sorted, wherever they run."""
    return sorted(chain.from_iterable(chain.from_iterable(update)))


layouts = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))


@given(n=st.integers(1, 400), layout=layouts, grouped=st.booleans(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_every_epoch_runs_every_example_once_and_all_processes_as_many_micro_batches(n, layout, grouped, seed):
    per_epoch = steps_per_epoch(n, BatchLayout(*layout))
    found = global_updates(n, *layout, 2 * per_epoch, group_by_length=grouped, seed=seed)
    for epoch in (found[:per_epoch], found[per_epoch:]):
        assert sorted(chain.from_iterable(map(examples, epoch))) == list(range(n))
    micro_batch, accumulation, processes = layout
    for update in found:
        assert [len(of_rank) for of_rank in update] == [accumulation] * processes
        assert max(len(rows) for of_rank in update for rows in of_rank) <= micro_batch


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("n", [8 * 7, 3 * WINDOW + 3])
def test_a_global_batch_holds_the_same_examples_in_every_layout(n, grouped):
    count = 2 * steps_per_epoch(n, BatchLayout(8)) + 1
    found = [
        list(map(examples, global_updates(n, *layout, count, group_by_length=grouped)))
        for layout in [(8, 1, 1), (4, 2, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)]
    ]
    assert all(other == found[0] for other in found)
    assert {len(update) for update in found[0]} == ({8} if n % 8 == 0 else {8, n % 8})


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("n", [4, 30, 2 * WINDOW + 5])
def test_a_later_start_goes_on_as_if_it_had_never_stopped(n, grouped):
    layout, per_epoch, window = BatchLayout(2, 1, 2, 1), steps_per_epoch(n, BatchLayout(4)), WINDOW // 4
    whole = list(islice(updates(n, layout, group_by_length=grouped), 2 * per_epoch + 3))
    for first in {0, 1, window - 1, window, window + 1, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch}:
        rest = whole[first:]
        assert list(islice(updates(n, layout, group_by_length=grouped, first_step=first), len(rest))) == rest


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(100, seed=seed, epoch=epoch) for seed in (1, 0) for epoch in (2, 0, 1)}
    assert len(set(map(tuple, orders.values()))) == len(orders)
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert orders == {key: epoch_order(100, seed=key[0], epoch=key[1]) for key in orders}
    assert epoch_order(10, seed=0, epoch=0) == [5, 3, 4, 8, 7, 1, 6, 2, 9, 0]  # the same in every version and process


@pytest.mark.parametrize("grouped", [True, False])
def test_updates_are_a_pure_function_of_the_seed(grouped):
    found = [global_updates(300, 2, 2, 2, 40, group_by_length=grouped, seed=seed) for seed in (3, 4, 3)]
    assert found[0] == found[2] != found[1]
    if not grouped:  # neighbours in the order of the epoch
        order = epoch_order(300, seed=3, epoch=0)
        assert list(map(examples, found[0][:37])) == [sorted(order[i : i + 8]) for i in range(0, 296, 8)]


def test_encode_is_asked_for_each_epoch_and_window_in_turn():
    asked = []

    def encode(epoch, rows):
        asked.append((epoch, len(rows)))
        return [Row(row) for row in rows]

    n = 2 * WINDOW + 1
    list(islice(training_batches(n, BatchLayout(1), encode, collate, seed=0, first_step=WINDOW), n))
    assert asked == [(0, WINDOW), (0, 1), (1, WINDOW)]


def test_a_global_batch_may_be_larger_than_a_window():
    assert [len(examples(update)) for update in global_updates(2 * WINDOW + 3, 50, 2, 2, 3)] == [195] * 3


# Length


def cost(update):
    """What each process computes in an update, in positions, padding included; a slot without examples is one."""
    return [sum(max(1, num_positions(list(map(len, map(Row, rows))))) for rows in of_rank) for of_rank in update]


@pytest.mark.parametrize("n", [1_500, 10_000])
@pytest.mark.parametrize("layout", [(1, 1, 8), (2, 4, 8), (4, 2, 8), (4, 8, 8), (2, 4, 2), (4, 2, 3)], ids=str)
def test_no_process_waits_and_little_is_padded(monkeypatch, n, layout):
    """In time: the mean over processes of what they compute in an update, by that of the one with most to do."""
    monkeypatch.setattr(batching, "WINDOW", WHOLE_WINDOW)
    costs = [cost(update) for update in global_updates(n, *layout, steps_per_epoch(n, BatchLayout(*layout)))]
    assert sum(map(sum, costs)) / layout[-1] >= 0.97 * sum(map(max, costs))
    assert sum(len(Row(row)) for row in range(n)) <= sum(map(sum, costs)) <= 1.03 * sum(len(Row(i)) for i in range(n))


def test_without_grouping_what_is_padded_is_still_less_than_in_random_micro_batches():
    n, layout = 400, (4, 1, 2)
    grouped, ungrouped = (
        sum(sum(cost(update)) for update in global_updates(n, *layout, 50, group_by_length=grouped))
        for grouped in (True, False)
    )
    order = epoch_order(n, seed=0, epoch=0)
    random = sum(sum(cost([[order[i : i + 4]]])) for i in range(0, n, 4))
    assert grouped < ungrouped < random


def test_the_rows_of_one_update_are_alike_and_the_updates_shuffled():
    found = global_updates(WINDOW, 2, 2, 2, 2 * WINDOW // 8)
    by_length = sorted(len(Row(row)) for row in range(WINDOW))
    alike = [by_length[i : i + 8] for i in range(0, WINDOW, 8)]
    groups = [sorted(len(Row(row)) for row in examples(update)) for update in found]
    first, second = groups[: WINDOW // 8], groups[WINDOW // 8 :]
    assert sorted(first) == sorted(second) == alike
    assert len({tuple(map(tuple, order)) for order in (alike, alike[::-1], first, second)}) == 4


@pytest.mark.parametrize("grouped", [True, False])
def test_what_the_processes_run_at_the_same_time_is_alike(grouped):
    for update in global_updates(240, 2, 3, 2, 20, group_by_length=grouped):
        at_a_time = [sorted(len(Row(row)) for of_rank in update for row in of_rank[slot]) for slot in range(3)]
        assert at_a_time[0][0] >= at_a_time[1][-1]
        assert at_a_time[1][0] >= at_a_time[2][-1]


# A short last batch


@pytest.mark.parametrize("rest", range(1, 8))
def test_a_short_last_update_is_spread_evenly(rest):
    (_, last) = plan_steps([len(Row(i)) for i in range(8 + rest)], BatchLayout(2, 2, 2), group_by_length=False, seed="")
    sizes = Counter(len(rows) for of_rank in last for rows in of_rank)
    assert sizes == Counter(rest // 4 + (slot < rest % 4) for slot in range(4))
    assert examples(last) == list(range(8, 8 + rest))


@given(n=st.integers(1, 1000), layout=layouts)
def test_the_updates_of_an_epoch_are_as_many_as_are_planned(n, layout):
    plan = plan_steps([1] * n, BatchLayout(*layout), group_by_length=True, seed="")
    assert len(plan) == steps_per_epoch(n, BatchLayout(*layout))
