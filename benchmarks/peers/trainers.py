"""Training with other software, in an environment without rqa: print seconds for an example and the peak memory.

    .venv-trl/bin/python benchmarks/peers/trainers.py WAY ROWS.jsonl MODEL --dtype bf16 --steps 2 --micro_batch 4

Rows are {"prompt": ids, "answer": ids}, in blocks of similar length: no time includes tokenization. A step has
GLOBAL_BATCH examples, but one micro-batch of LocalRQA, as documented. The first step is a warm-up and not counted.
"""

import argparse
import itertools
import json
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

GLOBAL_BATCH, FIXED_LENGTH, PAD = 8, 2048, 2


def clock():
    """Return seconds: of the CPU for one thread, else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Stopwatch(TrainerCallback):
    """The time at the end of each step."""

    def __init__(self):
        """No step has ended."""
        self.ends = []

    def on_step_end(self, *_args, **_kwargs):
        """Read the clock."""
        self.ends.append(clock())


def collate(rows):
    """Pad to the longest row, with a loss on answers, as most examples of the Trainer do."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name, value):
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": padded("input_ids", PAD),
        "labels": padded("labels", -100),
        "attention_mask": torch.tensor(mask),
    }


def collate_fixed(rows):
    """Pad to a fixed length, with a loss on every position, padding too: LocalRQA's rows, re-created."""
    ids = [(row["input_ids"] + [PAD] * FIXED_LENGTH)[:FIXED_LENGTH] for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (FIXED_LENGTH - len(row["input_ids"])) for row in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def train_plainly(model, rows, args):
    """Train with a plain loop of PyTorch, and return the time at the end of each step."""
    loader = torch.utils.data.DataLoader(rows, batch_size=args.micro_batch, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6)
    accumulation = GLOBAL_BATCH // args.micro_batch
    batches, ends = itertools.cycle(loader), []
    for _ in range(args.steps):
        for _ in range(accumulation):
            with torch.autocast("cpu", torch.bfloat16) if args.dtype == "bf16" else nullcontext():
                loss = model(**next(batches)).loss / accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(clock())
    return ends


def main():
    """Measure one way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=("plain", "trainer", "fixed", "trl", "trl-best"))
    parser.add_argument("rows")
    parser.add_argument("model")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--micro_batch", type=int, required=True)
    parser.add_argument("--round", type=int, default=0)
    args = parser.parse_args()
    global_batch = args.micro_batch if args.way == "fixed" else GLOBAL_BATCH
    rows = []
    for line in Path(args.rows.format(round=args.round)).read_text().splitlines():
        record = json.loads(line)
        labels = [-100] * len(record["prompt"]) + record["answer"]
        rows.append({"input_ids": record["prompt"] + record["answer"], "labels": labels})
    torch.manual_seed(args.round)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.train()
    options = {
        "output_dir": tempfile.mkdtemp(), "max_steps": args.steps, "per_device_train_batch_size": args.micro_batch,
        "gradient_accumulation_steps": global_batch // args.micro_batch, "bf16": args.dtype == "bf16", "use_cpu": True,
        "seed": args.round, "save_strategy": "no", "report_to": "none", "learning_rate": 5e-6, "disable_tqdm": True,
    }  # fmt: skip
    watch = Stopwatch()
    if args.way == "plain":
        ends = train_plainly(model, rows, args)
    elif args.way in ("trainer", "fixed"):
        settings = TrainingArguments(**options, remove_unused_columns=False)
        collator = collate_fixed if args.way == "fixed" else collate
        Trainer(model, settings, data_collator=collator, train_dataset=rows, callbacks=[watch]).train()
        ends = watch.ends
    else:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        if args.way == "trl-best":
            options |= {"gradient_checkpointing": False, "train_sampling_strategy": "sequential"}  # of the groups
        settings = SFTConfig(**options, max_length=None)  # its default would cut rows at 1024 tokens
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        data = Dataset.from_list(rows)
        trainer = SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer, callbacks=[watch])
        trainer.train()
        ends = watch.ends
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": (ends[-1] - ends[0]) / ((args.steps - 1) * global_batch), "memory": memory}))


if __name__ == "__main__":
    sys.exit(main())
