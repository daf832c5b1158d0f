"""Flags of the judge."""

from dataclasses import dataclass
from typing import Any

from rqa.cli.endpoint_args import check_endpoint, client_options, read_parameters
from rqa.cli.parser import flag


@dataclass(frozen=True)
class JudgeArgs:
    """The language model that judges answers, its endpoint, and its budget."""

    judge_model: str = flag("gpt-4o", "the model that judges")
    judge_base_url: str = flag("https://api.openai.com/v1", "endpoint with OpenAI's chat completions")
    judge_key_name: str = flag("OPENAI_API_KEY", "environment variable that holds the key of the endpoint")
    judge_parameters: str = flag(
        '{"temperature": 0, "max_tokens": 1024}', "JSON object of further parameters of each request", is_json=True
    )
    judge_concurrency: int = flag(8, "calls in flight at a time")
    judge_timeout: float = flag(60.0, "seconds that one call may take")
    judge_deadline: float = flag(3600.0, "seconds that all calls together may take", may_be_infinite=True)
    judge_retries: int = flag(5, "retries of a failed call")
    judge_max_calls: int | None = flag(None, "calls at most in this run of the command")
    judge_max_tokens: int | None = flag(None, "tokens of requests and verdicts, after which no call is started")
    judge_dry_run: bool = flag(False, "estimate calls, tokens and cost; make no call")
    judge_prompt_price: float | None = flag(None, "price of a million tokens of requests, for the cost")
    judge_completion_price: float | None = flag(None, "price of a million tokens of verdicts, for the cost")
    judge_labels: str = flag(
        "",
        'verdicts of people, .jsonl of {"id", "correct"} or feedback.jsonl: their agreement with the judge is computed',
        is_path=True,
    )

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        check_endpoint(self, "judge_", "judge_base_url")

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of each request, without model and messages."""
        return read_parameters("--judge_parameters", self.judge_parameters)

    @property
    def client_options(self) -> dict[str, Any]:
        """Keyword arguments of `Judge`, except the cache."""
        return client_options(self, "judge_")

    @property
    def evaluation_options(self) -> dict[str, Any]:
        """Keyword arguments of `judge_answers`."""
        return {
            "labels": self.judge_labels,
            "dry_run": self.judge_dry_run,
            "prompt_price": self.judge_prompt_price,
            "completion_price": self.judge_completion_price,
        }
