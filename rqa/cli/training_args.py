"""What a recipe can be told of training: dataclasses whose fields are its flags; see `rqa.cli.parser`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rqa.cli.parser import at_least, flag, flat, require
from rqa.errors import InputError
from rqa.training.batching import BatchLayout
from rqa.training.early_stopping import HIGHER_IS_BETTER, EarlyStopping
from rqa.training.schedule import OptimizerName, Schedule, learning_rate_at
from rqa.training.trackers import TrackerName, check_tracker

# What may change when a run is resumed: flags that shape no result, and those whose content tells, not their name.
FLAGS_FREE_ON_RESUME = frozenset(
    "model_name_or_path embedding_model eval_embedding_model train_file eval_file test_file full_dataset_file_path "
    "full_dataset_index_path deepspeed bf16 fp16 output_dir logging_steps save_steps save_total_limit "
    "resume_from_checkpoint report_to run_group".split()
)


def flags_locked_on_resume(configs: Sequence[Any]) -> dict[str, Any]:
    """Return the flags that cannot change when a run is resumed."""
    return {f"--{name}": value for name, value in flat(configs).items() if name not in FLAGS_FREE_ON_RESUME}


@dataclass(frozen=True)
class Model:
    """The generator."""

    model_name_or_path: str = flag("", "checkpoint folder or hub name of the generator to train")
    use_flash_attention: bool = flag(False, "use flash attention 2 (needs a CUDA device and the package flash-attn)")
    gradient_checkpointing: bool = flag(False, "compute activations again in the backward pass: less memory, more time")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "model_name_or_path")


@dataclass(frozen=True)
class Optimization:
    """The updates."""

    learning_rate: float = flag(5e-6, "peak learning rate")
    num_train_epochs: float = flag(2.0, "times to see each example; a fraction stops within an epoch")
    max_steps: int = flag(-1, "train for so many updates, whatever --num_train_epochs; -1: for the epochs")
    per_device_train_batch_size: int = flag(2, "examples in one forward pass on one device")
    gradient_accumulation_steps: int = flag(4, "forward passes in one update")
    group_by_length: bool = flag(True, "put examples of like length into one update: less padding")
    lr_scheduler_type: Schedule = flag("cosine", "course of the learning rate after the warm-up")
    warmup_ratio: float = flag(0.1, "share of the updates in which the rate rises")
    weight_decay: float = flag(0.01, "decay of the weight matrices")
    max_grad_norm: float = flag(1.0, "the gradient is scaled down to this norm; inf: never")
    optim: OptimizerName = flag("adamw", "optimizer")
    bf16: bool | None = flag(None, "true or false: bfloat16 autocast; default: where this device computes it fast")
    fp16: bool = flag(False, "float16 autocast with loss scaling (CUDA)")
    deepspeed: str = flag("", "DeepSpeed's JSON file; what it leaves open, or calls auto, is said by the flags")
    seed: int = flag(0, "of the order of examples, the choice of passages, and dropout")

    @property
    def launch(self) -> dict[str, Any]:
        """The keyword arguments of `make_accelerator`."""
        names = (
            "per_device_train_batch_size max_grad_norm optim learning_rate weight_decay lr_scheduler_type warmup_ratio "
            "max_steps"
        ).split()
        return {
            "accumulation": self.gradient_accumulation_steps,
            "bf16": self.bf16,
            "fp16": self.fp16,
            "deepspeed": self.deepspeed,
            "flags": {name: getattr(self, name) for name in names},
        }

    def layout(self, processes: int, rank: int) -> BatchLayout:
        """Return how a global batch is spread."""
        return BatchLayout(self.per_device_train_batch_size, self.gradient_accumulation_steps, processes, rank)

    def num_steps(self, updates_per_epoch: int) -> int:
        """Return the number of updates: `max_steps`, or what the epochs come to."""
        return math.ceil(self.num_train_epochs * updates_per_epoch) if self.max_steps == -1 else self.max_steps

    def rate(self, num_steps: int) -> Callable[[int], float]:
        """Return the learning rate of each update, from 0, of `num_steps`."""
        return partial(
            learning_rate_at,
            peak=self.learning_rate,
            num_steps=num_steps,
            num_warmup_steps=math.ceil(self.warmup_ratio * num_steps),
            schedule=self.lr_scheduler_type,
        )

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "per_device_train_batch_size", "gradient_accumulation_steps")
        at_least(self, 0, "learning_rate", "num_train_epochs", "warmup_ratio", "weight_decay", "seed")
        if not self.max_grad_norm > 0:
            raise InputError(f"--max_grad_norm: expected more than 0 (inf: no clipping), found {self.max_grad_norm}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(f"--max_steps: expected at least 1, or -1 for the epochs, found {self.max_steps}")
        if self.deepspeed and not Path(self.deepspeed).is_file():
            raise InputError(f"--deepspeed {self.deepspeed}: no such file")


@dataclass(frozen=True)
class Run:
    """The run."""

    output_dir: str = flag("", "new folder for the model, the metrics and the predictions")
    logging_steps: int = flag(10, "updates between two lines of the log")
    eval_steps: int = flag(50, "updates between two evaluations on --eval_file; there is one after the last update too")
    per_device_eval_batch_size: int = flag(8, "questions answered at a time on one device")
    metric_for_best_model: str = flag("", "metric of the evaluation whose best model is kept, exported and tested")
    early_stopping_patience: int | None = flag(None, "stop after so many evaluations without a better one")
    save_steps: int = flag(50, "updates between two checkpoints; there is one after the last update too")
    save_total_limit: int = flag(2, "newest checkpoints that are kept, beside the best")
    resume_from_checkpoint: str = flag("", "folder of a checkpoint, or latest: go on from there")
    report_to: TrackerName | None = flag(None, "tracker; default: wandb where --run_group is given, else none")
    run_group: str = flag("", "group of the run in Weights & Biases")

    @property
    def tracker(self) -> TrackerName:
        """The tracker that is meant."""
        return self.report_to or ("wandb" if self.run_group else "none")

    @property
    def selection(self) -> EarlyStopping:
        """What the best model is chosen by."""
        return EarlyStopping(self.metric_for_best_model, self.early_stopping_patience)

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "output_dir")
        at_least(self, 1, "logging_steps", "eval_steps", "per_device_eval_batch_size", "save_steps", "save_total_limit")
        metric = self.metric_for_best_model
        if metric and metric not in HIGHER_IS_BETTER:
            raise InputError(f"--metric_for_best_model: expected one of {', '.join(HIGHER_IS_BETTER)}, found {metric}")
        if self.early_stopping_patience is not None:
            at_least(self, 1, "early_stopping_patience")
            if not metric:
                raise InputError("--early_stopping_patience goes with --metric_for_best_model, found it alone")
        if self.run_group and self.tracker != "wandb":
            raise InputError(f"--run_group goes with --report_to wandb, found --report_to {self.tracker}")
        check_tracker(self.tracker)
