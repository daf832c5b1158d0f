"""The start of a training run: its output folder, its fingerprint, its log."""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from accelerate import Accelerator
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedTokenizerBase

from rqa.atomic_files import write_json
from rqa.data.records import Example
from rqa.distributed.accelerator import call_on_main
from rqa.distributed.device import peak_memory_gib
from rqa.distributed.weights import weights_checksum
from rqa.errors import InputError
from rqa.evaluation.evaluate import Scores
from rqa.evaluation.results import StepRecord, TimingRecord, read_run, to_line
from rqa.generation.answers import ANSWERS_FILE
from rqa.models.lora import has_adapter
from rqa.prompts.collators import EncodedExample
from rqa.retrieval.retrieve import Retrieval
from rqa.terminal import printable
from rqa.training.checkpoint import Checkpoints
from rqa.training.early_stopping import EarlyStopping
from rqa.training.folder_lock import join_lock, lock_folder
from rqa.training.loop import Step
from rqa.training.trackers import Tracker, TrackerName

log = logging.getLogger("rqa")

SHOWN_CHARACTERS = 600  # at each end of the prompt that is logged
OF_ONE_ATTEMPT = ("resume_from_checkpoint", "break_lock")  # flags that config.json does not repeat


def new_folder(accelerator: Accelerator, path: str, *, resume: bool | None = None, break_lock: bool = False) -> Path:
    """Create the output folder of a run, and lock it until all processes of the run have ended. Every rank calls this.

    Raises InputError if it is not writable, has a run's files and `resume` is not True (None: no flag to resume), or is
    locked by another run; see `folder_lock.lock_folder` for `break_lock`. An evaluation resumes in a folder with stored
    answers.
    """
    folder = Path(path)

    def create() -> None:
        if (folder / "config.json").exists() and not resume and not (folder / ANSWERS_FILE).exists():
            or_resume = "" if resume is None else ", or resume that run: --resume_from_checkpoint latest"
            raise InputError(f"--output_dir {path}: expected no files of a run. Name a new folder{or_resume}.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
            lock_folder(folder, break_lock=break_lock)
        except OSError as error:  # also of a full disk
            raise InputError(f"--output_dir {path}: expected a writable folder, got {error}") from error

    call_on_main(accelerator, create)
    join_lock(folder)
    return folder


def log_rows(rows: Sequence[EncodedExample], tokenizer: PreTrainedTokenizerBase) -> None:
    """Log the lengths of training rows, and the first row with its target tokens in brackets."""
    tokens, truncated = sum(map(len, rows)), sum(row.truncated for row in rows)
    targets = 100 * sum(len(row.answer) for row in rows) / tokens
    lengths = f"{tokens / len(rows):.0f} (longest {max(map(len, rows))}), {targets:.1f} % of them targets"
    share = f"{sum(row.truncated > 0 for row in rows)} rows, by {100 * truncated / (truncated + tokens):.2f} %"
    log.info("rows: %d, tokens in a row %s; passages truncated in %s of all tokens", len(rows), lengths, share)
    prompt = "\n".join(str(tokenizer.decode(ids)) for ids in rows[0].prompts)
    if len(prompt) > 2 * SHOWN_CHARACTERS:
        prompt = f"{prompt[:SHOWN_CHARACTERS]} […] {prompt[-SHOWN_CHARACTERS:]}"
    marked = "".join(f"⟦{tokenizer.decode([id])}⟧" for id in rows[0].answer)
    log.info("the first row, its target tokens in brackets:\n%s%s\n", printable(prompt), printable(marked))


class RunLog:
    """Writes config.json, metrics.jsonl and timings.jsonl, log lines, a progress bar, and numbers for a tracker.

    metrics.jsonl is the same when a run is repeated, timings.jsonl is not. `example_ids` are those of the training
    examples, by position. `config` is written to config.json without OF_ONE_ATTEMPT: a repeated run is new.
    Only the main process writes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        *,
        config: Mapping[str, Any],
        num_steps: int,
        example_ids: Sequence[str],
        logging_steps: int = 10,
        first_step: int = 0,
        tracker: TrackerName = "none",
        run_group: str = "",
    ) -> None:
        self.folder, self.example_ids = folder, example_ids
        self.num_steps, self.logging_steps, self.last_step = num_steps, logging_steps, first_step
        self.device, self.is_main = accelerator.device, accelerator.is_main_process
        self.unlogged_steps: list[Step] = []
        if self.is_main:
            values = {name: value for name, value in config.items() if name not in OF_ONE_ATTEMPT}
            write_json(folder / "config.json", values)
        name: TrackerName = tracker if self.is_main else "none"
        self.tracker = Tracker(name, folder, config, group=run_group, first_step=first_step)
        is_shown = self.is_main and sys.stderr.isatty()
        self.bar = tqdm(total=num_steps, initial=first_step, unit="step", disable=not is_shown)

    def step(self, step: Step) -> None:
        """Record a step, unless the log has it. Log a line every `logging_steps` steps and after the last."""
        if step.number <= self.last_step:
            return
        ids = tuple(self.example_ids[i] for i in step.non_finite_examples)
        record = StepRecord(
            step=step.number,
            loss=step.loss,
            gradient_norm=step.gradient_norm,
            learning_rate=step.learning_rate,
            target_tokens=step.target_tokens,
            positions=step.positions,
            examples=step.examples,
            skipped=step.skipped,
            non_finite_examples=ids if step.skipped else None,
        )
        timing = TimingRecord(step.number, step.seconds, step.batch_seconds, peak_memory_gib(self.device))
        self._append("metrics.jsonl", record)
        self._append("timings.jsonl", timing)
        self.last_step = step.number
        self.tracker.log_step(step)
        if step.skipped:
            shown = ", ".join(ids[:20]) + (f" and {len(ids) - 20} more" if len(ids) > 20 else "")
            self.info(f"step {step.number}: skipped, its gradient is not finite; examples: {shown}")
        self.bar.update()
        self.unlogged_steps.append(step)
        if step.number % self.logging_steps == 0 or step.number == self.num_steps:
            self.info(self._line())
            self.unlogged_steps = []

    def _line(self) -> str:
        steps = self.unlogged_steps
        last, seconds = steps[-1], sum(step.seconds for step in steps)
        tokens = sum(step.target_tokens for step in steps)
        return (
            f"step {last.number}/{self.num_steps}"
            f"  loss {sum(step.loss * step.target_tokens for step in steps) / tokens:.4f}"
            f"  gradient norm {last.gradient_norm:.3f}  rate {last.learning_rate:.2e}"
            f"  {sum(step.examples for step in steps) / seconds:.2f} examples/s"
            f"  {sum(step.positions for step in steps) / seconds:.0f} tokens/s"
            f"  {peak_memory_gib(self.device):.1f} GiB"
            f"  {(self.num_steps - last.number) * seconds / len(steps) / 60:.1f} min left"
        )

    def evaluation(self, name: str, scores: Scores) -> None:
        """Record an evaluation, and write its scores and predictions to the folder `name`."""
        self._append("metrics.jsonl", {"evaluation": name, **scores.metrics})
        self.tracker.log_evaluation(name.partition("-")[0], scores.metrics, self.last_step)
        self.info(f"{name}: {scores.summary}")
        if self.is_main:
            scores.write(self.folder / name)

    def _append(self, name: str, record: StepRecord | TimingRecord | dict[str, Any]) -> None:
        if self.is_main:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write(to_line(record))

    def info(self, line: str) -> None:
        """Log a line above the progress bar, on the main process."""
        if self.is_main:
            with logging_redirect_tqdm():
                log.info("%s", line)


def run_fingerprint(
    accelerator: Accelerator,
    model: nn.Module,
    locked_flags: Mapping[str, Any],
    splits: Sequence[Sequence[Example]],
    rows: Sequence[object],
    retrieval: Retrieval | None,
) -> dict[str, Any]:
    """Return the values that must be equal for a run to resume from a checkpoint, by names that a user understands.

    Files are compared by content. Some training `rows` stand for the tokenizer and the prompts.
    """
    plugin = accelerator.state.deepspeed_plugin
    frozen = {"frozen weights": weights_checksum(accelerator, model, only_frozen=True)} if has_adapter(model) else {}
    return {
        **locked_flags,
        "processes": accelerator.num_processes,
        "distribution": f"{accelerator.distributed_type.value}{f' stage {plugin.zero_stage}' if plugin else ''}",
        "mixed precision": accelerator.mixed_precision,
        "torch.compile": accelerator.state.dynamo_plugin.backend.value.lower(),
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters()),
        **frozen,
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


@dataclass(frozen=True)
class Run:
    """A run that is ready to train, from the step after `first_step`."""

    log: RunLog
    checkpoints: Checkpoints
    early_stopping: EarlyStopping
    first_step: int
    unevaluated: tuple[Step, ...] = ()  # the step of the checkpoint, if it was saved before its evaluation

    def remaining(self, steps: Iterator[Step]) -> Iterator[Step]:
        """Yield `steps` until the run stops early, after the step of the checkpoint if that has no evaluation."""
        repeated = chain(self.unevaluated, steps)
        while not self.early_stopping.should_stop and (step := next(repeated, None)):
            yield step


def start_run(
    accelerator: Accelerator,
    folder: Path,
    *,
    fingerprint: Mapping[str, Any],
    metric_for_best_model: str = "",
    early_stopping_patience: int | None = None,
    save_total_limit: int = 2,
    resume_from_checkpoint: str = "",
    **log_options: Any,
) -> Run:
    """Restore the checkpoint to resume from, if any, then open the log. Every rank must call this.

    `fingerprint` comes from `run_fingerprint`; `log_options` are for `RunLog`. The accelerator's prepared model and
    optimizer are restored. Raises InputError if the checkpoint is damaged or belongs to another run.
    """
    early_stopping = EarlyStopping(metric_for_best_model, early_stopping_patience)
    checkpoints = Checkpoints(accelerator, folder, fingerprint, early_stopping, keep=save_total_limit)
    first_step = checkpoints.resume(resume_from_checkpoint) if resume_from_checkpoint else 0
    unevaluated = call_on_main(accelerator, lambda: _last_step(folder)) if first_step else ()
    run_log = RunLog(accelerator, folder, first_step=first_step, **log_options)
    return Run(run_log, checkpoints, early_stopping, first_step, unevaluated)


def _last_step(folder: Path) -> tuple[Step, ...]:
    """Return the last step in the log of a run, without its times; none if it is followed by an evaluation."""
    if "evaluation" in json.loads((folder / "metrics.jsonl").read_bytes().splitlines()[-1]):
        return ()
    record = read_run(folder).steps[-1]
    values = {field.name: getattr(record, field.name) for field in fields(record) if field.name != "step"}
    return (Step(number=record.step, seconds=0.0, batch_seconds=0.0, **values | {"non_finite_examples": ()}),)
