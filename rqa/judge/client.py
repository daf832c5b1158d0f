"""Answers judged by a language model behind any OpenAI-compatible endpoint: right or wrong, and why.

A response is stored as it came, and is on the disk before it counts: it is never paid for twice, and can be read again.
An answer that gets no verdict is reported as such, and bounds the score; it never leaves a denominator.
"""

import asyncio
import ipaddress
import json
import logging
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from rqa.errors import InputError
from rqa.judge.prompt import JudgeRequest
from rqa.judge.response_cache import Store, open_store, read_store, request_key
from rqa.judge.verdicts import Cost, Verdict, choice_of, estimate, json_object, read_verdict, shown

log = logging.getLogger(__name__)

PARAMETERS: Mapping[str, Any] = MappingProxyType({"temperature": 0, "max_tokens": 1024})

_LONGEST_BACKOFF = 60.0  # seconds
_SECRET = 12  # characters; a shorter key is a word for a server that wants none, such as "EMPTY", and stands in texts
_AGAIN = {408, 409, 425, 429}  # and what is 500 or more, or no chat completion though it is 200
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached"}
_UNSUITABLE = {"model_not_found", "unsupported_parameter", "unsupported_value"}


class Judge:
    """The model that judges, behind `base_url` (https://HOST/v1), and what it may take.

    `api_key` is what the environment variable `key_name` holds, which messages name; an empty one is not sent. `store`
    is the file of responses. `parameters` go into every request. At most `concurrency` calls are under way at a time;
    each may take `timeout` seconds, and is made up to `retries` times again: after a random part of `backoff` seconds,
    then of twice as many, and so on, beside what the server asks for. A run may take `deadline` seconds. No call is
    begun after `max_calls`, or once the responses have taken `max_tokens`: at most `concurrency` of them go beyond.
    These two are for all that this object asks. What cannot be asked any more has failed.

    A server on this machine is called directly, any other through the proxies that the environment names.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        api_key: str,
        store: str | Path,
        key_name: str = "OPENAI_API_KEY",
        parameters: Mapping[str, Any] = PARAMETERS,
        concurrency: int = 8,
        timeout: float = 60.0,
        deadline: float = 3600.0,
        retries: int = 5,
        backoff: float = 1.0,
        max_calls: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if fixed := sorted({"model", "messages", "stream"} & parameters.keys()):
            raise InputError(f"--judge_parameters: {', '.join(fixed)} cannot be set there; the model is --judge_model")
        if concurrency < 1 or retries < 0 or not 0 < timeout < math.inf:
            raise ValueError("expected concurrency >= 1, retries >= 0 and a timeout above 0")
        self.model, self.parameters, self.key_name, self.store = model, parameters, key_name, Path(store)
        self.url, self.headers = endpoint_of(base_url), _headers(api_key.strip(), key_name)
        self.concurrency, self.timeout, self.deadline = concurrency, timeout, deadline
        self.retries, self.backoff = retries, backoff
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.calls = self.tokens = 0  # made and used so far
        if self.url.scheme == "http" and not _is_here(self.url.host) and "Authorization" in self.headers:
            log.warning("--judge_base_url: the key in %s goes unencrypted to %s", key_name, self.url.host)

    def request(self, case: JudgeRequest) -> str:
        """Return the body of the call for a case: for the same case the same."""
        body = {"model": self.model, "messages": [{"role": "user", "content": case.prompt}], **self.parameters}
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def cost(
        self, cases: Sequence[JudgeRequest], *, prompt_price: float | None = None, completion_price: float | None = None
    ) -> Cost:
        """Return what judging `cases` would take, without a call. The prices are those of a million tokens."""
        responses = read_store(self.store)[0] if self.store.exists() else {}
        requests = {request_key(request): request for request in map(self.request, cases)}
        return estimate(requests, responses, prompt_price, completion_price)

    def __call__(self, cases: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return the verdict on each case; `ask` is the same where an event loop runs already."""
        return asyncio.run(self.ask(cases))

    async def ask(self, cases: Sequence[JudgeRequest]) -> list[Verdict]:
        """Return the verdict on each case: on what is stored, and on what is asked now, and stored.

        Raises InputError where no call can succeed (key, quota, address or model) or the store cannot be used, OSError
        where it cannot be written. What was answered until then is stored.
        """
        bodies = [self.request(case) for case in cases]
        keys = [request_key(body) for body in bodies]
        requests = dict(zip(keys, bodies, strict=True))
        with open_store(self.store) as store:
            missing = {key: body for key, body in requests.items() if key not in store.responses}
            verdicts = await _Run(self, store).verdicts(missing) if missing else {}
            for key in requests.keys() - missing.keys():
                verdicts[key] = read_verdict(store.responses[key], requests[key])
        results = []
        for key in keys:
            results.append(verdicts[key])
            verdicts[key] = replace(verdicts[key], prompt_tokens=0, completion_tokens=0, calls=0)
        return results


def endpoint_of(base_url: str) -> httpx.URL:
    """Return the address of chat completions. Raises InputError where it is none, or could hold a key."""
    try:
        url = httpx.URL(f"{base_url.rstrip('/')}/chat/completions")
    except httpx.InvalidURL:
        url = httpx.URL()
    # A key in the address would be logged, so that it is refused, and not shown.
    if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query or url.fragment:
        raise InputError("--judge_base_url: expected http(s)://HOST/PATH alone, such as https://api.openai.com/v1")
    return url


def _headers(key: str, name: str) -> httpx.Headers:
    """Return the headers of a call, which hide the key from repr()."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(f"the key in {name} has characters that no key has: copy it again")
    return httpx.Headers({"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}))


def _is_here(host: str) -> bool:
    """Tell whether a host is this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


