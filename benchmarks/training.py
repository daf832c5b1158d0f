"""How much of training is not training: padding, waiting, and time outside forward, backward and optimizer.

    python benchmarks/training.py --config recipes/configs/quickstart.yaml --max_steps 12

Takes the flags of recipes/swr_starling.py; --output_dir is not written. The gold passages and the corpus' next ones
stand for what a retriever would find: lengths are what matters here, not relevance.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rqa.cli import data_args as inputs
from rqa.cli import training_args as config
from rqa.cli.parser import cli, parse_configs
from rqa.data.corpus import open_passages
from rqa.data.passage_selection import select_passages
from rqa.data.records import load_examples
from rqa.distributed.accelerator import make_accelerator
from rqa.models.decoder import AnswerLM
from rqa.prompts.collators import ConcatenatedCollator, EncodedExample
from rqa.prompts.decoder_prompt import PromptBuilder, load_tokenizer
from rqa.training.batching import BatchLayout, epoch_order, num_positions, plan_steps, training_batches
from rqa.training.loop import train_steps
from rqa.training.optim import make_optimizer


def computed(lengths: Sequence[int], batches: Iterable[Sequence[int]], *, fixed: int = 0) -> float:
    """Return the positions computed for each real token, when rows are padded to the longest of their batch."""
    padded = sum(len(batch) * (fixed or max(lengths[i] for i in batch)) for batch in batches)
    return padded / sum(lengths)


def planned(lengths: Sequence[int], layout: BatchLayout, *, group_by_length: bool) -> Iterator[list[list[list[int]]]]:
    """Yield the updates of an epoch: of each process, its micro-batches."""
    window = layout.window * layout.global_batch
    for start in range(0, len(lengths), window):
        part = lengths[start : start + window]
        for update in plan_steps(part, layout, group_by_length=group_by_length, seed="0"):
            yield [[[start + i for i in micro] for micro in process if micro] for process in update]


def efficiency(lengths: Sequence[int], updates: Iterable[Sequence[Sequence[Sequence[int]]]]) -> float:
    """Return the mean over processes of the positions that they compute in an update, by the most of one."""
    mean = most = 0.0
    for update in updates:
        work = [sum(num_positions([lengths[i] for i in micro]) for micro in process) for process in update]
        mean += sum(work) / len(work)
        most += max(work)
    return mean / most


class Timer:
    """Seconds spent inside the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def main() -> None:
    """Print the tables."""
    lm, _, retrieval, _, data, mix, prompt, opt, _ = parse_configs(
        config.Model(),
        inputs.Retriever(),
        inputs.Retrieval(),
        inputs.Index(),
        inputs.Data(),
        inputs.Passages(),
        inputs.Prompt(),
        config.Optimization(),
        config.Run(),
    )
    train, corpus = load_examples(data.train_file), open_passages(data.full_dataset_file_path)
    tokenizer = load_tokenizer(lm.model_name_or_path)
    builder = PromptBuilder(tokenizer, prompt.chat, prompt.instruction, prompt.max_prompt_length)
    collator = ConcatenatedCollator(builder, prompt.max_answer_length)

    k = retrieval.embedding_max_num_to_retrieve

    def encode(epoch: int, positions: Sequence[int]) -> list[EncodedExample]:
        found = {i: [corpus[(i + j) % len(corpus)] for j in range(k)] for i in positions}
        return collator.encode(
            select_passages(train[i], found[i], k=k, seed=opt.seed, epoch=epoch, **vars(mix)) for i in positions
        )

    lengths = [len(row) for row in encode(0, epoch_order(len(train), seed=opt.seed, epoch=0))]
    layout = opt.layout(1, 0)
    size = layout.micro_batch
    in_order = [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]
    print(f"{len(lengths)} rows, {size} x {layout.accumulation} an update: positions computed for each real one")
    print(f"  padded to 2048           {computed(lengths, in_order, fixed=2048):6.3f}")
    print(f"  random batches           {computed(lengths, in_order):6.3f}")
    for grouped, name in ((False, "sorted within an update"), (True, "grouped by length")):
        epoch = planned(lengths, layout, group_by_length=grouped)
        batches = [micro for update in epoch for process in update for micro in process]
        print(f"  {name:23}  {computed(lengths, batches):6.3f}")
    print("on 8 processes: the mean of their work in an update by the most of one")
    cards = [[[[i]] for i in range(start, start + 8)] for start in range(0, len(lengths) - 7, 8)]
    print(f"  one row for each, random {efficiency(lengths, cards):6.3f}")
    for accumulation in (1, 2, 4):
        plan = planned(lengths, BatchLayout(size, accumulation, 8), group_by_length=True)
        print(f"  {size} x {accumulation} for each, dealt    {efficiency(lengths, plan):6.3f}")

    accelerator = make_accelerator(opt.gradient_accumulation_steps, bf16=opt.bf16)
    wrapper = AnswerLM.from_pretrained(lm.model_name_or_path)
    model, optimizer = accelerator.prepare(wrapper, make_optimizer(wrapper, opt.optim, weight_decay=opt.weight_decay))
    timer = Timer()
    model.forward, accelerator.backward, optimizer.step = map(
        timer, (model.forward, accelerator.backward, optimizer.step)
    )
    updates = training_batches(len(train), layout, encode, collator.collate, opt.seed, opt.group_by_length)
    steps = train_steps(
        accelerator,
        model,
        optimizer,
        updates,
        learning_rate=opt.rate(opt.max_steps),
        num_steps=opt.max_steps,
        max_grad_norm=opt.max_grad_norm,
        seed=opt.seed,
    )
    start = time.perf_counter()
    for _ in islice(steps, opt.max_steps):
        pass
    wall = time.perf_counter() - start
    outside = 100 * (1 - timer.seconds / wall)
    print(f"{opt.max_steps} updates: {wall:.1f} s, outside forward, backward and optimizer {outside:.2f} %")


if __name__ == "__main__":
    cli(main)
