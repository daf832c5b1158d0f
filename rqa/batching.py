"""Which examples make up each update, and on which process each of them runs: pure functions of seed and position.

An update's global batch is processes x accumulation x micro-batch examples, whatever their order in the file. Rows of
like length are put into one micro-batch, so that little is padded, and the micro-batches that the processes run at the
same time are like each other, so that nobody waits.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Sized)

MicroBatch = list[int]  # positions in the window; an empty one is a slot without examples
Update = list[list[MicroBatch]]  # [process][accumulation]

WINDOW = 50  # updates; within so many, length grouping keeps positions per real one near 1.02


@dataclass(frozen=True)
class Layout:
    """How a global batch is spread: over processes, forward passes, and rows of one forward pass."""

    micro_batch: int
    accumulation: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def global_batch(self) -> int:
        """Examples in one update."""
        return self.processes * self.accumulation * self.micro_batch


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> list[int]:
    """Return the examples' positions in the order of `epoch`."""
    order = list(range(num_examples))
    random.Random(f"{seed}/{epoch}/order").shuffle(order)
    return order


def plan_updates(lengths: Sequence[int], layout: Layout, *, group_by_length: bool, seed: str) -> list[Update]:
    """Deal the rows of a window, whose `lengths` are in tokens, to updates, processes and micro-batches.

    With `group_by_length` the rows of one update are alike in length; without, they are neighbours in the order given,
    and only the rows of one micro-batch are alike. Every row is in exactly one micro-batch.
    """
    rows = list(range(len(lengths)))
    if group_by_length:
        rows.sort(key=lambda row: -lengths[row])
    size = layout.global_batch
    globals_ = [rows[start : start + size] for start in range(0, len(rows), size)]
    if group_by_length:
        random.Random(seed).shuffle(globals_)  # else every window would run from long to short
    return [_deal(sorted(rows, key=lambda row: -lengths[row]), layout) for rows in globals_]


def _deal(rows: Sequence[int], layout: Layout) -> Update:
    """Cut the rows of one update, sorted by length, into micro-batches, and give each process as many.

    A short last update is spread evenly, so that the fewest slots stay empty.
    """
    slots = layout.processes * layout.accumulation
    cuts = [len(rows) * slot // slots for slot in range(slots + 1)]
    micro_batches = [list(rows[a:b]) for a, b in pairwise(cuts)]
    return [micro_batches[process :: layout.processes] for process in range(layout.processes)]


def num_updates_per_epoch(num_examples: int, layout: Layout) -> int:
    """Return the number of updates that see every example once; the last may be short."""
    return -(-num_examples // layout.global_batch)


def endless_updates(
    num_examples: int,
    layout: Layout,
    encode: Callable[[int, Sequence[int]], Sequence[Row]],
    collate: Callable[[Sequence[Row]], Mapping[str, Any]],
    seed: int,
    group_by_length: bool = True,
    first_update: int = 0,
) -> Iterator[list[dict[str, Any]]]:
    """Yield, for one update after another, this process's micro-batches: epoch after epoch, without end.

    `encode(epoch, positions)` makes the rows of a window of updates, whose `len` is their length; `collate` a batch of
    those of a micro-batch, and of none one without targets; their positions are added to it as "examples".
    `first_update` starts there, with what would come there.
    """
    per_epoch = num_updates_per_epoch(num_examples, layout)
    first_epoch, skip = divmod(first_update, per_epoch)
    for epoch in count(first_epoch):
        order = epoch_order(num_examples, seed=seed, epoch=epoch)
        for start in range(skip // WINDOW * WINDOW, per_epoch, WINDOW):
            positions = order[start * layout.global_batch : (start + WINDOW) * layout.global_batch]
            rows = encode(epoch, positions)
            lengths = [len(row) for row in rows]
            plan = plan_updates(lengths, layout, group_by_length=group_by_length, seed=f"{seed}/{epoch}/{start}")
            for update in plan[max(0, skip - start) :]:
                yield [
                    {**collate([rows[i] for i in micro_batch]), "examples": [positions[i] for i in micro_batch]}
                    for micro_batch in update[layout.rank]
                ]
        skip = 0
