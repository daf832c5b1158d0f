"""Client of a language model behind an OpenAI-compatible endpoint: calls, retries, limits, and their store."""

import asyncio
import json
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import InitVar, dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx

from rqa.endpoint.address import endpoint_of, is_local
from rqa.endpoint.redaction import without_key
from rqa.endpoint.response_cache import ResponseCache, cache_key, open_response_cache, read_responses
from rqa.endpoint.responses import estimate_tokens, excerpt, first_choice, json_object, used_tokens
from rqa.errors import InputError
from rqa.terminal import Progress

log = logging.getLogger(__name__)

CHAT, COMPLETIONS = "chat/completions", "completions"  # paths of the two APIs
_MAX_BACKOFF = 60.0  # seconds between two attempts, added to those of Retry-After
_MAX_RESPONSE_BYTES = 2**20  # an answer takes some KB, one with a long draft 100 KB; a server may send without end
_TRANSIENT_STATUSES = {408, 409, 425, 429}  # those of 500 and above are transient too
_QUOTA_ERRORS = {"insufficient_quota", "billing_hard_limit_reached"}
_PARAMETER_ERRORS = {"model_not_found", "unsupported_parameter", "unsupported_value"}


@dataclass(frozen=True)
class Reply:
    """The response to one request, "" if there is none, and then the `problem`. `calls` counts those of this run."""

    response: str = ""
    problem: str = ""
    calls: int = 0


@dataclass(kw_only=True, eq=False)
class Endpoint:
    """A language model behind `base_url` (https://HOST/v1), with its limits.

    `api_key` is the value of the environment variable `key_name`, which messages name; an empty key is not sent.
    `cache_path` is the file of responses. `parameters` are fields of every request. At most `concurrency` calls run at
    a time, each for at most `timeout` seconds. A failed call is repeated up to `retries` times, after the server's
    Retry-After and a random part of `backoff` seconds, which double each time. A response of more than 1 MiB, or a
    compressed one, is a failed call without a retry. `deadline` (seconds of calls), `max_calls` and `max_tokens` are
    budgets of all runs of this object. When one is used up, no call starts; up to `concurrency` running calls may
    exceed `max_tokens`. Requests that get no call have a reply without a response.

    `path` is that of the API, below `base_url`. A subclass sets the names in messages.
    """

    role: ClassVar[str] = "endpoint"  # in messages
    activity: ClassVar[str] = "calling"
    url_flag: ClassVar[str] = "base_url"
    model_flag: ClassVar[str] = "model"
    parameters_flag: ClassVar[str] = "parameters"
    reserved: ClassVar[Set[str]] = {"model", "messages", "stream"}  # fields that parameters cannot have

    model: str
    base_url: InitVar[str]
    api_key: InitVar[str]
    cache_path: str | Path
    key_name: str = "OPENAI_API_KEY"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    timeout: float = 60.0
    deadline: float = 3600.0
    retries: int = 5
    backoff: float = 1.0
    max_calls: int | None = None
    max_tokens: int | None = None
    path: str = CHAT

    def __post_init__(self, base_url: str, api_key: str) -> None:
        if reserved := sorted(self.reserved & self.parameters.keys()):
            raise InputError(f"{self.parameters_flag}: expected no field {', '.join(reserved)}. See {self.model_flag}.")
        if self.concurrency < 1 or self.retries < 0 or not 0 < self.timeout < math.inf:
            raise ValueError("expected concurrency >= 1, retries >= 0 and a timeout above 0")
        self.root, key = endpoint_of(base_url, self.url_flag), api_key.strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError(
                f"{self.key_name}: expected a key of printable ASCII, got other characters. Copy it again."
            )
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        # Not compressed: 1 MB can become 1 GB. repr() hides the key.
        plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        self.headers = httpx.Headers(plain | authorization)
        self.calls = self.tokens = 0  # made and used so far
        self.seconds = 0.0  # of all runs so far
        if self.root.scheme == "http" and not is_local(self.root.host) and key:
            log.warning("%s: the key in %s is sent unencrypted to %s", self.url_flag, self.key_name, self.root.host)

    @property
    def url(self) -> httpx.URL:
        """The address of the API."""
        return httpx.URL(f"{self.root}/{self.path}")

    @property
    def used_budget(self) -> str:
        """The budget that is used up, "" if there is none."""
        if self.seconds >= self.deadline:
            return f"the deadline of {self.deadline:g} s"
        if self.max_calls is not None and self.calls >= self.max_calls:
            return f"the budget of {self.max_calls} calls is used up"
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            return f"the budget of {self.max_tokens} tokens is used up"
        return ""

    @property
    def is_chat(self) -> bool:
        """True if the API takes messages, False if it takes a prompt."""
        return self.path == CHAT

    @property
    def version(self) -> int:
        """The version of the prompts, part of every cache key."""
        return 1

    async def fetch(self, bodies: Sequence[str]) -> list[Reply]:
        """Return the reply to each request body, from the cache or from a call, whose response is then cached.

        Equal bodies are one request, whose calls count once. Raises InputError if no call can succeed or the cache
        cannot be used, OSError if it cannot be written.
        """
        keys = [cache_key(body, self.version) for body in bodies]
        distinct = dict(zip(keys, bodies, strict=True))
        with open_response_cache(Path(self.cache_path)) as cache:
            missing = {key: body for key, body in distinct.items() if key not in cache.responses}
            replies = await _Run(self, cache).replies(missing) if missing else {}
            replies |= {key: Reply(cache.responses[key]) for key in distinct.keys() - missing.keys()}
        results = []
        for key in keys:
            results.append(replies[key])
            replies[key] = replace(replies[key], calls=0)
        return results

    def cached(self, bodies: Sequence[str]) -> dict[str, str]:
        """Return the cached responses by request body, without a call."""
        responses = read_responses(self.cache_path)[0] if Path(self.cache_path).exists() else {}
        keys = {body: cache_key(body, self.version) for body in bodies}
        return {body: responses[key] for body, key in keys.items() if key in responses}


