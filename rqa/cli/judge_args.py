"""Flags of the judge."""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from rqa.cli.parser import at_least, flag
from rqa.data.jsonl import parse_object
from rqa.errors import InputError
from rqa.judge.client import endpoint_of


@dataclass(frozen=True)
class Judge:
    """The language model that judges answers, and what it may take."""

    judge_model: str = flag("gpt-4o", "the model that judges")
    judge_base_url: str = flag("https://api.openai.com/v1", "the endpoint, any that speaks OpenAI's chat completions")
    judge_key_name: str = flag("OPENAI_API_KEY", "environment variable that holds the key of the endpoint")
    judge_parameters: str = flag(
        '{"temperature": 0, "max_tokens": 1024}', "JSON object of what else each request says to the model"
    )
    judge_concurrency: int = flag(8, "calls under way at a time")
    judge_timeout: float = flag(60.0, "seconds that one call may take")
    judge_deadline: float = flag(3600.0, "seconds that all calls together may take")
    judge_retries: int = flag(5, "times that a call which failed is made again")
    judge_max_calls: int | None = flag(None, "budget of this start: no call is begun after so many")
    judge_max_tokens: int | None = flag(
        None, "budget of this start: no call is begun after so many tokens, of requests and verdicts"
    )
    judge_dry_run: bool = flag(False, "make no call: tell what judging would take")
    judge_prompt_price: float | None = flag(None, "price of a million tokens of requests: the cost is told")
    judge_completion_price: float | None = flag(None, "price of a million tokens of verdicts")
    judge_labels: str = flag(
        "", 'people\'s verdicts, .jsonl of {"id", "correct"}: the judge\'s agreement with them is told'
    )

    def check(self) -> None:
        """Raise InputError for values that cannot be."""
        at_least(self, 1, "judge_concurrency")
        at_least(self, 0, "judge_retries", "judge_deadline")
        if not 0 < self.judge_timeout < math.inf:
            raise InputError(f"--judge_timeout: expected seconds above 0, found {self.judge_timeout}")
        _ = self.parameters
        endpoint_of(self.judge_base_url)
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", self.judge_key_name):  # which may be the key itself: it is not shown
            raise InputError(
                "--judge_key_name: expected the name of an environment variable, in capitals, which holds the key"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """What each request says beside model and messages."""
        try:
            return parse_object(self.judge_parameters.encode())
        except ValueError as problem:
            raise InputError(f"--judge_parameters {self.judge_parameters}: {problem}") from problem

    @property
    def key(self) -> str:
        """The key, which is in no flag: flags are in the list of processes, and in config.json."""
        key = os.environ.get(self.judge_key_name, "")
        if not (key or self.judge_dry_run or self.judge_base_url.startswith("http://")):
            raise InputError(
                f"{self.judge_key_name} is not set in the environment: {self.judge_base_url} wants a key; where "
                f"it wants none, any will do: {self.judge_key_name}=EMPTY"
            )
        return key

    @property
    def endpoint(self) -> dict[str, Any]:
        """The keyword arguments of `Judge`, but for its store."""
        names = "model base_url key_name concurrency timeout deadline retries max_calls max_tokens".split()
        values = {name: getattr(self, f"judge_{name}") for name in names}
        return values | {"parameters": self.parameters, "api_key": self.key}

    @property
    def task(self) -> dict[str, Any]:
        """The keyword arguments of `judge_folder`."""
        return {name: getattr(self, f"judge_{name}") for name in "labels dry_run prompt_price completion_price".split()}
