"""Which examples make up each update, and on which process each of them runs: pure functions of seed and position.

An update's global batch is processes x accumulation x micro-batch examples, whatever their order in the file. Rows of
like length are put into one micro-batch, so that little is padded, and the processes get as much to do, so that nobody
waits.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Sized)

MicroBatch = list[int]  # positions in the window; an empty one is a slot without examples
Update = list[list[MicroBatch]]  # [process][accumulation]

WINDOW = 2048  # examples, in whole updates: among so many there are enough of like length, and few wait in memory


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch is spread: over processes, forward passes, and rows of one forward pass."""

    micro_batch: int
    accumulation: int = 1
    processes: int = 1
    rank: int = 0

    @property
    def global_batch(self) -> int:
        """Examples in one update."""
        return self.processes * self.accumulation * self.micro_batch

    @property
    def window(self) -> int:
        """Updates whose examples are dealt together."""
        return max(1, WINDOW // self.global_batch)


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> list[int]:
    """Return the examples' positions in the order of `epoch`."""
    order = list(range(num_examples))
    random.Random(f"{seed}/{epoch}/order").shuffle(order)
    return order


def plan_steps(lengths: Sequence[int], layout: BatchLayout, *, group_by_length: bool, seed: str) -> list[Update]:
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
    return [_deal(sorted(rows, key=lambda row: -lengths[row]), lengths, layout) for rows in globals_]


def _deal(rows: Sequence[int], lengths: Sequence[int], layout: BatchLayout) -> Update:
    """Cut the rows of one update, sorted by length, into micro-batches, and give each process as many.

    Those that run at the same time are neighbours, for where processes wait for each other after each of them; the
    longest goes to the process that has had least to do, for where they wait after each update. A short last update is
    spread evenly, so that the fewest slots stay empty.
    """
    slots = layout.processes * layout.accumulation
    cuts = [len(rows) * slot // slots for slot in range(slots + 1)]
    micro_batches = [list(rows[a:b]) for a, b in pairwise(cuts)]
    update: Update = [[] for _ in range(layout.processes)]
    loads = [0] * layout.processes
    for start in range(0, slots, layout.processes):
        least_first = sorted(range(layout.processes), key=loads.__getitem__)
        for process, micro_batch in zip(least_first, micro_batches[start : start + layout.processes], strict=True):
            update[process].append(micro_batch)
            loads[process] += num_positions([lengths[row] for row in micro_batch])
    return update


def num_positions(lengths: Sequence[int]) -> int:
    """Return the positions that a micro-batch of rows of these lengths computes, padding included."""
    return len(lengths) * max(lengths, default=0)


def steps_per_epoch(num_examples: int, layout: BatchLayout) -> int:
    """Return the number of updates that see every example once; the last may be short."""
    return -(-num_examples // layout.global_batch)


def training_batches(
    num_examples: int,
    layout: BatchLayout,
    encode: Callable[[int, Sequence[int]], Sequence[Row]],
    collate: Callable[[Sequence[Row]], Mapping[str, Any]],
    seed: int,
    group_by_length: bool = True,
    first_step: int = 0,
) -> Iterator[list[dict[str, Any]]]:
    """Yield, for one update after another, this process's micro-batches: epoch after epoch, without end.

    `encode(epoch, positions)` makes the rows of a window of updates, whose `len` is their length; `collate` a batch of
    those of a micro-batch, and of none one without targets; their positions are added to it as "examples".
    `first_step` starts there, with what would come there.
    """
    per_epoch = steps_per_epoch(num_examples, layout)
    first_epoch, skip = divmod(first_step, per_epoch)
    for epoch in count(first_epoch):
        order = epoch_order(num_examples, seed=seed, epoch=epoch)
        for start in range(skip // layout.window * layout.window, per_epoch, layout.window):
            positions = order[start * layout.global_batch : (start + layout.window) * layout.global_batch]
            rows = encode(epoch, positions)
            lengths = [len(row) for row in rows]
            plan = plan_steps(lengths, layout, group_by_length=group_by_length, seed=f"{seed}/{epoch}/{start}")
            for update in plan[max(0, skip - start) :]:
                yield [
                    {**collate([rows[i] for i in micro_batch]), "examples": [positions[i] for i in micro_batch]}
                    for micro_batch in update[layout.rank]
                ]
        skip = 0
