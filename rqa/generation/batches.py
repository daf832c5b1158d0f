"""Batches of encoded examples, shared out to all ranks."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from rqa.terminal import Progress
from rqa.timing import gather_spans, record_spans

Row = TypeVar("Row")
Result = TypeVar("Result")
StoredRow = TypeVar("StoredRow", contravariant=True)

ROUNDS = 4  # of batches on all ranks between two writes: ranks wait for each other at a write


class Store(Protocol[StoredRow, Result]):
    """Results of an earlier call, and of this one as soon as they exist; both methods are called on every rank."""

    def read(self, batches: Sequence[Sequence[StoredRow]]) -> Sequence[Sequence[Result] | None]:
        """Return the results of each batch, None if they are not stored."""

    def append(self, batch: Sequence[StoredRow], results: Sequence[Result]) -> None:
        """Store the results of a batch."""


def map_batches(
    accelerator: Accelerator,
    rows: Sequence[Row],
    function: Callable[[Sequence[Row]], Sequence[Result]],
    *,
    batch_size: int,
    length: Callable[[Row], int] = len,  # type: ignore[assignment]  # the rows then have a length
    description: str = "",
    store: Store[Row, Result] | None = None,
) -> list[Result]:
    """Return the results of `function`, one for each row, in order, on every rank; every rank must call this.

    Batches are of similar `length`, longest first, so that too large a batch fails at once. They do not depend on the
    number of ranks: batch i runs on rank i modulo that number.

    A rank without a batch in the last round repeats the last batch, and discards the result and its time: under FSDP
    and ZeRO-3, and in the forward pass of DDP, every rank must call the model equally often.

    With a `store`, stored batches are left out, and the results of the others are stored every ROUNDS batches of a
    rank, or after each batch of a single process.
    """
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    longest_first = sorted(range(len(rows)), key=lambda i: -length(rows[i]))
    batches = [longest_first[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    results: dict[int, Result] = {}
    if store:
        stored = store.read([[rows[i] for i in batch] for batch in batches])
        for batch, of_batch in zip(batches, stored, strict=True):
            if of_batch is not None:
                results |= zip(batch, of_batch, strict=True)
        batches = [batch for batch in batches if batch[0] not in results]
    rounds = len(batches) if not store else 1 if num_ranks == 1 else ROUNDS
    with Progress(description, len(rows) - len(results), unit="examples") as progress, gather_spans(gather_object):
        for start in range(0, len(batches), max(1, rounds * num_ranks)):
            group = batches[start : start + rounds * num_ranks]
            indexed: list[tuple[int, Result]] = []
            for first in range(0, len(group), num_ranks):
                turn = group[first : first + num_ranks]
                if rank < len(turn):
                    indexed += zip(turn[rank], function([rows[i] for i in turn[rank]]), strict=True)
                else:
                    with record_spans():
                        function([rows[i] for i in turn[-1]])
                progress.advance(sum(map(len, turn)))
            results |= gather_object(indexed)
            if store:
                for batch in group:
                    store.append([rows[i] for i in batch], [results[i] for i in batch])
    return [results[i] for i in range(len(rows))]
