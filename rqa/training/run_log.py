"""Around a run: its folder, its log, what it is known by."""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from accelerate import Accelerator
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase

from rqa.cli.parser import flat, write_config
from rqa.cli.training_args import flags_locked_on_resume
from rqa.data.records import Example
from rqa.distributed.device import peak_memory_gib
from rqa.errors import InputError
from rqa.evaluation.evaluate import Scores
from rqa.prompts.collators import EncodedExample
from rqa.retrieval.retrieve import Retrieval
from rqa.terminal import printable
from rqa.training.loop import Step
from rqa.training.trackers import Tracker, TrackerName

log = logging.getLogger("rqa")

SHOWN = 600  # characters of either end of a prompt
TRACKED = ("loss", "gradient_norm", "learning_rate")


def log_rows(rows: Sequence[EncodedExample], tokenizer: PreTrainedTokenizerBase) -> None:
    """Log what training rows cost and lose, and show the first of them with its target tokens marked."""
    lengths = [len(row) for row in rows]
    answers = sum(len(row.answer) for row in rows)
    cut = sum(row.cut for row in rows)
    log.info(
        "rows: %d, tokens in a row %.0f (most %d), %.1f %% of them targets; passages cut in %d rows, %.2f %% of tokens",
        len(rows),
        sum(lengths) / len(rows),
        max(lengths),
        100 * answers / sum(lengths),
        sum(row.cut > 0 for row in rows),
        100 * cut / (cut + sum(lengths)),
    )
    prompt = "\n".join(str(tokenizer.decode(ids)) for ids in rows[0].prompts)
    if len(prompt) > 2 * SHOWN:
        prompt = f"{prompt[:SHOWN]} […] {prompt[-SHOWN:]}"
    marked = "".join(f"⟦{tokenizer.decode([id])}⟧" for id in rows[0].answer)
    log.info("the first row, its target tokens in brackets:\n%s%s\n", printable(prompt), printable(marked))


class RunLog:
    """The growing files of a run, its progress bar and its lines on the terminal; silent but on the main process.

    metrics.jsonl holds what is the same when the run is repeated, timings.jsonl the rest; a `tracker` is told as well.
    `ids` are those of the training examples, for updates that had to be skipped.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        directory: Path,
        configs: Sequence[Any],
        num_steps: int,
        logging_steps: int,
        *,
        first_step: int = 0,
        ids: Sequence[str],
        tracker: TrackerName = "none",
        run_group: str = "",
    ) -> None:
        self.directory = directory
        self.num_steps = num_steps
        self.logging_steps = logging_steps
        self.ids = ids
        self.device = accelerator.device
        self.main = accelerator.is_main_process
        self.recent: list[Step] = []
        if self.main:
            write_config(directory / "config.json", configs)
        self.last_step = first_step
        self.tracker = Tracker(
            tracker if self.main else "none", directory, flat(configs), group=run_group, first_step=first_step
        )
        hidden = not (self.main and sys.stderr.isatty())
        self.bar = tqdm(total=num_steps, initial=first_step, unit="update", disable=hidden)

    def step(self, step: Step) -> None:
        """Record an update, and print a line after every `logging_steps` of them and after the last."""
        row = asdict(step)
        times = {name: row.pop(name) for name in ("seconds", "batch_seconds")}
        suspects = [self.ids[i] for i in row.pop("suspects")]
        self._append("metrics.jsonl", row | ({"suspects": suspects} if step.skipped else {}))
        self.last_step = step.number
        self.tracker.log(
            {f"train/{name}": row[name] for name in TRACKED} | {"train/seconds": step.seconds}, step.number
        )
        self._append("timings.jsonl", {"number": step.number, **times, "memory_gib": peak_memory_gib(self.device)})
        if step.skipped:
            self._say(f"update {step.number}: skipped, its gradient is not finite; examples: {_shortened(suspects)}")
        self.bar.update()
        self.recent.append(step)
        if step.number % self.logging_steps == 0 or step.number == self.num_steps:
            self._line()
            self.recent = []

    def _line(self) -> None:
        last, seconds = self.recent[-1], sum(step.seconds for step in self.recent)
        tokens = sum(step.target_tokens for step in self.recent)
        self._say(
            f"update {last.number}/{self.num_steps}"
            f"  loss {sum(step.loss * step.target_tokens for step in self.recent) / tokens:.4f}"
            f"  gradient norm {last.gradient_norm:.3f}  rate {last.learning_rate:.2e}"
            f"  {sum(step.examples for step in self.recent) / seconds:.2f} examples/s"
            f"  {sum(step.positions for step in self.recent) / seconds:.0f} tokens/s"
            f"  {peak_memory_gib(self.device):.1f} GiB"
            f"  {(self.num_steps - last.number) * seconds / len(self.recent) / 60:.1f} min left"
        )

    def evaluation(self, name: str, scores: Scores) -> None:
        """Record an evaluation, its predictions in the folder `name`."""
        self._append("metrics.jsonl", {"evaluation": name, **scores.metrics})
        split = name.partition("-")[0]
        self.tracker.log({f"{split}/{metric}": value for metric, value in scores.metrics.items()}, self.last_step)
        self._say(f"{name}: {format_scores(scores.metrics)}")
        if self.main:
            scores.write(self.directory / name)

    def _append(self, name: str, row: dict[str, Any]) -> None:
        if self.main:
            with (self.directory / name).open("a", encoding="utf-8") as file:
                finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
                file.write(json.dumps(finite) + "\n")  # NaN is no JSON

    def _say(self, line: str) -> None:
        if self.main:
            with logging_redirect_tqdm():
                log.info("%s", line)


def _shortened(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def format_scores(metrics: Mapping[str, float]) -> str:
    """Return the main scores in one line."""
    names = ("loss", "recall@1", "recall@3", "bleu", "rougeL", "em", "f1")
    return "  ".join(f"{name} {metrics[name]:.3g}" for name in names if name in metrics)


def new_folder(accelerator: Accelerator, path: str, *, resume: bool | None = None) -> Path:
    """Make the output folder of a run. InputError where files are there that it does not `resume`; None: it cannot."""
    folder = Path(path)
    if accelerator.is_main_process:
        if (folder / "config.json").exists() and not resume:
            or_resume = "" if resume is None else ", or go on with that run: --resume_from_checkpoint latest"
            raise InputError(f"--output_dir {path}: a run's files are there already; name a new folder{or_resume}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"--output_dir {path}: cannot be written to: {error}") from error
    return folder


def run_fingerprint(
    accelerator: Accelerator,
    model: nn.Module,
    configs: Sequence[Any],
    splits: Sequence[Sequence[Example]],
    rows: Sequence[EncodedExample],
    retrieval: Retrieval | None,
) -> dict[str, Any]:
    """Return what a run must have in common with a checkpoint to go on from it, named as the user knows it.

    Files are told by what was read from them, the tokenizer and the prompts by some training `rows` that they made.
    """
    plugin = accelerator.state.deepspeed_plugin
    return {
        **flags_locked_on_resume(configs),
        "processes": accelerator.num_processes,
        "distribution": f"{accelerator.distributed_type.value}{f' stage {plugin.zero_stage}' if plugin else ''}",
        "mixed precision": accelerator.mixed_precision,
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters()),
        "tokens of the first rows": _digest(rows),
        **{
            f"--{name}_file": _digest([replace(example, where="") for example in examples])
            for name, examples in zip(("train", "eval", "test"), splits, strict=True)
        },
        "retriever": retrieval.fingerprint if retrieval else "none",
    }


def _digest(values: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode())
    return digest.hexdigest()[:16]
