"""How long does an example take in training, and how much memory, compared with other trainers?

    python benchmarks/training_peers.py [--tokens 300 800] [--dtypes fp32 bf16] [--rounds 5] [--keep]

SmolLM2 with 135 million parameters, steps of 8 examples, AdamW, the loss on answers. Peers run in .venv-trl (`make
.venv-trl/installed`). rqa: micro-batches of rows of similar length, the vocabulary projection on answers alone.
compiled: the same with torch.compile, each layer by itself, as `accelerate config` sets it. TRL:
the defaults of SFTTrainer; then its best settings: our micro-batch, rows grouped by length, no recomputation. Trainer:
the defaults of transformers. plain loop: a loop in PyTorch, our micro-batch, random batches. LocalRQA: its rows in our
own words, padded to 2048 tokens, with the loss on every position, read by the Trainer as in its code.

Each round has 8 other rows, with the spread of lengths of 1024 (see rows.py); all ways read the same. "TRL, best"
reads them in the order of its groups. The first step is a warm-up: it allocates gradients and the optimizer's state.
Tokenization is not measured. LocalRQA's rows all take the same time: 4 of them. `--rounds 1`, then `--keep --ways ...`
measures the slow ways less often.
"""

import math
import resource
from collections.abc import Sequence
from typing import Any

import measure
from rows import MODEL, read_rows, write_rows

from rqa import distributed, models, prompts, training

PEER_PYTHON = measure.ROOT / ".venv-trl/bin/python"
PEERS = measure.ROOT / "benchmarks/peers/trainers.py"
GLOBAL_BATCH = 8
MICRO_BATCH = {300: 4, 800: 2}  # ours, by the mean tokens of a row
OURS, COMPILED = "rqa", "rqa, compiled"
COMPILATION = ("BACKEND=INDUCTOR", "USE_DYNAMIC=True", "USE_REGIONAL_COMPILATION=True")
WAYS = {  # name in the table: name of the peer, micro-batch (0: ours)
    "TRL, best": ("trl-best", 0),
    "plain loop": ("plain", 0),
    "Trainer, defaults": ("trainer", 8),
    "TRL, defaults": ("trl", 8),
    "LocalRQA": ("fixed", 4),
}
STEPS = 2  # of a round, with the warm-up


def measure_here(path: str, dtype: str, steps: int, micro_batch: int, seed: int) -> measure.Run:
    """Train with the loop of the recipes, and return seconds for an example."""
    rows = read_rows(path)
    collator = models.load_collator(str(MODEL))
    layout = training.BatchLayout(micro_batch, GLOBAL_BATCH // micro_batch)
    accelerator = distributed.make_accelerator(layout.accumulation, bf16=dtype == "bf16")
    wrapper = models.AnswerLM.from_pretrained(str(MODEL))
    optimizer = training.make_optimizer(wrapper)
    model, optimizer = accelerator.prepare(wrapper, optimizer)

    def encode(_epoch: int, positions: Sequence[int]) -> list[prompts.EncodedExample]:
        return [rows[i] for i in positions]

    batches = training.training_batches(len(rows), layout, encode, collator.collate, seed=seed)
    options: dict[str, Any] = {"num_steps": steps, "max_grad_norm": 1.0, "seed": seed}
    ends = []
    for step in training.train_steps(accelerator, model, optimizer, batches, learning_rate=lambda _: 5e-6, **options):
        assert math.isfinite(step.loss)
        ends.append(measure.clock())
    seconds = ends[-1] - ends[0]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds / ((steps - 1) * GLOBAL_BATCH), "memory": memory}


def main() -> None:
    """Measure and print the tables."""
    parser = measure.parser(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[*MICRO_BATCH], choices=[*MICRO_BATCH])
    parser.add_argument(
        "--ways",
        nargs="+",
        default=[COMPILED, *WAYS],
        choices=[COMPILED, *WAYS],
        help="ways to measure; rqa is always one",
    )
    args = parser.parse_args()
    if args.child:
        path, dtype, steps, micro_batch = args.child
        measure.print_numbers(
            lambda: measure_here(path.format(round=args.round), dtype, int(steps), int(micro_batch), args.round)
        )
        return
    for tokens in args.tokens:
        ours = MICRO_BATCH[tokens]
        path = write_rows(tokens, ours)
        for dtype in args.dtypes:
            own = measure.child(__file__, path, dtype, STEPS, ours)
            ways = {OURS: own}
            for name in args.ways:
                if name == COMPILED:
                    ways[name] = ["env", *(f"ACCELERATE_DYNAMO_{each}" for each in COMPILATION), *own]
                    continue
                peer, size = WAYS[name]
                flags = {"dtype": dtype, "steps": STEPS, "micro_batch": size or ours}
                words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
                ways[name] = [str(PEER_PYTHON), str(PEERS), peer, str(path), str(MODEL), *words]
            settings = {"dtype": dtype, "tokens a row": tokens, "micro-batch": ours}
            title = f"Training, rows of {tokens} tokens, {dtype}"
            name = f"training-{tokens}-{dtype}"
            measure.answer(args, measure.new_question(args, name, title, OURS, settings), ways)


if __name__ == "__main__":
    main()