class _CallError(Exception):
    """A call without a response that counts. It may be made again `after` so many seconds; None: it is of no use."""

    def __init__(self, problem: str, after: float | None = 0.0) -> None:
        super().__init__(problem)
        self.after = after


class _Run:
    """One run of a judge: its client, its clock, and the time until which the server wants no calls."""

    def __init__(self, judge: Judge, store: Store) -> None:
        self.judge, self.store = judge, store
        self.now = asyncio.get_running_loop().time  # seconds
        self.end = self.now() + judge.deadline
        self.resume_at = 0.0
        self.connected = False
        self.random = random.Random()  # the global one stays as it is
        self.client = httpx.AsyncClient(
            headers=judge.headers,
            timeout=None,  # `call` has one, for the whole of it: a server that dribbles is slow too
            limits=httpx.Limits(max_connections=judge.concurrency),
            trust_env=not _is_here(judge.url.host),
        )

    async def verdicts(self, requests: Mapping[str, str]) -> dict[str, Verdict]:
        """Return the verdict on each request, by key."""
        found: dict[str, Verdict] = {}
        left = iter(requests.items())

        async def work() -> None:
            for key, request in left:
                found[key] = await self.verdict(key, request)

        try:
            async with self.client, asyncio.TaskGroup() as tasks:
                for _ in range(min(self.judge.concurrency, len(requests))):
                    tasks.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return found

    async def verdict(self, key: str, request: str) -> Verdict:
        """Call until there is a response, and store it."""
        calls, wait, problem = 0, 0.0, ""
        while calls <= self.judge.retries:
            if over := await self.used_up(self.now() + wait):
                return Verdict("failed", explanation=f"{over}; before: {problem}" if problem else over, calls=calls)
            calls += 1
            try:
                response = await self.call(request)
            except _CallError as error:
                problem = str(error)
                log.info("judge: %s", problem)
                if error.after is None:
                    return Verdict("failed", explanation=problem, calls=calls)
                self.resume_at = max(self.resume_at, self.now() + error.after)
                longest = min(_LONGEST_BACKOFF, self.judge.backoff * 2 ** (calls - 1))
                wait = error.after + self.random.uniform(0, longest)
            else:
                self.store.append(key, response)
                verdict = replace(read_verdict(response, request), calls=calls)
                self.judge.tokens += verdict.prompt_tokens + verdict.completion_tokens
                return verdict
        if not self.connected:
            raise InputError(f"{self.judge.url}: {problem}; is the server up, and --judge_base_url right?")
        return Verdict("failed", explanation=f"{problem} ({calls} calls)", calls=calls)

    async def used_up(self, start: float) -> str:
        """Wait until `start`, or for as long as the server asks, and return why there can be no call then, or ""."""
        while self.now() < (begin := max(start, self.resume_at)) < self.end:
            await asyncio.sleep(begin - self.now())
        if max(begin, self.now()) >= self.end:
            return f"the deadline of {self.judge.deadline:g} s"
        if self.judge.max_calls is not None and self.judge.calls >= self.judge.max_calls:
            return f"the budget of {self.judge.max_calls} calls is used up"
        if self.judge.max_tokens is not None and self.judge.tokens >= self.judge.max_tokens:
            return f"the budget of {self.judge.max_tokens} tokens is used up"
        return ""

    async def call(self, request: str) -> str:
        """Make one call and return its response. Raises _CallError, or InputError where others would fare no better."""
        self.judge.calls += 1
        start = self.now()
        try:
            async with asyncio.timeout_at(min(self.end, start + self.judge.timeout)):
                response = await self.client.post(self.judge.url, content=request.encode())
        except TimeoutError:
            raise _CallError(f"no response within {self.now() - start:.3g} s") from None
        except httpx.RequestError as error:
            self.connected |= not isinstance(error, httpx.ConnectError)
            raise _CallError(self.without_key(f"{type(error).__name__}: {error}")) from None
        self.connected = True
        return self.checked(response)

    def checked(self, response: httpx.Response) -> str:
        """Return the text of a response that is worth storing. Raises as `call` does."""
        status, text = response.status_code, self.without_key(response.content.decode(errors="replace"))
        body = json_object(text)
        if response.is_success and choice_of(body):
            return text
        error = body.get("error")
        words = {str(error.get(name)) for name in ("code", "type", "param")} if isinstance(error, dict) else set()
        if status == 400 and "content_filter" in words:
            return text
        problem = f"HTTP {status}: {shown(text) or 'nothing'}"
        if status == 402 or words & _QUOTA:
            remedy = f"the account of the key in {self.judge.key_name} has nothing left to spend: add to it"
        elif status in (401, 403):
            remedy = f"set {self.judge.key_name} to a key that may use {self.judge.model}"
        elif response.is_redirect or status in (404, 405) or words & _UNSUITABLE:
            remedy = "change --judge_base_url, --judge_model or --judge_parameters"
        elif response.is_success or status in _AGAIN or status >= 500:
            raise _CallError(problem, _seconds_asked(response.headers))
        else:
            raise _CallError(problem, None)
        raise InputError(f"{self.judge.url}: {problem}\n{remedy}, and start again: what was answered is kept")

    def without_key(self, text: str) -> str:
        """Return what a server said without the key, which it may repeat."""
        key = self.judge.headers.get("Authorization", "").removeprefix("Bearer ")
        return text.replace(key, "[key]") if len(key) >= _SECRET else text


def _seconds_asked(headers: httpx.Headers) -> float:
    """Return how long a server wants no calls. A date counts from the server's own, whose clock may be wrong."""
    asked = headers.get("Retry-After", "")
    if re.fullmatch(r"\d+(\.\d+)?", asked):
        return min(float(asked), 1e9)
    now = _date(headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, ((_date(asked) or now) - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
