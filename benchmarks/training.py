"""The overhead of training: padding, waiting ranks, and time outside forward, backward and optimizer.

    python benchmarks/training.py --config recipes/configs/quickstart.yaml --max_steps 12

It accepts the flags of recipes/swr_starling.py; nothing is written to --output_dir. The gold passages and the next ones
of the corpus stand in for retrieved passages: only their lengths matter here.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rqa import cli, data, distributed, models, training
from rqa.prompts.collators import EncodedExample
from rqa.training.batching import BatchLayout, epoch_order, num_positions, plan_steps


def positions_per_token(lengths: Sequence[int], batches: Iterable[Sequence[int]], *, padded_to: int = 0) -> float:
    """Return the positions computed per token if rows are padded to the longest of their batch, or to `padded_to`."""
    positions = sum(len(batch) * (padded_to or max(lengths[i] for i in batch)) for batch in batches)
    return positions / sum(lengths)


def planned(lengths: Sequence[int], layout: BatchLayout, *, group_by_length: bool) -> Iterator[list[list[list[int]]]]:
    """Yield the micro-batches of each rank for each step of an epoch."""
    window = layout.window * layout.global_batch
    for start in range(0, len(lengths), window):
        part = lengths[start : start + window]
        for step in plan_steps(part, layout, group_by_length=group_by_length, seed="0"):
            yield [[[start + i for i in micro_batch] for micro_batch in rank if micro_batch] for rank in step]


def balance(lengths: Sequence[int], steps: Iterable[Sequence[Sequence[Sequence[int]]]]) -> float:
    """Return the positions that the mean rank computes in a step, divided by those of the rank with the most."""
    mean = most = 0.0
    for step in steps:
        work = [sum(num_positions([lengths[i] for i in micro_batch]) for micro_batch in rank) for rank in step]
        mean += sum(work) / len(work)
        most += max(work)
    return mean / most


class Timer:
    """The seconds spent in the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with a measurement of its time."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def main() -> None:
    """Print the tables."""
    lm, files, search, mix, prompt, optim, _ = cli.parse_args(
        cli.ModelArgs(),
        cli.DataArgs(),
        cli.RetrievalArgs(),
        cli.PassageArgs(),
        cli.PromptArgs(),
        cli.OptimizationArgs(),
        cli.RunArgs(),
    )
    train, corpus = data.load_examples(files.train_file), data.open_passages(search.full_dataset_file_path)
    collator = models.load_collator(lm.model_name_or_path, **prompt.collator_options)
    k = search.embedding_max_num_to_retrieve

    def encode(epoch: int, positions: Sequence[int]) -> list[EncodedExample]:
        options = {"k": k, "seed": optim.seed, "epoch": epoch, **mix.selection_options}
        neighbours = {i: [corpus[(i + j) % len(corpus)] for j in range(k)] for i in positions}
        return collator.encode(data.select_passages(train[i], neighbours[i], **options) for i in positions)

    lengths = [len(row) for row in encode(0, epoch_order(len(train), seed=optim.seed, epoch=0))]
    layout = optim.layout(1, 0)
    size = layout.micro_batch
    in_order = [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]
    print(f"{len(lengths)} rows, {size} x {layout.accumulation} per step: positions computed per token")
    print(f"  padded to 2048           {positions_per_token(lengths, in_order, padded_to=2048):6.3f}")
    print(f"  random batches           {positions_per_token(lengths, in_order):6.3f}")
    for grouped, name in ((False, "sorted within a step"), (True, "grouped by length")):
        epoch = planned(lengths, layout, group_by_length=grouped)
        batches = [micro_batch for step in epoch for rank in step for micro_batch in rank]
        print(f"  {name:23}  {positions_per_token(lengths, batches):6.3f}")
    print("8 ranks: mean work in a step divided by the most work")
    ranks = [[[[i]] for i in range(start, start + 8)] for start in range(0, len(lengths) - 7, 8)]
    print(f"  one row each, random     {balance(lengths, ranks):6.3f}")
    for accumulation in (1, 2, 4):
        plan = planned(lengths, BatchLayout(size, accumulation, 8), group_by_length=True)
        print(f"  {size} x {accumulation} each, planned     {balance(lengths, plan):6.3f}")

    accelerator = distributed.make_accelerator(optim.gradient_accumulation_steps, bf16=optim.bf16)
    wrapper = models.AnswerLM.from_pretrained(lm.model_name_or_path)
    optimizer = training.make_optimizer(wrapper, optim.optim, weight_decay=optim.weight_decay)
    model, optimizer = accelerator.prepare(wrapper, optimizer)
    timer = Timer()
    model.forward, accelerator.backward, optimizer.step = map(
        timer, (model.forward, accelerator.backward, optimizer.step)
    )
    micro_batches = training.training_batches(len(train), layout, encode, collator.collate, **optim.order_options)
    steps = training.train_steps(accelerator, model, optimizer, micro_batches, **optim.loop_options(optim.max_steps))
    start = time.perf_counter()
    for _ in islice(steps, optim.max_steps):
        pass
    seconds = time.perf_counter() - start
    outside = 100 * (1 - timer.seconds / seconds)
    print(f"{optim.max_steps} steps: {seconds:.1f} s, outside forward, backward and optimizer {outside:.2f} %")


if __name__ == "__main__":
    cli.run_main(main)
