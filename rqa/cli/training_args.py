"""Flags of training: model, optimization, run."""

import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rqa.cli.parser import at_least, flag, options, require, require_package
from rqa.cli.sharing_args import SharingArgs
from rqa.distributed.untrusted import ADAPTER_CONFIG
from rqa.errors import InputError
from rqa.evaluation.metrics import HIGHER_IS_BETTER
from rqa.training.batching import BatchLayout
from rqa.training.optim import OPTIMIZERS, OptimizerName
from rqa.training.schedule import Schedule, learning_rate_at
from rqa.training.trackers import TrackerName, check_tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rqa.models.lora import Lora

SaveDtype = Literal["auto", "float32", "bfloat16", "float16"]
UNSTOPPABLE = ("SIGKILL", "SIGSTOP")  # no process can handle these

# Flags that may change on resume: they shape no update, or the fingerprint contains their content in place of their
# name (files, models). Those of `rqa.training.checkpoint.FREE_ON_RESUME` may change too, with a warning.
FLAGS_FREE_ON_RESUME = frozenset(
    "model_name_or_path embedding_model query_encoder reranker_model train_file teacher eval_file test_file "
    "full_dataset_file_path full_dataset_index_path store store_key_name deepspeed bf16 fp16 output_dir logging_steps "
    "save_steps "
    "save_total_limit resume_from_checkpoint report_to run_group merge_adapter save_dtype stop_signals break_lock "
    "max_bad_rows text_field title_field push_to_hub hub_private push_report".split()
)


