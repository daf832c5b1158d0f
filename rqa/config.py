"""What a training recipe can be told: dataclasses whose fields are its flags; see `rqa.flags`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rqa.batching import Layout
from rqa.errors import InputError
from rqa.flags import at_least, flag, flat, require
from rqa.passages import REFUSAL_ANSWER, Order
from rqa.prompts import INSTRUCTION, ChatFormat
from rqa.schedule import OptimizerName, Schedule, learning_rate_at
from rqa.selection import HIGHER_IS_BETTER, Selection
from rqa.tracking import TrackerName, check_tracker

# What may change when a run is resumed: flags that shape no result, and those whose content tells, not their name.
FREE = frozenset(
    "model_name_or_path embedding_model eval_embedding_model train_file eval_file test_file full_dataset_file_path "
    "full_dataset_index_path deepspeed bf16 fp16 output_dir logging_steps save_steps save_total_limit "
    "resume_from_checkpoint report_to run_group".split()
)


def fixed_flags(configs: Sequence[Any]) -> dict[str, Any]:
    """Return the flags that cannot change when a run is resumed."""
    return {f"--{name}": value for name, value in flat(configs).items() if name not in FREE}


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
class Data:
    """The examples and the corpus."""

    train_file: str = flag("", "training examples, JSONL")
    eval_file: str = flag("", "examples evaluated every --eval_steps updates, JSONL; none: no such evaluation")
    test_file: str = flag("", "examples evaluated once, after training, JSONL; none: no such evaluation")
    full_dataset_file_path: str = flag("", "the corpus of passages: .jsonl, .jsonl.gz or LocalRQA's document.pkl")
    full_dataset_index_path: str = flag("", "folder of the corpus' index; built there when it does not exist")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "train_file")
        if self.full_dataset_file_path:
            require(self, "full_dataset_index_path")


@dataclass(frozen=True)
class Retriever:
    """The frozen retriever."""

    embedding_model: str = flag("", "checkpoint folder or hub name of the sentence encoder")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        require(self, "embedding_model")


@dataclass(frozen=True)
class EvalRetriever:
    """The retriever that evaluation alone uses."""

    eval_embedding_model: str = flag("", "sentence encoder for evaluation; none: answers are made from gold passages")


@dataclass(frozen=True)
class Retrieval:
    """How much is retrieved, and for which query."""

    embedding_max_num_to_retrieve: int = flag(3, "passages to retrieve for a question, and to read at inference")
    query_history: int = flag(1, "messages of the user before the question that go into the query")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "embedding_max_num_to_retrieve")
        at_least(self, 0, "query_history")


@dataclass(frozen=True)
class Index:
    """How passages are embedded and indexed: the keyword arguments of `open_retriever`."""

    query_prefix: str | None = flag(
        None, 'text before each query ("query: " for E5); default: what the checkpoint says'
    )
    passage_prefix: str | None = flag(None, 'text before each passage ("passage: " for E5); default: as above')
    index_factory: str = flag("Flat", "FAISS index factory; Flat is exact")
    embedding_batch_size: int = flag(64, "texts embedded at a time")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "embedding_batch_size")


@dataclass(frozen=True)
class Passages:
    """Which passages a training example reads: the keyword arguments of `passages_for`."""

    passage_order: Order = flag("ranked", "how gold and retrieved passages are ordered in training")
    gold_dropout: float = flag(0.0, "share of examples that read no gold passage and learn to answer --refusal_answer")
    hard_negatives: int = flag(0, "of an example's own hard negatives, how many it reads")
    refusal_answer: str = flag(REFUSAL_ANSWER, "the answer where the passages do not tell")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 0, "hard_negatives")
        if not 0 <= self.gold_dropout <= 1:
            raise InputError(f"--gold_dropout: expected a share from 0 to 1, found {self.gold_dropout}")


@dataclass(frozen=True)
class Prompt:
    """How prompts are written."""

    user_prefix: str | None = flag(None, "what opens the user's turns; default: the tokenizer's chat template")
    assistant_prefix: str | None = flag(None, "what opens the assistant's turns; goes with --user_prefix")
    sep_user: str = flag(" ", "what ends the user's turns, with --user_prefix")
    sep_sys: str = flag("", "what ends the assistant's turns, with --user_prefix")
    instruction: str = flag(INSTRUCTION, "what stands before the passages")
    max_prompt_length: int = flag(2048, "tokens of a prompt; passages are cut to fit, last ranked first")
    max_answer_length: int = flag(512, "tokens of an answer; a longer one in the training file is refused")
    max_new_tokens: int | None = flag(None, "tokens to generate at most; default: --max_answer_length")

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "max_prompt_length", "max_answer_length")
        if self.max_new_tokens is not None:
            at_least(self, 1, "max_new_tokens")
        if (self.user_prefix is None) != (self.assistant_prefix is None):
            raise InputError("--user_prefix and --assistant_prefix go together, found one of them")
        default = ChatFormat("", "")
        if self.user_prefix is None and (self.sep_user, self.sep_sys) != (default.sep_user, default.sep_sys):
            raise InputError("--sep_user and --sep_sys go with --user_prefix and --assistant_prefix, found them alone")

    @property
    def generation_limit(self) -> int:
        """Tokens to generate at most."""
        return self.max_answer_length if self.max_new_tokens is None else self.max_new_tokens

    @property
    def max_row_length(self) -> int:
        """Tokens of the longest row that can be trained on, or generated."""
        return self.max_prompt_length + max(self.max_answer_length, self.generation_limit)

    @property
    def speakers(self) -> dict[str, str | None]:
        """The names that the turns of a chat history may go by, beside the usual ones."""
        return {"user_prefix": self.user_prefix, "assistant_prefix": self.assistant_prefix}

    @property
    def chat(self) -> ChatFormat | None:
        """The format that the prefixes make, or None for the tokenizer's chat template."""
        if self.user_prefix is None or self.assistant_prefix is None:
            return None
        return ChatFormat(self.user_prefix, self.assistant_prefix, self.sep_user, self.sep_sys)


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

    def layout(self, processes: int, rank: int) -> Layout:
        """Return how a global batch is spread."""
        return Layout(self.per_device_train_batch_size, self.gradient_accumulation_steps, processes, rank)

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
    def selection(self) -> Selection:
        """What the best model is chosen by."""
        return Selection(self.metric_for_best_model, self.early_stopping_patience)

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