def to_body(fields: Mapping[str, Any]) -> str:
    """Return the body of an HTTP request: equal texts for equal fields."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class _CallError(Exception):
    """A failed call: the problem, and the seconds until it may be repeated, None if a retry cannot succeed.

    The problem begins with its kind and a colon.
    """


class _Run:
    """One run of an endpoint: its HTTP client, its clock, and the time until which the server accepts no calls."""

    def __init__(self, endpoint: Endpoint, cache: ResponseCache) -> None:
        self.endpoint, self.cache = endpoint, cache
        self.now = asyncio.get_running_loop().time  # seconds
        self.start = self.now()
        self.end = self.start + endpoint.deadline - endpoint.seconds
        self.resume_at, self.connected = 0.0, False
        self.failures: Counter[str] = Counter()  # calls, by kind of the problem
        self.random = random.Random()  # leaves the state of the global generator unchanged
        self.client = httpx.AsyncClient(
            headers=endpoint.headers,
            timeout=None,  # httpx limits each read; `call` limits the whole call, also of a server that sends slowly
            limits=httpx.Limits(max_connections=endpoint.concurrency),
            trust_env=not is_local(endpoint.root.host),  # no proxy for a server on this machine
        )

    async def replies(self, bodies: Mapping[str, str]) -> dict[str, Reply]:
        """Return the reply to each request body, by cache key."""
        replies: dict[str, Reply] = {}
        remaining = iter(bodies.items())
        self.progress = Progress(self.endpoint.activity, len(bodies), unit="answers")

        async def work() -> None:
            for key, body in remaining:
                replies[key] = await self.reply(key, body)
                self.describe()
                self.progress.advance()

        try:
            with self.progress:
                async with self.client, asyncio.TaskGroup() as tasks:
                    for _ in range(min(self.endpoint.concurrency, len(bodies))):
                        tasks.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self.endpoint.seconds += self.now() - self.start
        if self.failures:
            counts = ", ".join(f"{kind} ({count:,})" for kind, count in self.failures.most_common())
            log.info("%s: failed calls: %s", self.endpoint.role, counts)
        return replies

    async def reply(self, key: str, body: str) -> Reply:
        """Call until there is a response or no call is left, cache the response, and return it."""
        calls, wait, problem = 0, 0.0, ""
        while calls <= self.endpoint.retries:
            if limit := await self.limit_reached(self.now() + wait):
                return Reply("", f"{limit}; before: {problem}" if problem else limit, calls)
            calls += 1
            try:
                response = await self.call(body)
            except _CallError as error:
                problem, retry_after = error.args
                self.count_failure(problem)
                if retry_after is None:
                    return Reply("", problem, calls)
                self.resume_at = max(self.resume_at, self.now() + retry_after)
                wait = retry_after + self.random.uniform(0, min(_MAX_BACKOFF, self.endpoint.backoff * 2 ** (calls - 1)))
            else:
                self.cache.append(key, response)
                self.endpoint.tokens += sum(used_tokens(json_object(response), body, is_chat=self.endpoint.is_chat))
                return Reply(response, "", calls)
        if not self.connected:
            raise InputError(f"{self.endpoint.url}: {problem}. Start the server, or change {self.endpoint.url_flag}.")
        return Reply("", f"{problem} ({calls} calls)", calls)

    def count_failure(self, problem: str) -> None:
        """Count a failed call, and log the first of its kind: there may be thousands."""
        kind = problem.partition(":")[0]
        if kind not in self.failures:
            log.info("%s: %s", self.endpoint.role, problem)
        self.failures[kind] += 1
        self.describe()

    def describe(self) -> None:
        """Show the tokens and the failed calls in the progress."""
        failures = f", {self.failures.total():,} failed calls" if self.failures else ""
        self.progress.describe(f"{self.endpoint.activity} ({self.endpoint.tokens:,} tokens{failures})")

    async def limit_reached(self, start: float) -> str:
        """Wait until `start` and until the server accepts calls. Return the limit that forbids a call, or ""."""
        while self.now() < (begin := max(start, self.resume_at)) < self.end:
            await asyncio.sleep(begin - self.now())
        is_late = max(begin, self.now()) >= self.end
        return f"the deadline of {self.endpoint.deadline:g} s" if is_late else self.endpoint.used_budget

    async def call(self, body: str) -> str:
        """Make one call and return its response. Raises _CallError, or InputError if no other call can succeed."""
        self.endpoint.calls += 1
        start = self.now()
        try:
            async with (
                asyncio.timeout_at(min(self.end, start + self.endpoint.timeout)),
                self.client.stream("POST", self.endpoint.url, content=body.encode()) as response,
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
            self.endpoint.tokens += estimate_tokens(body) + estimate_tokens(text)
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
        """Return the text of a completion or of a content filter's refusal. Raises as `call` does."""
        status, content = response.status_code, json_object(text)
        error = content.get("error")
        fields = [error.get(name) for name in ("code", "type", "param")] if isinstance(error, dict) else []
        words = {field for field in fields if isinstance(field, str)}
        if (response.is_success and first_choice(content, is_chat=self.endpoint.is_chat)) or (
            status == 400 and "content_filter" in words
        ):
            return text
        problem = f"HTTP {status}: {excerpt(text) or 'empty response'}"
        if status == 402 or words & _QUOTA_ERRORS:
            remedy = f"The quota of the key in {self.endpoint.key_name} is used up: raise it"
        elif status in (401, 403):
            remedy = f"Set {self.endpoint.key_name} to a key that may use {self.endpoint.model}"
        elif response.is_redirect or status in (404, 405) or words & _PARAMETER_ERRORS:
            flags = self.endpoint
            remedy = f"Change {flags.url_flag}, {flags.model_flag} or {flags.parameters_flag}"
        else:
            is_transient = response.is_success or status in _TRANSIENT_STATUSES or status >= 500
            raise _CallError(problem, _retry_after(response.headers) if is_transient else None)
        raise InputError(f"{self.endpoint.url}: {problem}\n{remedy}, then repeat the command. Responses are cached.")

    def without_key(self, text: str) -> str:
        """Return a text of the server without the key, which it may repeat."""
        return without_key(text, self.endpoint.headers.get("Authorization", "").removeprefix("Bearer "))


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
