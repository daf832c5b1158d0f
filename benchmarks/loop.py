"""How much time does the training loop add to forward, backward and optimizer, and how near is it to the machine?

    python benchmarks/loop.py [--tokens 300 800] [--dtypes fp32 bf16] [--rounds 9] [--keep]

In one process for each dtype, `rqa.training.train_steps` and a loop in plain PyTorch take the same step in turns: the
same model, the same optimizer, the same micro-batches, the same loss. The share of the matrix product is the rate of a
step's own arithmetic (no padding, no recomputation; causal attention counts half), divided by that of a large matrix
product.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import measure
import torch
from rows import MODEL, NUM_ROUNDS, read_rows, write_rows
from training_peers import GLOBAL_BATCH, MICRO_BATCH

from rqa import distributed, models, training
from rqa.prompts.collators import IGNORE_INDEX, EncodedExample

PLAIN = "plain loop, same batches"


def arithmetic(model: models.AnswerLM, rows: list[EncodedExample]) -> float:
    """Return the floating-point operations of a step: forward, and twice as many backward."""
    config: Any = model.config
    vocabulary = model.model.get_output_embeddings().weight.numel()
    others = sum(each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear)) - vocabulary
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    total = 0.0
    for row in rows:
        attention = 4 * config.num_hidden_layers * width * len(row) ** 2 / 2
        total += 2 * others * len(row) + 2 * vocabulary * len(row.answer) + attention
    return 3 * total


def measure_here(pattern: str, dtype: str, micro_batch: int, rounds: int, seed: int) -> list[measure.Round]:
    """Take each step with both loops, and return the seconds of each."""
    files = [pattern.format(round=number) for number in range(NUM_ROUNDS)]
    rows, collator = [row for file in files for row in read_rows(file)], models.load_collator(str(MODEL))
    layout = training.BatchLayout(micro_batch, GLOBAL_BATCH // micro_batch)
    accelerator = distributed.make_accelerator(layout.accumulation, bf16=dtype == "bf16")
    wrapper = models.AnswerLM.from_pretrained(str(MODEL))
    model, optimizer = accelerator.prepare(wrapper, training.make_optimizer(wrapper))
    steps = training.training_batches(
        len(rows), layout, lambda _, positions: [rows[i] for i in positions], collator.collate, seed=seed
    )
    batches: list[dict[str, Any]] = []  # of the next step of both

    def same() -> Iterator[list[dict[str, Any]]]:
        while True:
            yield batches

    options: dict[str, Any] = {"num_steps": rounds + 1, "max_grad_norm": 1.0, "seed": seed}
    loop = training.train_steps(accelerator, model, optimizer, same(), learning_rate=lambda _: 5e-6, **options)
    plain_model, plain_optimizer = wrapper, optimizer.optimizer

    def ours() -> float:
        return next(loop).loss

    def plain() -> float:
        tokens, total = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in batches), 0.0
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else nullcontext():
                nll = plain_model(input_ids=batch["input_ids"], labels=batch["labels"]).sum() / tokens
            nll.backward()
            total += float(nll.detach())
        torch.nn.utils.clip_grad_norm_(plain_model.parameters(), 1.0)
        plain_optimizer.step()
        plain_optimizer.zero_grad()
        return total

    loops: dict[str, Callable[[], float]] = {"rqa": ours, PLAIN: plain}
    results: list[measure.Round] = []
    for number in range(rounds + 1):
        batches = next(steps)
        names = [*loops] if number % 2 else [*loops][::-1]
        seconds = {}
        for name in names:
            start = measure.clock()
            loops[name]()
            seconds[name] = measure.clock() - start
        limit = measure.matrix_product_rate(measure.torch_dtype(dtype), 0.5)
        operations = arithmetic(wrapper, [rows[i] for batch in batches for i in batch["examples"]])
        each = {name: {"seconds": seconds[name], "share": operations / seconds[name] / 1e9 / limit} for name in loops}
        results.append({**each, measure.LIMIT: {"gflops": limit}})
    return results[1:]  # the first is a warm-up


def main() -> None:
    """Measure and print the tables."""
    parser = measure.parser(__doc__, rounds=9)
    parser.add_argument("--tokens", type=int, nargs="+", default=[*MICRO_BATCH], choices=[*MICRO_BATCH])
    args = parser.parse_args()
    if args.child:
        path, dtype, *numbers = args.child
        print(json.dumps(measure_here(path, dtype, *map(int, numbers))))
        return
    for tokens in args.tokens:
        for dtype in args.dtypes:
            settings = {"dtype": dtype, "tokens a row": tokens, "micro-batch": MICRO_BATCH[tokens]}
            name = f"loop-{tokens}-{dtype}"
            title = f"The loop alone, rows of {tokens} tokens, {dtype}"
            question = measure.new_question(args, name, title, "rqa", settings)
            rounds, path = 1 if args.quick else args.rounds, write_rows(tokens, MICRO_BATCH[tokens])
            command = measure.child(__file__, path, dtype, MICRO_BATCH[tokens], rounds, len(question.rounds))
            new = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1]
            measure.finish(args, replace(question, rounds=[*question.rounds, *json.loads(new)]))


if __name__ == "__main__":
    main()
