"""Batches of encoded examples, shared out to all ranks."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from rqa.terminal import Progress
from rqa.timing import gather_spans, record_spans

Row = TypeVar("Row")
Result = TypeVar("Result")


def map_batches(
    accelerator: Accelerator,
    rows: Sequence[Row],
    function: Callable[[Sequence[Row]], Sequence[Result]],
    *,
    batch_size: int,
    length: Callable[[Row], int] = len,  # type: ignore[assignment]  # the rows then have a length
    description: str = "",
) -> list[Result]:
    """Return the results of `function`, one for each row, in order, on every rank; every rank must call this.

    Batches are of similar `length`, longest first, so that too large a batch fails at once. They do not depend on the
    number of ranks: batch i runs on rank i modulo that number.

    A rank without a batch in the last round repeats the last batch, and discards the result and its time: under FSDP
    and ZeRO-3, and in the forward pass of DDP, every rank must call the model equally often.
    """
    rank, num_ranks = accelerator.process_index, accelerator.num_processes
    longest_first = sorted(range(len(rows)), key=lambda i: -length(rows[i]))
    batches = [longest_first[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    indexed: list[tuple[int, Result]] = []
    with Progress(description, len(rows), unit="examples") as progress, gather_spans(gather_object):
        for first in range(0, len(batches), num_ranks):
            turn = batches[first : first + num_ranks]
            if rank < len(turn):
                indexed += zip(turn[rank], function([rows[i] for i in turn[rank]]), strict=True)
            else:
                with record_spans():
                    function([rows[i] for i in turn[-1]])
            progress.advance(sum(map(len, turn)))
    return [result for _, result in sorted(gather_object(indexed), key=lambda pair: pair[0])]
