"""Flags of the writing of questions: their numbers and files, and the language model that writes them."""

from dataclasses import dataclass
from typing import Any, Literal

from rqa.cli.endpoint_args import check_endpoint, client_options, read_parameters
from rqa.cli.judge_args import JudgeArgs
from rqa.cli.parser import at_least, changed_flags, flag, options, require
from rqa.errors import InputError

SHARES = ("validation_share", "test_share", "multi_turn_share", "unanswerable_share")
PLAN_FLAGS = (*SHARES, "num_questions", "questions_per_passage", "max_attempts", "split_by", "seed")


@dataclass(frozen=True)
class QuestionArgs:
    """The corpus, the output, and the questions that are wanted."""

    full_dataset_file_path: str = flag(
        "", "the corpus of passages: .jsonl, .jsonl.gz or LocalRQA's document.pkl", "document_path", is_path=True
    )
    output_dir: str = flag("", "folder for train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl", is_path=True)
    num_questions: int = flag(1000, "questions that are kept, in all three files")
    validation_share: float = flag(0.1, "share of the questions in validation.jsonl")
    test_share: float = flag(0.1, "share of the questions in test.jsonl")
    multi_turn_share: float = flag(0.2, "share of the questions that are turns of conversations, of 2 or 3 turns")
    unanswerable_share: float = flag(0.1, "share of the questions that their passage does not answer")
    questions_per_passage: int = flag(1, "questions to write about one passage, outside conversations")
    max_attempts: float = flag(4.0, "questions to ask for at most, as a multiple of --num_questions")
    split_by: Literal["document", "passage"] = flag(
        "document", "no document (source without #..., else title) is in two files; or no passage is"
    )
    seed: int = flag(0, "seed of the sampled passages")
    judge_questions: bool = flag(True, "check each question with a judge; see the --judge flags")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        require(self, "full_dataset_file_path", "output_dir")
        at_least(self, 3, "num_questions")
        at_least(self, 1, "questions_per_passage", "max_attempts")
        for name in SHARES:
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise InputError(f"--{name}: expected a share from 0 to 1, got {share}")
        if (total := self.validation_share + self.test_share) >= 1:
            raise InputError(f"--validation_share and --test_share: expected less than 1 together, got {total:g}")
        if (total := self.multi_turn_share + self.unanswerable_share) > 1:
            raise InputError(f"--multi_turn_share and --unanswerable_share: expected at most 1, got {total:g}")

    def check_beside(self, judging: JudgeArgs) -> None:
        """Raise InputError if a flag of the judge has no effect."""
        changed = changed_flags(judging)
        if changed and not self.judge_questions:
            raise InputError(f"--{', --'.join(changed)}: no effect with --judge_questions false")
        for name in ("judge_labels", "judge_dry_run"):
            if name in changed:
                raise InputError(f"--{name}: no effect on questions. Remove it; --writer_dry_run estimates both models")

    @property
    def plan_options(self) -> dict[str, Any]:
        """Keyword arguments of `Plan`."""
        return options(self, *PLAN_FLAGS)

    def settings(self, writer: "WriterArgs", judging: JudgeArgs) -> dict[str, Any]:
        """Return the flags that the questions depend on."""
        own = {**self.plan_options, "judge_questions": self.judge_questions}
        by_writer = options(writer, "writer_model", "writer_parameters", "writer_instruction")
        by_judge = options(judging, "judge_model", "judge_parameters") if self.judge_questions else {}
        return {**own, **by_writer, **by_judge}


@dataclass(frozen=True)
class WriterArgs:
    """The language model that writes questions, its endpoint, and its budget."""

    writer_model: str = flag("gpt-4o", "the model that writes")
    writer_base_url: str = flag("https://api.openai.com/v1", "endpoint with OpenAI's chat completions")
    writer_key_name: str = flag("OPENAI_API_KEY", "environment variable that holds the key of the endpoint")
    writer_parameters: str = flag(
        '{"temperature": 0, "max_tokens": 1024}', "JSON object of further parameters of each request", is_json=True
    )
    writer_instruction: str = flag("", "a sentence about subject, users or style, which is added to the prompt")
    writer_concurrency: int = flag(8, "calls in flight at a time")
    writer_timeout: float = flag(60.0, "seconds that one call may take")
    writer_deadline: float = flag(3600.0, "seconds that all calls together may take", may_be_infinite=True)
    writer_retries: int = flag(5, "retries of a failed call")
    writer_max_calls: int | None = flag(None, "calls at most in this run of the command")
    writer_max_tokens: int | None = flag(None, "tokens of requests and answers, after which no call is started")
    writer_dry_run: bool = flag(False, "estimate calls, tokens and cost of writer and judge; make no call")
    writer_prompt_price: float | None = flag(None, "price of a million tokens of requests, for the cost")
    writer_completion_price: float | None = flag(None, "price of a million tokens of answers, for the cost")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        check_endpoint(self, "writer_", "writer_base_url")

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of each request, without model and messages."""
        return read_parameters("--writer_parameters", self.writer_parameters)

    @property
    def client_options(self) -> dict[str, Any]:
        """Keyword arguments of `Writer`, except the cache."""
        return {**client_options(self, "writer_"), "instruction": self.writer_instruction}
