"""Seconds that a step of training waits for its batches, on the first of 1, 8 and 64 simulated ranks.

    python benchmarks/batches.py --model_name_or_path data/models/smollm2-135m-instruct \\
        --full_dataset_file_path data/stdlib/passages.jsonl [--tokens 1200] [--step_seconds 1] [--ranks 1 8 64]

all: each rank encodes all rows of a window of steps. share: each rank encodes its share, and receives the rows of its
micro-batches, as the recipes do. Both encode one window ahead in a thread, while a step sleeps in place of a device's
work. Other ranks are simulated: rows that were encoded before stand in for theirs, pickled as for a network, which
itself is not measured.
"""

import argparse
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain, islice

from rqa import data, models, training
from rqa.prompts.collators import Collator, EncodedExample
from rqa.training.batching import BatchLayout, plan_steps

MICRO_BATCH, ACCUMULATION = 2, 4
EXAMPLES = 100_000
STEPS = 12  # measured, after the first
Rows = list[EncodedExample]


class OtherRanks:
    """Messages of the other ranks to the first: lengths of their rows, and rows of its micro-batches."""

    def __init__(self, layout: BatchLayout, rows: Rows) -> None:
        self.layout, self.rows = layout, rows
        self.counts: Counter[int] = Counter()  # rows that each rank sends
        self.seconds = 0.0  # of the simulation

    def exchange(self, lists: Sequence[list[int] | Rows]) -> list[list[int] | Rows]:
        """Return the list of each rank for the first one."""
        start = time.perf_counter()
        processes = self.layout.processes
        received: list[list[int] | Rows] = [lists[0]]
        if isinstance(lists[0][0], int):
            received += [random.Random(rank).sample(lists[0], len(lists[0])) for rank in range(1, processes)]
            lengths = [*chain.from_iterable(zip(*received, strict=True))]
            plans = plan_steps(lengths, self.layout, group_by_length=True, seed="")
            self.counts = Counter(i % processes for plan in plans for i in chain(*plan[0]))
        else:
            received += [self.rows[: self.counts[rank]] for rank in range(1, processes)]
        sent = [pickle.dumps(each) for each in received]
        self.seconds += time.perf_counter() - start
        return [*map(pickle.loads, sent)]


def encoder(collator: Collator, corpus: Sequence[data.Passage]) -> Callable[[int, Sequence[int]], Rows]:
    """Return a function that encodes prompts of different passages, more than fit."""

    def encode(epoch: int, positions: Sequence[int]) -> Rows:
        inputs = []
        for position in positions:
            passages = random.Random(f"{epoch}/{position}").choices(corpus, k=12)
            example = data.Example(str(position), "What does it return?", ("A number of " * 20,))
            inputs.append(data.GeneratorInput.from_ranked(example, passages))
        return collator.encode(inputs)

    return encode


def waiting(layout: BatchLayout, collator: Collator, corpus: Sequence[data.Passage], way: str, step: float) -> float:
    """Return the mean seconds that a step waits for its micro-batches."""
    encode = encoder(collator, corpus)
    others = OtherRanks(layout, encode(-1, range(200)))
    exchange = others.exchange if way == "share" else None
    batches = training.training_batches(EXAMPLES, layout, encode, collator.collate, exchange, seed=0)
    next(batches)
    others.seconds, seconds = 0.0, 0.0
    for _ in range(STEPS):
        time.sleep(step)
        start = time.perf_counter()
        next(batches)
        seconds += time.perf_counter() - start
    return (seconds - others.seconds) / STEPS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--full_dataset_file_path", required=True)
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--step_seconds", type=float, default=1.0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    args = parser.parse_args()
    collator = models.load_collator(args.model_name_or_path, max_prompt_length=args.tokens)
    corpus = [*islice(data.open_passages(args.full_dataset_file_path), 2000)]
    print(f"rows of {args.tokens} tokens, {MICRO_BATCH} x {ACCUMULATION} a rank, steps of {args.step_seconds} s")
    for processes in args.ranks:
        layout = BatchLayout(MICRO_BATCH, ACCUMULATION, processes)
        for way in ("all", "share"):
            seconds = waiting(layout, collator, corpus, way, args.step_seconds)
            percent = 100 * seconds / args.step_seconds
            print(f"{processes:3} ranks  {way:5}  {1000 * seconds:9.1f} ms  {percent:7.2f} % of a step", flush=True)


if __name__ == "__main__":
    main()
