"""OpenAI's chat completions: requests are checked, answers become completions or chunks of a stream."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rqa.atomic_files import json_text
from rqa.data.citations import cited_numbers
from rqa.data.jsonl import parse_object
from rqa.data.records import Turn
from rqa.generation.answers import Answer
from rqa.generation.chat import ChatQuestion
from rqa.serving.errors import RequestError

MAX_MESSAGES = 100  # of a conversation; the oldest that do not fit the prompt are dropped one exchange at a time
# Decoding is greedy: other values than these would have no effect. Sampling parameters are accepted: docs/serving.md.
ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "stop": (None, []),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
}


@dataclass(frozen=True)
class ChatRequest:
    """A question with its history, and how it is answered."""

    question: str
    history: tuple[Turn, ...]
    is_streamed: bool = False
    with_usage: bool = False  # a further chunk at the end of a stream
    max_new_tokens: int | None = None

    @classmethod
    def parse(cls, body: bytes, model: str) -> "ChatRequest":
        """Return the request in the JSON of a body. Raises RequestError."""
        values = parse_body(body)
        for name, allowed in ONLY_VALUES.items():
            if values.get(name) not in allowed:
                raise RequestError(400, f"{name}: not supported by this server. Remove it", name)
        if (name := values.get("model", model)) != model:
            raise RequestError(404, f"model: expected {model}, got another name", "model", "model_not_found")
        *history, last = _turns(values.get("messages"))
        if last.role != "user" or not last.text.strip():
            raise RequestError(400, "messages: expected a text of the user at the end", "messages")
        options = values.get("stream_options") or {}
        if not isinstance(options, dict):
            raise RequestError(400, "stream_options: expected an object", "stream_options")
        return cls(
            last.text,
            tuple(history),
            is_streamed=_flag(values, "stream"),
            with_usage=_flag(options, "include_usage"),
            max_new_tokens=_limit(values),
        )


def parse_body(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body. Raises RequestError."""
    try:
        return parse_object(body)
    except (ValueError, RecursionError) as problem:
        raise RequestError(400, f"body: expected a JSON object: {problem}") from problem


def _turns(messages: Any) -> list[Turn]:
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(400, f"messages: expected a list of 1 to {MAX_MESSAGES} messages", "messages")
    return [_turn(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise RequestError(400, f"{where}: expected an object with role and content", "messages")
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        fix = ". The instruction of a model is fixed (--instruction)" if role in ("system", "developer") else ""
        raise RequestError(400, f"{where}.role: expected user or assistant, got {role!r}{fix}", "messages")
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise RequestError(400, f"{where}.content: expected a text, or a list of parts with a text", "messages")
    return Turn(role, content)


def _joined(parts: list[Any]) -> str | None:
    """Return the text of a list of parts, None if one has no text."""
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    strings = [text for text in texts if isinstance(text, str)]
    return "".join(strings) if len(strings) == len(parts) else None


def _flag(values: dict[str, Any], name: str) -> bool:
    if not isinstance(value := values.get(name) or False, bool):
        raise RequestError(400, f"{name}: expected true or false", name)
    return value


def _limit(values: dict[str, Any]) -> int | None:
    """Return the smaller of the two names of the limit of tokens."""
    limits = []
    for name in ("max_tokens", "max_completion_tokens"):
        if (value := values.get(name)) is not None:
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RequestError(400, f"{name}: expected a whole number above 0", name)
            limits.append(value)
    return min(limits, default=None)


@dataclass(frozen=True)
class Completion:
    """The identity of one answer of `model`, and its JSON objects."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, question: ChatQuestion, answer: Answer) -> dict[str, Any]:
        """Return the completion of an answer, with the passages in its prompt."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
        return self._object("", choices=[choice], usage=usage(answer), rqa=sources(question, answer))

    def first(self) -> str:
        """Return the event that begins a stream."""
        return self._event({"role": "assistant", "content": ""})

    def piece(self, text: str) -> str:
        """Return the event of a piece of text."""
        return self._event({"content": text})

    def last(self, question: ChatQuestion, answer: Answer, *, with_usage: bool) -> Iterator[str]:
        """Yield the events that end a stream: the reason with the passages, the usage, the end."""
        yield self._event({}, _reason(answer), rqa=sources(question, answer))
        if with_usage:
            yield event(self._object(".chunk", choices=[], usage=usage(answer)))
        yield "data: [DONE]\n\n"

    def _event(self, delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._object(".chunk", choices=[choice], **more))

    def _object(self, kind: str, **more: Any) -> dict[str, Any]:
        names = {"id": self.id, "object": f"chat.completion{kind}", "created": self.created, "model": self.model}
        return {**names, **more}


def event(value: Any) -> str:
    """Return a server-sent event."""
    return f"data: {json_text(value)}\n\n"


def usage(answer: Answer) -> dict[str, int]:
    """Return the numbers of tokens."""
    prompt, made = answer.num_prompt_tokens, answer.num_tokens
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def sources(question: ChatQuestion, answer: Answer) -> dict[str, Any]:
    """Return the passages in the prompt, best first, and the parts that did not fit."""
    reply = question.reply(answer)
    cited = {*cited_numbers(answer.text)}
    for passage in reply["passages"]:
        passage["is_cited"] = passage["number"] in cited
    left_out = {"dropped_messages": question.num_dropped_messages, "truncated_passage_tokens": answer.truncated}
    return {"passages": reply["passages"], **left_out, "reasoning": answer.reasoning}


def _reason(answer: Answer) -> str:
    return "stop" if answer.finished else "length"
