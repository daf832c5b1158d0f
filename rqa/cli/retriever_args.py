"""Flags of hard negatives and of the training of retrievers."""

from dataclasses import dataclass
from typing import Any

from rqa.cli.data_args import RowArgs, SearchArgs
from rqa.cli.parser import at_least, flag, options, require
from rqa.errors import InputError


@dataclass(frozen=True)
class MiningArgs(RowArgs):
    """The questions, and the negatives that are wanted."""

    input_file: str = flag("", "questions with gold_docs: .jsonl, .jsonl.gz or .json", "train_file", is_path=True)
    output_file: str = flag("", "the questions with hard_neg_docs: a .jsonl file", is_path=True)
    negatives_per_question: int = flag(8, "hard negatives of a question at most")
    first_rank: int = flag(1, "first rank of the passages that may become negatives; 1 is the best")
    last_rank: int = flag(50, "last rank of the passages that may become negatives")
    score_margin: float = flag(
        0.0, "with --reranker_model: passages that score at least the best gold passage minus this are left out"
    )

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        super().check()
        require(self, "input_file", "output_file")
        at_least(self, 1, "negatives_per_question", "first_rank")
        at_least(self, 0, "score_margin")
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
        return options(self, "negatives_per_question", "first_rank", "last_rank", "score_margin")
