"""Flags of a generator behind an endpoint, and the checks that they share with those of the judge."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from rqa.cli.data_args import GeneratorArgs
from rqa.cli.parser import at_least, changed_flags, flag
from rqa.data.jsonl import parse_object
from rqa.endpoint.address import check_key_name, endpoint_of, read_key
from rqa.errors import InputError

LOCAL_FLAGS = ("qa_is_fid", "bf16", "use_flash_attention", "device_map", "load_in_4bit")


def check_endpoint(args: Any, prefix: str, url_name: str) -> None:
    """Raise InputError for values that are not allowed, of the flags with a prefix, such as "judge_"."""
    at_least(args, 1, f"{prefix}concurrency")
    at_least(args, 0, f"{prefix}retries", f"{prefix}deadline")
    if not 0 < (timeout := getattr(args, f"{prefix}timeout")) < math.inf:
        raise InputError(f"--{prefix}timeout: expected seconds above 0, got {timeout}")
    endpoint_of(getattr(args, url_name), f"--{url_name}")
    check_key_name(f"--{prefix}key_name", getattr(args, f"{prefix}key_name"))
    _ = args.parameters


def client_options(args: Any, prefix: str, **others: str) -> dict[str, Any]:
    """Return keyword arguments of `Endpoint`, except the cache, from the flags with a prefix, such as "judge_".

    `others` are the values of model and base_url if these flags have other names.
    """
    names = ("key_name", "concurrency", "timeout", "deadline", "retries", "max_calls", "max_tokens")
    values = {name: getattr(args, f"{prefix}{name}") for name in names}
    values |= others or {name: getattr(args, f"{prefix}{name}") for name in ("model", "base_url")}
    is_required = not getattr(args, f"{prefix}dry_run", False)
    key = read_key(values["key_name"], values["base_url"], is_required=is_required)
    return {**values, "api_key": key, "parameters": args.parameters}


def read_parameters(flag: str, text: str) -> dict[str, Any]:
    """Return the parameters of each request. Raises InputError if they are no JSON object."""
    try:
        return parse_object(text.encode())
    except ValueError as problem:
        raise InputError(f"{flag} {text}: {problem}") from problem


@dataclass(frozen=True)
class EndpointArgs:
    """A generator behind an endpoint, in place of a local model, and its budget."""

    qa_endpoint: str = flag(
        "", "endpoint of a server with OpenAI's API that answers, https://HOST/v1; empty: a local model"
    )
    qa_api: Literal["auto", "completions", "chat"] = flag(
        "auto", "completions: the token ids of the prompt; chat: messages; auto: completions if the server takes ids"
    )
    qa_tokenizer: str = flag(
        "", "tokenizer of the prompt: folder or hub name; empty: that of --model_name_or_path", is_path=True
    )
    qa_key_name: str = flag("OPENAI_API_KEY", "environment variable that holds the key of --qa_endpoint")
    qa_parameters: str = flag(
        "{}", "JSON object of further parameters of each request; null removes a field", is_json=True
    )
    qa_concurrency: int = flag(8, "calls of --qa_endpoint in flight at a time")
    qa_timeout: float = flag(300.0, "seconds that one call of --qa_endpoint may take")
    qa_deadline: float = flag(math.inf, "seconds that all calls together may take", may_be_infinite=True)
    qa_retries: int = flag(5, "retries of a failed call of --qa_endpoint")
    qa_max_calls: int | None = flag(None, "calls of --qa_endpoint at most in this run of the command")
    qa_max_tokens: int | None = flag(None, "tokens of prompts and answers, after which no call is started")

    def check(self) -> None:
        """Raise InputError for values that are not allowed."""
        if not self.qa_endpoint:
            if changed := changed_flags(self):
                raise InputError(f"--{', --'.join(changed)}: no effect without --qa_endpoint")
            return
        check_endpoint(self, "qa_", "qa_endpoint")

    def check_beside(self, generator: GeneratorArgs) -> None:
        """Raise InputError if a flag of a local model is set too, or a needed one is not."""
        if not self.qa_endpoint:
            return
        if not generator.model_name_or_path:
            raise InputError("--qa_endpoint: expected --qa_model_name_or_path too, the name that the server knows")
        if changed := [f"--{name}" for name in LOCAL_FLAGS if name in changed_flags(generator)]:
            raise InputError(f"{', '.join(changed)}: flags of a local model, no effect with --qa_endpoint. Remove them")
        if generator.citations:
            raise InputError("--citations true: a server's answers are not scored by their citations. Remove it")
        if generator.user_prefix is not None and self.qa_api == "chat":
            raise InputError("--user_prefix: no effect with --qa_api chat: the server formats messages. Remove it")

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of each request, without model and prompt."""
        return read_parameters("--qa_parameters", self.qa_parameters)

    def load_options(self, generator: GeneratorArgs) -> dict[str, Any]:
        """Keyword arguments of `EndpointGenerator.load`."""
        client = client_options(self, "qa_", model=generator.model_name_or_path, base_url=self.qa_endpoint)
        names = ("chat", "instruction", "max_prompt_length", "chat_template_kwargs", "chat_template_date")
        prompt = {name: value for name, value in generator.collator_options.items() if name in names}
        own = {"api": self.qa_api, "tokenizer": self.qa_tokenizer, "max_new_tokens": generator.generation_limit}
        return {"client": client, **own, **prompt}
