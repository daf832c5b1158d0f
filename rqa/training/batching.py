"""The examples of each step, and the rank and micro-batch of each: pure functions of seed and position.

Rows of similar length share a micro-batch, for little padding. All ranks have about the same amount of work.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, pairwise
from typing import Any, NamedTuple, TypeVar

Row = TypeVar("Row", bound=Sized)

MicroBatch = list[int]  # positions of examples in the window; an empty list is a slot without examples
StepPlan = list[list[MicroBatch]]  # [rank][accumulation]

WINDOW_EXAMPLES = 2048  # enough to find rows of similar length; few enough to encode and keep in memory at once


@dataclass(frozen=True)
class BatchLayout:
    """The parts of a global batch: ranks (`processes`), forward passes of a step, rows of a forward pass."""

    micro_batch: int
    accumulation: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def global_batch(self) -> int:
        """Examples in one step."""
        return self.processes * self.accumulation * self.micro_batch

    @property
    def window(self) -> int:
        """Steps whose examples are distributed together."""
        return max(1, WINDOW_EXAMPLES // self.global_batch)


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> list[int]:
    """Return the positions of the examples in the order of `epoch`."""
    order = list(range(num_examples))
    random.Random(f"{seed}/{epoch}/order").shuffle(order)
    return order


def plan_steps(lengths: Sequence[int], layout: BatchLayout, *, group_by_length: bool, seed: str) -> list[StepPlan]:
    """Distribute the rows of a window, of `lengths` in tokens, over steps, ranks and micro-batches.

    With `group_by_length` the rows of a step have similar lengths. Without it, they are neighbours in the given order,
    and only the rows of a micro-batch have similar lengths. Every row is in exactly one micro-batch.
    """
    rows = list(range(len(lengths)))
    if group_by_length:
        rows.sort(key=lambda row: -lengths[row])
    size = layout.global_batch
    global_batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    if group_by_length:
        random.Random(seed).shuffle(global_batches)  # else every window would go from long to short
    return [_plan_step(sorted(rows, key=lambda row: -lengths[row]), lengths, layout) for rows in global_batches]


def _plan_step(rows: Sequence[int], lengths: Sequence[int], layout: BatchLayout) -> StepPlan:
    """Cut the rows of one step, sorted by length, into micro-batches, the same number for each rank.

    Micro-batches that run at the same time are neighbours: FSDP and ZeRO-3 synchronize after each. The longest goes to
    the rank with the least work so far: DDP synchronizes after the step. A short last step leaves few slots empty.
    """
    slots = layout.processes * layout.accumulation
    cuts = [len(rows) * slot // slots for slot in range(slots + 1)]
    micro_batches = [list(rows[a:b]) for a, b in pairwise(cuts)]
    plan: StepPlan = [[] for _ in range(layout.processes)]
    loads = [0] * layout.processes
    for start in range(0, slots, layout.processes):
        least_first = sorted(range(layout.processes), key=loads.__getitem__)
        for rank, micro_batch in zip(least_first, micro_batches[start : start + layout.processes], strict=True):
            plan[rank].append(micro_batch)
            loads[rank] += num_positions([lengths[row] for row in micro_batch])
    return plan


def num_positions(lengths: Sequence[int]) -> int:
    """Return the positions that a micro-batch of rows of these lengths computes, padding included."""
    return len(lengths) * max(lengths, default=0)


def steps_per_epoch(num_examples: int, layout: BatchLayout) -> int:
    """Return the number of steps of one epoch; the last may have fewer examples."""
    return -(-num_examples // layout.global_batch)


def training_batches(
    num_examples: int,
    layout: BatchLayout,
    encode: Callable[[int, Sequence[int]], Sequence[Row]],
    collate: Callable[[Sequence[Row]], Mapping[str, Any]],
    exchange: Callable[[list[list[Any]]], list[list[Any]]] | None = None,
    first_step: int = 0,
    *,
    seed: int,
    group_by_length: bool = True,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the micro-batches of this rank for one step after another, epoch after epoch, without end.

    `encode(epoch, positions)` returns the rows of a window of steps; the `len` of a row is its length. A thread calls
    it for the next window while the caller trains on this one. `collate` makes a batch from some rows, or one without
    targets from none. The key "examples" is added: the examples' positions. The first step is `first_step`, the same as
    without an interruption.

    With `exchange`, such as `rqa.distributed.exchange_lists`, each rank encodes only its share of a window, and then
    receives the rows of its micro-batches. Every rank must then take every step.
    """
    windows = _windows(num_examples, layout, seed, first_step)
    share = slice(layout.rank, None, layout.processes) if exchange else slice(None)
    with ThreadPoolExecutor(1, "encoding") as pool:

        def encode_next() -> tuple[_Window, Future[Sequence[Row]]]:
            window = next(windows)
            return window, pool.submit(encode, window.epoch, window.positions[share])

        following = encode_next()
        while True:
            window, encoding = following
            encoded = encoding.result()
            following = encode_next()
            lengths = [len(row) for row in encoded]
            if exchange:
                lengths = _in_order(exchange([lengths] * layout.processes))
            plan_seed = f"{seed}/{window.epoch}/{window.start}"
            plans = plan_steps(lengths, layout, group_by_length=group_by_length, seed=plan_seed)[window.skip :]
            rows = _exchanged(encoded, plans, layout, exchange) if exchange else dict(enumerate(encoded))
            for plan in plans:
                yield [
                    {**collate([rows[i] for i in micro_batch]), "examples": [window.positions[i] for i in micro_batch]}
                    for micro_batch in plan[layout.rank]
                ]


class _Window(NamedTuple):
    """Steps of an epoch, from `start` on, whose examples are distributed together; `skip` of them are done."""

    epoch: int
    start: int
    positions: list[int]
    skip: int


def _windows(num_examples: int, layout: BatchLayout, seed: int, first_step: int) -> Iterator[_Window]:
    per_epoch = steps_per_epoch(num_examples, layout)
    first_epoch, done = divmod(first_step, per_epoch)
    for epoch in count(first_epoch):
        order = epoch_order(num_examples, seed=seed, epoch=epoch)
        first = max(1, layout.window // 4) if epoch == 0 else 0  # a small window, so that training starts soon
        starts = sorted({0, *range(first, per_epoch, layout.window)})
        for start, end in pairwise([*starts, per_epoch]):
            if end > done:
                positions = order[start * layout.global_batch : end * layout.global_batch]
                yield _Window(epoch, start, positions, max(0, done - start))
        done = 0


def _in_order(shares: Sequence[Sequence[int]]) -> list[int]:
    """Return the values of a window in order: rank r has those at r, r + processes, r + 2 · processes, …"""
    values = [0] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        values[rank :: len(shares)] = share
    return values


def _exchanged(
    encoded: Sequence[Row],
    plans: Sequence[StepPlan],
    layout: BatchLayout,
    exchange: Callable[[list[list[Row]]], list[list[Row]]],
) -> dict[int, Row]:
    """Return the rows of this rank's micro-batches by their position in the window, from the ranks that encoded them.

    Row i of the window is `encoded[i // processes]` of rank i % processes.
    """
    size = layout.processes

    def positions(source: int, reader: int) -> list[int]:
        planned = chain.from_iterable(micro_batch for plan in plans for micro_batch in plan[reader])
        return [i for i in planned if i % size == source]

    received = exchange([[encoded[i // size] for i in positions(layout.rank, reader)] for reader in range(size)])
    pairs = (zip(positions(source, layout.rank), rows, strict=True) for source, rows in enumerate(received))
    return dict(chain.from_iterable(pairs))