def flags_locked_on_resume(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that must not change when a run is resumed."""
    return {f"--{name}": value for name, value in config.items() if name not in FLAGS_FREE_ON_RESUME}


@dataclass(frozen=True)
class ModelArgs:
    """The generator to train."""

    model_name_or_path: str = flag(
        "", "checkpoint folder or hub name of the generator", "qa_model_name_or_path", is_path=True
    )
    use_flash_attention: bool = flag(False, "flash attention 2 (needs CUDA and the package flash-attn)")
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, more time")
    lora_rank: int = flag(0, "rank of low-rank adapters, which are trained in place of the model's weights; 0: none")
    lora_alpha: float | None = flag(None, "scale of the adapters, alpha / rank; default: twice the rank")
    lora_dropout: float = flag(0.0, "dropout before the adapters")
    lora_target_modules: str = flag("all-linear", "layers with adapters: ends of their names, such as q_proj,v_proj")
    load_in_4bit: bool = flag(False, "hold the frozen weights of linear layers in 4 bits (QLoRA; needs bitsandbytes)")
    merge_adapter: bool = flag(False, "also export the model with its adapter added to the weights, to merged/")

    @property
    def lora(self) -> "Lora | None":
        """The adapter to train, if any."""
        from rqa.models.lora import ALL_LINEAR, Lora  # imports torch, which flags do not need

        words = self.lora_target_modules.replace(",", " ").split()
        targets = ALL_LINEAR if words == [ALL_LINEAR] else tuple(words)
        alpha = 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return Lora(self.lora_rank, alpha, self.lora_dropout, targets) if self.lora_rank else None

    def load_options(self, accelerator: "Accelerator", optim: OptimizerName) -> dict[str, Any]:
        """Return keyword arguments of `load_model`. Raises InputError if they do not fit optimizer and launch."""
        import torch

        self.check_beside(optim, accelerator.distributed_type.value)
        own = options(self, "gradient_checkpointing", "lora", "load_in_4bit")
        dtype = getattr(torch, OPTIMIZERS[optim].weights)
        return {**own, "precision": accelerator.mixed_precision, "trained_dtype": dtype}

    def check_beside(self, optim: OptimizerName, distribution: str) -> None:
        """Raise InputError if the flags do not work with an optimizer, or with Accelerate's type of distribution."""
        kind = OPTIMIZERS[optim]
        if self.load_in_4bit and not self._trains_adapter:
            raise InputError("--load_in_4bit: no effect without an adapter. Set --lora_rank 16, or remove the flag")
        if self.load_in_4bit and distribution in ("DEEPSPEED", "FSDP"):
            raise InputError(f"--load_in_4bit: expected one process or DDP, got {distribution}. Remove one of them")
        if not kind.works_under_fsdp and distribution == "FSDP":
            raise InputError(f"--optim {optim}: expected one process or DDP, got FSDP. Set --optim adamw")
        if kind.weights != "float32" and self._trains_adapter:
            raise InputError(f"--optim {optim}: adapters are trained in float32. Set --optim adamw")

    @property
    def _trains_adapter(self) -> bool:
        return self.lora_rank > 0 or Path(self.model_name_or_path, ADAPTER_CONFIG).is_file()

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        require(self, "model_name_or_path")
        at_least(self, 0, "lora_rank", "lora_dropout")
        if not self.lora_target_modules.strip():
            raise InputError("--lora_target_modules: expected all-linear, or names of layers, got none")
        if not self.lora_dropout < 1:
            raise InputError(f"--lora_dropout: expected less than 1, got {self.lora_dropout}")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise InputError(f"--lora_alpha: expected more than 0, got {self.lora_alpha}")
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            if not self.lora_rank and getattr(self, name) != getattr(ModelArgs(), name):
                raise InputError(f"--{name}: no effect without --lora_rank. Set --lora_rank 16, or remove the flag")
        if self.merge_adapter and not self._trains_adapter:
            raise InputError("--merge_adapter: no effect without an adapter. Set --lora_rank 16, or remove the flag")
        if self.load_in_4bit:
            require_package("--load_in_4bit", "bitsandbytes", "quantized")


@dataclass(frozen=True)
class OptimizationArgs:
    """Optimizer steps: batch, learning rate, precision."""

    learning_rate: float = flag(5e-6, "peak learning rate")
    num_train_epochs: float = flag(2.0, "epochs; a fraction stops within an epoch")
    max_steps: int = flag(-1, "optimizer steps, in place of --num_train_epochs; -1: not set")
    per_device_train_batch_size: int = flag(2, "examples in one forward pass on one device")
    gradient_accumulation_steps: int = flag(4, "forward passes in one optimizer step")
    group_by_length: bool = flag(True, "examples of similar length share a step: less padding")
    lr_scheduler_type: Schedule = flag("cosine", "learning rate after the warm-up")
    warmup_ratio: float = flag(0.1, "share of the steps in which the learning rate rises")
    weight_decay: float = flag(0.01, "weight decay of the matrices")
    max_grad_norm: float = flag(
        1.0, "gradient norm above which the gradient is clipped; inf: no clipping", may_be_infinite=True
    )
    optim: OptimizerName = flag("adamw", "optimizer")
    bf16: bool | None = flag(None, "bfloat16 autocast, true or false; default: true if the device is fast in it")
    fp16: bool = flag(False, "float16 autocast with loss scaling (CUDA)")
    deepspeed: str = flag("", 'JSON file of DeepSpeed; the flags fill in missing and "auto" values', is_path=True)
    seed: int = flag(0, "seed of the order of examples, the choice of passages, and dropout")

    @property
    def accelerator_options(self) -> dict[str, Any]:
        """Keyword arguments of `make_accelerator`."""
        flags = vars(self) | {"optim_works_under_zero": OPTIMIZERS[self.optim].works_under_zero}
        own = options(self, "bf16", "fp16", "deepspeed")
        return {"accumulation": self.gradient_accumulation_steps, "flags": flags, **own}

    @property
    def order_options(self) -> dict[str, Any]:
        """Keyword arguments of `training_batches`: the order of the examples."""
        return options(self, "seed", "group_by_length")

    def layout(self, processes: int, rank: int) -> BatchLayout:
        """Return the layout of a global batch."""
        return BatchLayout(self.per_device_train_batch_size, self.gradient_accumulation_steps, processes, rank)

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return the number of optimizer steps: `max_steps`, or those of the epochs."""
        return math.ceil(self.num_train_epochs * steps_per_epoch) if self.max_steps == -1 else self.max_steps

    def loop_options(self, num_steps: int) -> dict[str, Any]:
        """Keyword arguments of `train_steps`; the learning rate is a function of the step, from 0."""
        curve: dict[str, Any] = {"peak": self.learning_rate, "num_steps": num_steps, "schedule": self.lr_scheduler_type}
        learning_rate = partial(learning_rate_at, num_warmup_steps=math.ceil(self.warmup_ratio * num_steps), **curve)
        return {"learning_rate": learning_rate, "num_steps": num_steps, **options(self, "max_grad_norm", "seed")}

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        at_least(self, 1, "per_device_train_batch_size", "gradient_accumulation_steps")
        at_least(self, 0, "learning_rate", "warmup_ratio", "weight_decay", "seed")
        if self.max_steps == -1 and not self.num_train_epochs > 0:
            raise InputError(f"--num_train_epochs: expected more than 0, got {self.num_train_epochs}")
        if not self.max_grad_norm > 0:
            raise InputError(f"--max_grad_norm: expected more than 0 (inf: no clipping), got {self.max_grad_norm}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise InputError(f"--max_steps: expected at least 1, or -1 for --num_train_epochs, got {self.max_steps}")
        kind = OPTIMIZERS[self.optim]
        if kind.package:
            require_package(f"--optim {self.optim}", kind.package, "quantized")
        if kind.weights == "bfloat16" and not self.bf16:
            raise InputError(f"--optim {self.optim}: the weights are in bfloat16. Set --bf16 true")
        if self.deepspeed and not Path(self.deepspeed).is_file():
            raise InputError(f"--deepspeed {self.deepspeed}: expected a JSON file, got no file of this name")


@dataclass(frozen=True)
class LoopRunArgs:
    """The run: output, log, checkpoints, tracker."""

    output_dir: str = flag("", "new folder for the model, the metrics and the predictions", is_path=True)
    logging_steps: int = flag(10, "steps between two lines of the log")
    save_steps: int = flag(50, "steps between two checkpoints; the last step is saved too")
    save_total_limit: int = flag(2, "newest checkpoints to keep, in addition to the best")
    resume_from_checkpoint: str = flag(
        "", "latest, or the folder of a checkpoint or of a run to resume from", is_path=True
    )
    break_lock: bool = flag(False, "replace the lock of a run on a machine that is off or cannot be reached")
    stop_signals: str = flag("", "further signals that stop the run after a checkpoint, such as SIGUSR1,SIGUSR2")
    report_to: TrackerName | None = flag(None, "tracker; default: wandb if --run_group is set, else none")
    run_group: str = flag("", "group of the run in Weights & Biases")

    @property
    def tracker(self) -> TrackerName:
        """The tracker in use."""
        return self.report_to or ("wandb" if self.run_group else "none")

    @property
    def run_options(self) -> dict[str, Any]:
        """Keyword arguments of `start_run`."""
        names = ("logging_steps", "save_total_limit", "run_group")
        return {**options(self, *names), "resume_from_checkpoint": self.checkpoint, "tracker": self.tracker}

    @property
    def folder_options(self) -> dict[str, Any]:
        """Keyword arguments of `new_folder`."""
        return {"path": self.output_dir, "resume": bool(self.checkpoint), "break_lock": self.break_lock}

    @property
    def checkpoint(self) -> str:
        """The checkpoint to resume from: a folder, "latest" for that of this run, "" for none."""
        given = self.resume_from_checkpoint
        return {"true": "latest", "false": ""}.get(given.lower(), given)

    @property
    def further_signals(self) -> tuple[signal.Signals, ...]:
        """The signals in `stop_signals`. Raises InputError if there is no such signal."""
        words = self.stop_signals.replace(",", " ").split()
        names = [f"SIG{word.upper().removeprefix('SIG')}" for word in words]
        for word, name in zip(words, names, strict=True):
            if name not in signal.Signals.__members__ or name in UNSTOPPABLE:
                raise InputError(f"--stop_signals: expected names such as SIGUSR1,SIGUSR2, got {word}")
        return tuple(signal.Signals[name] for name in names)

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        require(self, "output_dir")
        at_least(self, 1, "logging_steps", "save_steps", "save_total_limit")
        if self.run_group and self.tracker != "wandb":
            raise InputError(f"--run_group: expected --report_to wandb, got --report_to {self.tracker}")
        if (folder := self.checkpoint) not in ("", "latest") and not Path(folder).is_dir():
            expected = "latest, or the folder of a checkpoint or of a run"
            raise InputError(f"--resume_from_checkpoint {folder}: expected {expected}, got no such folder")
        _ = self.further_signals
        check_tracker(self.tracker)


@dataclass(frozen=True)
class RunArgs(LoopRunArgs, SharingArgs):
    """The run of a generator: also its validation, export and upload."""

    eval_steps: int = flag(50, "steps between two evaluations on --eval_file; the last step is evaluated too")
    per_device_eval_batch_size: int = flag(8, "questions answered at a time on one device", "batch_size")
    metric_for_best_model: str = flag("", "validation metric that selects the model to keep, export and test")
    early_stopping_patience: int | None = flag(None, "evaluations without improvement before the run stops")
    save_dtype: SaveDtype = flag("auto", "dtype of the exported weights; auto: that of the checkpoint")

    @property
    def run_options(self) -> dict[str, Any]:
        """Keyword arguments of `start_run`."""
        return {**super().run_options, **options(self, "metric_for_best_model", "early_stopping_patience")}

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        SharingArgs.check(self)
        at_least(self, 1, "eval_steps", "per_device_eval_batch_size", "early_stopping_patience")
        metric = self.metric_for_best_model
        if metric and metric not in HIGHER_IS_BETTER:
            raise InputError(f"--metric_for_best_model: expected one of {', '.join(HIGHER_IS_BETTER)}, got {metric}")
        if self.early_stopping_patience and not metric:
            raise InputError("--early_stopping_patience: expected --metric_for_best_model too, got it alone")
