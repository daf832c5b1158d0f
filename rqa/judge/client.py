"""The judge, a language model behind an OpenAI-compatible endpoint that grades answers: correct or not."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rqa.endpoint.client import Endpoint, Reply, to_body
from rqa.judge import prompt
from rqa.judge.verdicts import Cost, Verdict, estimate_cost


class Request(Protocol):
    """A request to the judge."""

    @property
    def prompt(self) -> str:
        """The text that the judge reads; it asks for a verdict."""

    def read(self, response: str, body: str) -> Verdict:
        """Return the verdict in a response to the request `body`."""


@dataclass(kw_only=True, eq=False)
class Judge(Endpoint):
    """The judging model. A request that gets no call has the status "failed"."""

    role = "judge"
    activity = "judging"
    url_flag = "--judge_base_url"
    model_flag = "--judge_model"
    parameters_flag = "--judge_parameters"

    parameters: Mapping[str, Any] = field(default_factory={"temperature": 0, "max_tokens": 1024}.copy)

    @property
    def version(self) -> int:
        """The version of the prompt, part of every cache key."""
        return prompt.PROMPT_VERSION

    def request_body(self, request: Request) -> str:
        """Return the body of the HTTP request: equal texts for equal requests."""
        messages = [{"role": "user", "content": request.prompt}]
        return to_body({"model": self.model, "messages": messages, **self.parameters})

    def estimate_cost(
        self, requests: Sequence[Request], prompt_price: float | None = None, completion_price: float | None = None
    ) -> Cost:
        """Return the cost of judging `requests`, without a call. Prices are those of a million tokens."""
        bodies = list(dict.fromkeys(map(self.request_body, requests)))
        return estimate_cost(bodies, self.cached(bodies), prompt_price, completion_price)

    def __call__(self, requests: Sequence[Request]) -> list[Verdict]:
        """Return the verdict on each request; `judge` is the same for code in an event loop."""
        return asyncio.run(self.judge(requests))

    async def judge(self, requests: Sequence[Request]) -> list[Verdict]:
        """Return the verdict on each request, from the cache or from a call. Raises as `fetch` does."""
        bodies = [self.request_body(request) for request in requests]
        replies = await self.fetch(bodies)
        verdicts, counted = [], set[str]()
        for request, body, reply in zip(requests, bodies, replies, strict=True):
            verdict = _verdict(request, body, reply)
            verdicts.append(replace(verdict, prompt_tokens=0, completion_tokens=0) if body in counted else verdict)
            counted.add(body)
        return verdicts


def _verdict(request: Request, body: str, reply: Reply) -> Verdict:
    if not reply.response:
        return Verdict("failed", explanation=reply.problem, calls=reply.calls)
    return replace(request.read(reply.response, body), calls=reply.calls)
