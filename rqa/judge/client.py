"""Client of the judge, a language model behind an OpenAI-compatible endpoint that grades answers: correct or not."""

import asyncio
import ipaddress
import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from rqa.errors import InputError
from rqa.judge.prompt import JudgeRequest
from rqa.judge.redaction import without_key
from rqa.judge.response_cache import ResponseCache, cache_key, open_response_cache, read_responses
from rqa.judge.verdicts import (
    Cost,
    Verdict,
    estimate_cost,
    estimate_tokens,
    excerpt,
    first_choice,
    json_object,
    read_verdict,
)
from rqa.terminal import Progress

log = logging.getLogger(__name__)

_MAX_BACKOFF = 60.0  # seconds between two attempts, beside those of Retry-After
_MAX_RESPONSE_BYTES = 2**20  # a verdict takes some KB, one with a long draft 100 KB; a server may send without end
_TRANSIENT_STATUSES = {408, 409, 425, 429}  # besides 500 and above
_QUOTA_ERRORS = {"insufficient_quota", "billing_hard_limit_reached"}
_PARAMETER_ERRORS = {"model_not_found", "unsupported_parameter", "unsupported_value"}


@dataclass(kw_only=True, eq=False)
class Judge:
    """The judging model, behind `base_url` (https://HOST/v1), with its limits.

    `api_key` is the value of the environment variable `key_name`, which messages name; an empty key is not sent.
    `cache_path` is the file of responses. `parameters` are fields of every request. At most `concurrency` calls run at
    a time, each for at most `timeout` seconds. A failed call is repeated up to `retries` times, after the server's
    Retry-After and a random part of `backoff` seconds, which double each time. A response of more than 1 MiB, or a
    compressed one, is a failed call without a retry. A run ends after `deadline` seconds.
    `max_calls` and `max_tokens` are budgets of all runs of this object. When one is used up, no call starts; up to
    `concurrency` running calls may exceed `max_tokens`. Requests that get no call have the status "failed".
    """

    model: str
    base_url: InitVar[str]
    api_key: InitVar[str]
    cache_path: str | Path
    key_name: str = "OPENAI_API_KEY"
    parameters: Mapping[str, Any] = field(default_factory={"temperature": 0, "max_tokens": 1024}.copy)
    concurrency: int = 8
    timeout: float = 60.0
    deadline: float = 3600.0
    retries: int = 5
    backoff: float = 1.0
    max_calls: int | None = None
    max_tokens: int | None = None

    def __post_init__(self, base_url: str, api_key: str) -> None:
        if reserved := sorted({"model", "messages", "stream"} & self.parameters.keys()):
            raise InputError(f"--judge_parameters: expected no field {', '.join(reserved)}. See --judge_model.")
        if self.concurrency < 1 or self.retries < 0 or not 0 < self.timeout < math.inf:
            raise ValueError("expected concurrency >= 1, retries >= 0 and a timeout above 0")
        self.url, key = endpoint_of(base_url), api_key.strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError(
                f"{self.key_name}: expected a key of printable ASCII, got other characters. Copy it again."
            )
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        # Not compressed: 1 MB can become 1 GB. repr() hides the key.
        plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        self.headers = httpx.Headers(plain | authorization)
        self.calls = self.tokens = 0  # made and used so far
        if self.url.scheme == "http" and not _is_local(self.url.host) and key:
            log.warning("--judge_base_url: the key in %s is sent unencrypted to %s", self.key_name, self.url.host)

    def request_body(self, request: JudgeRequest) -> str:
        """Return the body of the HTTP request: equal texts for equal requests."""
        body = {"model": self.model, "messages": [{"role": "user", "content": request.prompt}], **self.parameters}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def estimate_cost(
        self, requests: Sequence[JudgeRequest], prompt_price: float | None = None, completion_price: float | None = None
    ) -> Cost:
        """Return the cost of judging `requests`, without a call. Prices are those of a million tokens."""
        responses = read_responses(self.cache_path)[0] if Path(self.cache_path).exists() else {}
        bodies = {cache_key(body): body for body in map(self.request_body, requests)}
        return estimate_cost(bodies, responses, prompt_price, completion_price)

    def __call__(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return the verdict on each request; `judge` is the same for code in an event loop."""
        return asyncio.run(self.judge(requests))

    async def judge(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return the verdict on each request, from the cache or from a call, whose response is then cached.

        Raises InputError if no call can succeed or the cache cannot be used, OSError if it cannot be written.
        """
        bodies = [self.request_body(request) for request in requests]
        keys = [cache_key(body) for body in bodies]
        distinct = dict(zip(keys, bodies, strict=True))
        with open_response_cache(Path(self.cache_path)) as cache:
            missing = {key: body for key, body in distinct.items() if key not in cache.responses}
            verdicts = await _Run(self, cache).verdicts(missing) if missing else {}
            for key in distinct.keys() - missing.keys():
                verdicts[key] = read_verdict(cache.responses[key], distinct[key])
        results = []
        for key in keys:
            results.append(verdicts[key])
            verdicts[key] = replace(verdicts[key], prompt_tokens=0, completion_tokens=0, calls=0)
        return results


def endpoint_of(base_url: str) -> httpx.URL:
    """Return the URL of chat completions. Raises InputError if `base_url` is no address, or may contain a key."""
    try:
        url = httpx.URL(f"{base_url.rstrip('/')}/chat/completions")
    except httpx.InvalidURL:
        url = httpx.URL()
    # A key in the address would be logged. Therefore it is refused, and the message does not show the address.
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise InputError("--judge_base_url: expected http(s)://HOST/PATH alone, such as https://api.openai.com/v1")
    return url


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


class _CallError(Exception):
    """A failed call: the problem, and the seconds until it may be repeated, None if a retry cannot succeed.

    The problem begins with its kind and a colon.
    """


class _Run:
    """One run of a judge: its HTTP client, its clock, and the time until which the server accepts no calls."""

    def __init__(self, judge: Judge, cache: ResponseCache) -> None:
        self.judge, self.cache = judge, cache
        self.now = asyncio.get_running_loop().time  # seconds
        self.end = self.now() + judge.deadline
        self.resume_at, self.connected = 0.0, False
        self.failures: Counter[str] = Counter()  # calls, by kind of the problem
        self.random = random.Random()  # leaves the state of the global generator unchanged
        self.client = httpx.AsyncClient(
            headers=judge.headers,
            timeout=None,  # httpx limits each read; `call` limits the whole call, also of a server that sends slowly
            limits=httpx.Limits(max_connections=judge.concurrency),
            trust_env=not _is_local(judge.url.host),  # no proxy for a server on this machine
        )

    async def verdicts(self, bodies: Mapping[str, str]) -> dict[str, Verdict]:
        """Return the verdict on each request body, by cache key."""
        verdicts: dict[str, Verdict] = {}
        remaining = iter(bodies.items())
        self.progress = Progress("judging", len(bodies), unit="answers")

        async def work() -> None:
            for key, body in remaining:
                verdicts[key] = await self.verdict(key, body)
                self.describe()
                self.progress.advance()

        try:
            with self.progress:
                async with self.client, asyncio.TaskGroup() as tasks:
                    for _ in range(min(self.judge.concurrency, len(bodies))):
                        tasks.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        if self.failures:
            counts = ", ".join(f"{kind} ({count:,})" for kind, count in self.failures.most_common())
            log.info("judge: failed calls: %s", counts)
        return verdicts

    async def verdict(self, key: str, body: str) -> Verdict:
        """Call until there is a response or no call is left, cache the response, and return the verdict."""
        calls, wait, problem = 0, 0.0, ""
        while calls <= self.judge.retries:
            if limit := await self.limit_reached(self.now() + wait):
                return Verdict("failed", explanation=f"{limit}; before: {problem}" if problem else limit, calls=calls)
            calls += 1
            try:
                response = await self.call(body)
            except _CallError as error:
                problem, retry_after = error.args
                self.count_failure(problem)
                if retry_after is None:
                    return Verdict("failed", explanation=problem, calls=calls)
                self.resume_at = max(self.resume_at, self.now() + retry_after)
                wait = retry_after + self.random.uniform(0, min(_MAX_BACKOFF, self.judge.backoff * 2 ** (calls - 1)))
            else:
                self.cache.append(key, response)
                verdict = replace(read_verdict(response, body), calls=calls)
                self.judge.tokens += verdict.prompt_tokens + verdict.completion_tokens
                return verdict
        if not self.connected:
            raise InputError(f"{self.judge.url}: {problem}. Start the server, or change --judge_base_url.")
        return Verdict("failed", explanation=f"{problem} ({calls} calls)", calls=calls)

    def count_failure(self, problem: str) -> None:
        """Count a failed call, and log the first of its kind: there may be thousands."""
        kind = problem.partition(":")[0]
        if kind not in self.failures:
            log.info("judge: %s", problem)
        self.failures[kind] += 1
        self.describe()

    def describe(self) -> None:
        """Show the tokens and the failed calls in the progress."""
        failures = f", {self.failures.total():,} failed calls" if self.failures else ""
        self.progress.describe(f"judging ({self.judge.tokens:,} tokens{failures})")

    async def limit_reached(self, start: float) -> str:
        """Wait until `start` and until the server accepts calls. Return the limit that forbids a call, or ""."""
        while self.now() < (begin := max(start, self.resume_at)) < self.end:
            await asyncio.sleep(begin - self.now())
        if max(begin, self.now()) >= self.end:
            return f"the deadline of {self.judge.deadline:g} s"
        if self.judge.max_calls is not None and self.judge.calls >= self.judge.max_calls:
            return f"the budget of {self.judge.max_calls} calls is used up"
        if self.judge.max_tokens is not None and self.judge.tokens >= self.judge.max_tokens:
            return f"the budget of {self.judge.max_tokens} tokens is used up"
        return ""

    async def call(self, body: str) -> str:
        """Make one call and return its response. Raises _CallError, or InputError if no other call can succeed."""
        self.judge.calls += 1
        start = self.now()
        try:
            async with (
                asyncio.timeout_at(min(self.end, start + self.judge.timeout)),
                self.client.stream("POST", self.judge.url, content=body.encode()) as response,
            ):
                text, defect = await self.read(response)
        except TimeoutError:
            raise _CallError(f"timeout: no response within {self.now() - start:.3g} s", 0.0) from None
        except httpx.RequestError as error:
            self.connected |= not isinstance(error, httpx.ConnectError)
            raise _CallError(f"{type(error).__name__}: {excerpt(self.without_key(str(error)))}", 0.0) from None
        self.connected = True
        if response.is_success and defect:
            # The server may charge for this answer, and would for the next one.
            self.judge.tokens += estimate_tokens(body) + estimate_tokens(text)
            raise _CallError(f"HTTP {response.status_code}: {defect}", None)
        return self.checked(response, text)

    async def read(self, response: httpx.Response) -> tuple[str, str]:
        """Return the text of a body without the key, and the reason not to use it, "" if there is none."""
        data, defect = bytearray(), ""
        if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
            defect = f"expected a response without compression, as requested, got {excerpt(encoding)}"
        async for part in response.aiter_raw():
            data += part
            if len(data) > _MAX_RESPONSE_BYTES:
                defect = f"expected a response of at most {_MAX_RESPONSE_BYTES:,} bytes, got a longer one"
                break
        return self.without_key(data[:_MAX_RESPONSE_BYTES].decode(errors="replace")), defect

    def checked(self, response: httpx.Response, text: str) -> str:
        """Return the text of a chat completion or of a content filter's refusal. Raises as `call` does."""
        status, content = response.status_code, json_object(text)
        error = content.get("error")
        fields = [error.get(name) for name in ("code", "type", "param")] if isinstance(error, dict) else []
        words = {field for field in fields if isinstance(field, str)}
        if (response.is_success and first_choice(content)) or (status == 400 and "content_filter" in words):
            return text
        problem = f"HTTP {status}: {excerpt(text) or 'empty response'}"
        if status == 402 or words & _QUOTA_ERRORS:
            remedy = f"The quota of the key in {self.judge.key_name} is used up: raise it"
        elif status in (401, 403):
            remedy = f"Set {self.judge.key_name} to a key that may use {self.judge.model}"
        elif response.is_redirect or status in (404, 405) or words & _PARAMETER_ERRORS:
            remedy = "Change --judge_base_url, --judge_model or --judge_parameters"
        else:
            is_transient = response.is_success or status in _TRANSIENT_STATUSES or status >= 500
            raise _CallError(problem, _retry_after(response.headers) if is_transient else None)
        raise InputError(f"{self.judge.url}: {problem}\n{remedy}, then repeat the command. Responses are cached.")

    def without_key(self, text: str) -> str:
        """Return a text of the server without the key, which it may repeat."""
        return without_key(text, self.judge.headers.get("Authorization", "").removeprefix("Bearer "))


def _retry_after(headers: httpx.Headers) -> float:
    """Return the seconds of Retry-After, 0 if absent or invalid. A date counts from the server's own clock."""
    value = headers.get("Retry-After", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return min(float(value), 1e9)
    now = _date(headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, ((_date(value) or now) - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
