"""Flags of hard negatives and of the training of retrievers."""

from dataclasses import dataclass
from typing import Any, Literal

from rqa.cli.data_args import RowArgs
from rqa.cli.parser import at_least, changed_flags, flag, options, require
from rqa.cli.retrieval_args import CorpusArgs, SearchArgs
from rqa.cli.training_args import OptimizationArgs
from rqa.errors import InputError
from rqa.training.optim import OPTIMIZERS


@dataclass(frozen=True)
class MiningArgs(RowArgs):
    """The questions, and the negatives that are wanted."""

    input_file: str = flag("", "questions with gold_docs: .jsonl, .jsonl.gz or .json", "train_file", is_path=True)
    output_file: str = flag("", "the questions with hard_neg_docs: a .jsonl file", is_path=True)
    negatives_per_question: int = flag(8, "hard negatives of a question at most")
    first_rank: int = flag(1, "first rank of the passages that may become negatives; 1 is the best")
    last_rank: int = flag(50, "last rank of the passages that may become negatives")
    max_gold_overlap: float = flag(
        0.8, "passages that have at least this share of their words in common with a gold passage are left out"
    )
    score_margin: float = flag(
        0.0, "with --reranker_model: passages that score at least the best gold passage minus this are left out"
    )

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        require(self, "input_file", "output_file")
        at_least(self, 1, "negatives_per_question", "first_rank")
        at_least(self, 0, "score_margin")
        if not 0 < self.max_gold_overlap <= 1:
            raise InputError(f"--max_gold_overlap: expected more than 0, at most 1, got {self.max_gold_overlap}")
        if self.last_rank < self.first_rank:
            raise InputError(f"--last_rank: expected at least --first_rank {self.first_rank}, got {self.last_rank}")
        if not self.output_file.endswith(".jsonl"):
            raise InputError(f"--output_file: expected a name that ends with .jsonl, got {self.output_file}")

    def check_beside(self, search: SearchArgs) -> None:
        """Raise InputError unless there is a retriever, and a cross-encoder for a margin."""
        search.require_retriever()
        if self.score_margin and not search.reranker_model:
            raise InputError("--score_margin: no effect without --reranker_model. Set it, or remove the flag")

    @property
    def mining_options(self) -> dict[str, Any]:
        """Keyword arguments of `mine_negatives`."""
        return options(self, "negatives_per_question", "first_rank", "last_rank", "max_gold_overlap", "score_margin")


@dataclass(frozen=True)
class ContrastiveArgs(CorpusArgs, RowArgs):
    """The sentence encoder to train, its questions, and the corpus on which it is tested."""

    embedding_model: str = flag(
        "",
        "checkpoint folder or hub name of the sentence encoder to train",
        "embedding_model_name_or_path",
        "eval_embedding_model",
        is_path=True,
    )
    train_file: str = flag(
        "", "training questions with gold_docs, and hard_neg_docs if any: .jsonl, .jsonl.gz or .json", is_path=True
    )
    teacher: str = flag(
        "",
        "evaluation of --train_file with --attribution: the reader's evidence replaces gold_docs; empty: gold_docs",
        is_path=True,
    )
    teacher_scores: Literal["cross_attention", "leave_one_out", "leave_one_out_reference"] | None = flag(
        None, "attribution that teaches; default: the one in --teacher"
    )
    teacher_temperature: float = flag(1.0, "divisor of the teacher's scores; a smaller one prefers the best passage")
    test_file: str = flag(
        "", "test questions, for Recall@k before and after; empty: no test", "eval_data_path", is_path=True
    )
    query_prefix: str | None = flag(None, "text before each query; default: the prompt in the checkpoint")
    passage_prefix: str | None = flag(None, "text before each passage; default: the prompt in the checkpoint")
    query_history: int = flag(1, "user messages before the question that are part of the query")
    embedding_batch_size: int = flag(64, "texts embedded at a time in the test")
    hard_negatives: int = flag(0, "hard negatives (hard_neg_docs) of a question, added to those of its batch")
    temperature: float | None = flag(
        None, "divisor of the similarities in the loss; default: 0.05 for cosines, 1 for inner products"
    )
    mini_batch_size: int | None = flag(
        None, "texts encoded at a time, and again in the backward pass: less memory; default: all of a batch, once"
    )

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        require(self, "embedding_model", "train_file")
        at_least(self, 0, "query_history", "hard_negatives")
        at_least(self, 1, "embedding_batch_size", "mini_batch_size")
        for name in ("temperature", "teacher_temperature"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"--{name}: expected more than 0, got {value}")
        if self.teacher and self.hard_negatives:
            raise InputError(f"--hard_negatives {self.hard_negatives}: no effect with --teacher. Remove it")
        of_teacher = [name for name in changed_flags(self) if name.startswith("teacher_")]
        if of_teacher and not self.teacher:
            raise InputError(f"--{of_teacher[0]}: no effect without --teacher. Set it, or remove the flag")
        of_test = ("full_dataset_file_path", "full_dataset_index_path")
        if self.test_file:
            require(self, *of_test)
        elif used := [name for name in (*of_test, "text_field", "title_field") if getattr(self, name)]:
            raise InputError(f"--{used[0]}: no effect without --test_file. Set it, or remove the flag")

    def check_beside(self, optim: OptimizationArgs) -> None:
        """Raise InputError for options of generators that an encoder does not have."""
        if optim.deepspeed:
            raise InputError("--deepspeed: expected one process or DDP for a sentence encoder. Remove the flag")
        if optim.per_device_train_batch_size == 1 and not (self.hard_negatives or self.teacher):
            raise InputError("--per_device_train_batch_size: expected at least 2 without --hard_negatives, got 1")
        if OPTIMIZERS[optim.optim].weights != "float32":
            raise InputError(f"--optim {optim.optim}: a sentence encoder is trained in float32. Set --optim adamw")

    @property
    def encoder_options(self) -> dict[str, Any]:
        """Keyword arguments of `Encoder`."""
        return {"batch_size": self.embedding_batch_size, **options(self, "query_prefix", "passage_prefix")}

    @property
    def retriever_options(self) -> dict[str, Any]:
        """Keyword arguments of `open_retriever`, without checkpoint and index."""
        return options(self, "query_prefix", "passage_prefix", "embedding_batch_size")

    @property
    def teacher_options(self) -> dict[str, Any]:
        """Keyword arguments of `read_teacher`."""
        return {"scores": self.teacher_scores, "temperature": self.teacher_temperature}

    @property
    def loss_options(self) -> dict[str, Any]:
        """Keyword arguments of `ContrastiveEncoder`."""
        return options(self, "temperature", "mini_batch_size")
