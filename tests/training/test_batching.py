"""batching: every example once an epoch, the same steps in every layout, a resume from a position."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from threading import Barrier, Event
from threading import enumerate as enumerate_threads

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa.errors import InputError
from rqa.training import batching
from rqa.training.batching import (
    BatchLayout,
    epoch_order,
    num_positions,
    plan_steps,
    steps_per_epoch,
    training_batches,
)

WHOLE_WINDOW, WINDOW = batching.WINDOW_EXAMPLES, 96  # small, so that an epoch has several windows


@pytest.fixture(autouse=True, scope="module")
def _small_windows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "WINDOW_EXAMPLES", WINDOW)
        yield


class Row(int):
    """The position of an example; its length is that of the row: many are short, few are long."""

    def __len__(self):
        return int(20 * 1.005 ** (self * 7919 % 1000))


def collate(rows):
    return {"rows": list(rows)}


def steps(n, layout, **options):
    """Yield the micro-batches of one rank, lists of positions, for one step after another."""
    encode = lambda epoch, rows: [Row(row) for row in rows]  # noqa: E731
    for micro_batches in training_batches(n, layout, encode, collate, **{"seed": 0} | options):
        assert all(batch["examples"] == batch["rows"] for batch in micro_batches)
        yield [batch["rows"] for batch in micro_batches]


def global_steps(n, micro_batch, accumulation, processes, count, **options):
    """Return the micro-batches of every rank for each of the first steps."""
    layouts = [BatchLayout(micro_batch, accumulation, processes, rank) for rank in range(processes)]
    return list(islice(zip(*(steps(n, layout, **options) for layout in layouts), strict=True), count))


def examples(step):
    """Return the examples of a step on all ranks, sorted."""
    return sorted(chain.from_iterable(chain.from_iterable(step)))


layouts = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))


@given(n=st.integers(1, 400), layout=layouts, grouped=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_an_epoch_has_every_example_once_and_equally_many_micro_batches_on_each_rank(n, layout, grouped, seed):
    per_epoch = steps_per_epoch(n, BatchLayout(*layout))
    planned = global_steps(n, *layout, 2 * per_epoch, group_by_length=grouped, seed=seed)
    for epoch in (planned[:per_epoch], planned[per_epoch:]):
        assert sorted(chain.from_iterable(map(examples, epoch))) == list(range(n))
    micro_batch, accumulation, processes = layout
    for step in planned:
        assert [len(rank) for rank in step] == [accumulation] * processes
        assert max(len(rows) for rank in step for rows in rank) <= micro_batch


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("n", [8 * 7, 3 * WINDOW + 3])
def test_a_global_batch_has_the_same_examples_in_every_layout(n, grouped):
    count = 2 * steps_per_epoch(n, BatchLayout(8)) + 1
    by_layout = [
        list(map(examples, global_steps(n, *layout, count, group_by_length=grouped)))
        for layout in [(8, 1, 1), (4, 2, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 1, 8)]
    ]
    assert all(other == by_layout[0] for other in by_layout)
    assert {len(step) for step in by_layout[0]} == ({8} if n % 8 == 0 else {8, n % 8})


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("n", [4, 30, 2 * WINDOW + 5])
def test_first_step_continues_as_without_interruption(n, grouped):
    layout, per_epoch, window = BatchLayout(2, 1, 2, 1), steps_per_epoch(n, BatchLayout(4)), WINDOW // 4
    whole = list(islice(steps(n, layout, group_by_length=grouped), 2 * per_epoch + 3))
    for first in {0, 1, window - 1, window, window + 1, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch}:
        rest = whole[first:]
        assert list(islice(steps(n, layout, group_by_length=grouped, first_step=first), len(rest))) == rest


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(100, seed=seed, epoch=epoch) for seed in (1, 0) for epoch in (2, 0, 1)}
    assert len(set(map(tuple, orders.values()))) == len(orders)
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert orders == {key: epoch_order(100, seed=key[0], epoch=key[1]) for key in orders}
    assert epoch_order(10, seed=0, epoch=0) == [
        5,
        3,
        4,
        8,
        7,
        1,
        6,
        2,
        9,
        0,
    ]  # in every version


@pytest.mark.parametrize("grouped", [True, False])
def test_steps_are_a_pure_function_of_the_seed(grouped):
    runs = [global_steps(300, 2, 2, 2, 40, group_by_length=grouped, seed=seed) for seed in (3, 4, 3)]
    assert runs[0] == runs[2] != runs[1]
    if not grouped:  # neighbours in the order of the epoch
        order = epoch_order(300, seed=3, epoch=0)
        assert list(map(examples, runs[0][:37])) == [sorted(order[i : i + 8]) for i in range(0, 296, 8)]


def test_encode_is_called_once_per_window_and_one_window_ahead():
    calls = []

    def encode(epoch, rows):
        calls.append((epoch, len(rows)))
        return [Row(row) for row in rows]

    n = 2 * WINDOW + 1
    batches = training_batches(n, BatchLayout(1), encode, collate, first_step=WINDOW, seed=0)
    list(islice(batches, n))
    batches.close()  # waits for the window ahead
    assert calls == [(0, WINDOW), (0, n - WINDOW - WINDOW // 4), (1, WINDOW), (1, WINDOW)]


def test_the_first_step_waits_for_a_quarter_of_a_window():
    calls = []

    def encode(epoch, rows):
        calls.append((epoch, len(rows)))
        return [Row(row) for row in rows]

    batches = training_batches(2 * WINDOW, BatchLayout(2), encode, collate, seed=0)
    next(batches)
    batches.close()
    assert calls == [(0, WINDOW // 4), (0, WINDOW)]


def test_the_next_window_is_encoded_while_this_one_is_consumed():
    is_encoded = {0: Event(), 1: Event()}

    def encode(epoch, rows):
        if epoch < 2:
            is_encoded[epoch].set()
            return [Row(row) for row in rows]
        raise InputError(f"row {rows[0]}")

    batches = training_batches(WINDOW, BatchLayout(WINDOW), encode, collate, seed=0)
    next(batches)
    assert is_encoded[1].wait(20)
    next(batches)
    with pytest.raises(InputError, match="row"):  # in the step that needs it
        next(batches)
    assert not [thread for thread in enumerate_threads() if thread.name.startswith("encoding")]


@pytest.mark.parametrize("layout", [(2, 3, 3), (1, 1, 5), (3, 1, 1)])
@pytest.mark.parametrize("grouped", [True, False])
def test_ranks_that_encode_a_share_have_the_batches_of_ranks_that_encode_everything(layout, grouped):
    """Threads stand in for the ranks."""
    n, processes = 2 * WINDOW + 7, layout[2]
    count = 2 * steps_per_epoch(n, BatchLayout(*layout)) + 1
    barrier, sent, encoded, exchanged = Barrier(processes), [[]] * processes, [0] * processes, [0] * processes

    def run(rank):
        def exchange(lists):
            sent[rank] = lists
            barrier.wait(20)
            received = [sent[source][rank] for source in range(processes)]
            barrier.wait(20)
            exchanged[rank] += sum(isinstance(row, Row) for row in chain(*lists))
            return received

        def encode(_epoch, rows):
            encoded[rank] += len(rows)
            return [Row(row) for row in rows]

        batches = training_batches(
            n, BatchLayout(*layout, rank), encode, collate, exchange, seed=0, group_by_length=grouped
        )
        return list(islice(batches, count))

    with ThreadPoolExecutor(processes) as ranks:
        by_rank = list(ranks.map(run, range(processes)))
    planned = zip(*[[[batch["rows"] for batch in step] for step in steps] for steps in by_rank], strict=True)
    assert list(planned) == global_steps(n, *layout, count, group_by_length=grouped)
    assert max(encoded) <= -(-(3 * n + 2 * WINDOW) // processes) + 12
    window = BatchLayout(*layout).window * BatchLayout(*layout).global_batch
    assert sum(exchanged) == 2 * n + window  # each row is sent to one rank


def test_a_global_batch_may_be_larger_than_a_window():
    assert [len(examples(step)) for step in global_steps(2 * WINDOW + 3, 50, 2, 2, 3)] == [195] * 3


# Length


def cost(step):
    """Return the positions that each rank computes in a step, padding included; a slot without examples is one."""
    return [sum(max(1, num_positions(list(map(len, map(Row, rows))))) for rows in rank) for rank in step]


@pytest.mark.parametrize("n", [1_500, 10_000])
@pytest.mark.parametrize("layout", [(1, 1, 8), (2, 4, 8), (4, 2, 8), (4, 8, 8), (2, 4, 2), (4, 2, 3)], ids=str)
def test_ranks_have_equal_work_and_little_padding(monkeypatch, n, layout):
    """The mean work of the ranks is at least 0.97 of the most work of a rank."""
    monkeypatch.setattr(batching, "WINDOW_EXAMPLES", WHOLE_WINDOW)
    costs = [cost(step) for step in global_steps(n, *layout, steps_per_epoch(n, BatchLayout(*layout)))]
    assert sum(map(sum, costs)) / layout[-1] >= 0.97 * sum(map(max, costs))
    assert sum(len(Row(row)) for row in range(n)) <= sum(map(sum, costs)) <= 1.03 * sum(len(Row(i)) for i in range(n))


def test_without_grouping_there_is_less_padding_than_in_random_micro_batches():
    n, layout = 400, (4, 1, 2)
    grouped, ungrouped = (
        sum(sum(cost(step)) for step in global_steps(n, *layout, 50, group_by_length=grouped))
        for grouped in (True, False)
    )
    order = epoch_order(n, seed=0, epoch=0)
    random = sum(sum(cost([[order[i : i + 4]]])) for i in range(0, n, 4))
    assert grouped < ungrouped < random


def test_the_rows_of_a_step_have_similar_lengths_and_the_steps_are_shuffled():
    planned = global_steps(WINDOW, 2, 2, 2, 3 * WINDOW // 8)[WINDOW // 8 :]  # of the first epoch a window is small
    by_length = sorted(len(Row(row)) for row in range(WINDOW))
    similar = [by_length[i : i + 8] for i in range(0, WINDOW, 8)]
    groups = [sorted(len(Row(row)) for row in examples(step)) for step in planned]
    first, second = groups[: WINDOW // 8], groups[WINDOW // 8 :]
    assert sorted(first) == sorted(second) == similar
    assert len({tuple(map(tuple, order)) for order in (similar, similar[::-1], first, second)}) == 4


@pytest.mark.parametrize("grouped", [True, False])
def test_micro_batches_that_run_at_the_same_time_have_similar_lengths(grouped):
    for step in global_steps(240, 2, 3, 2, 20, group_by_length=grouped):
        at_a_time = [sorted(len(Row(row)) for rank in step for row in rank[slot]) for slot in range(3)]
        assert at_a_time[0][0] >= at_a_time[1][-1]
        assert at_a_time[1][0] >= at_a_time[2][-1]


# A short last batch


@pytest.mark.parametrize("rest", range(1, 8))
def test_a_short_last_step_is_spread_evenly(rest):
    (_, last) = plan_steps([len(Row(i)) for i in range(8 + rest)], BatchLayout(2, 2, 2), group_by_length=False, seed="")
    sizes = Counter(len(rows) for rank in last for rows in rank)
    assert sizes == Counter(rest // 4 + (slot < rest % 4) for slot in range(4))
    assert examples(last) == list(range(8, 8 + rest))


@given(n=st.integers(1, 1000), layout=layouts)
def test_steps_per_epoch_is_the_number_of_planned_steps(n, layout):
    plan = plan_steps([1] * n, BatchLayout(*layout), group_by_length=True, seed="")
    assert len(plan) == steps_per_epoch(n, BatchLayout(*layout))
