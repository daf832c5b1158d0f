"""Responses of an OpenAI-compatible endpoint: the first choice, its texts, and the tokens that it took."""

import json
import math
from collections.abc import Mapping
from typing import Any

from rqa.terminal import printable

CHARACTERS_PER_TOKEN = 4.0  # of English text, if the server counts no tokens
_MAX_TOKENS_PER_CALL = 10**8  # no model has such a context: a larger count is an error


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a response, {} if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def first_choice(completion: Mapping[str, Any], *, is_chat: bool = True) -> dict[str, Any] | None:
    """Return the first choice of a completion, None if it has no choice or the choice is an error."""
    match completion.get("choices"):
        case [{"message": {}} as choice, *_] if is_chat and not choice.get("error"):
            return dict(choice)
        case [{"text": str()} as choice, *_] if not is_chat and not choice.get("error"):
            return dict(choice)
    return None


def message_text(content: Any) -> str:
    """Return the text of a message: a string, or a list of parts, of which those of other types are left out."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


def choice_texts(choice: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text of a choice, and the reasoning that the server split off."""
    if (message := choice.get("message")) is None:
        return choice["text"], ""
    drafts = [message_text(message.get(name)) for name in ("reasoning_content", "reasoning")]
    return message_text(message.get("content")), max(drafts, key=len)


def used_tokens(completion: Mapping[str, Any], body: str, *, is_chat: bool = True) -> tuple[int, int]:
    """Return the tokens of a request and of its completion: those of `usage`, or estimates. A refusal has none."""
    if (choice := first_choice(completion, is_chat=is_chat)) is None:
        return 0, 0
    usage = completion.get("usage")
    return (
        _token_count(usage, "prompt_tokens", estimate_tokens(body)),
        _token_count(usage, "completion_tokens", estimate_tokens("".join(choice_texts(choice)))),
    )


def estimate_tokens(text: str) -> int:
    """Return the number of tokens of a text, if the server does not count them."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _token_count(usage: Any, name: str, estimate: int) -> int:
    """Return a count of `usage` if it is possible: a negative one would raise the budget."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= _MAX_TOKENS_PER_CALL else estimate


def excerpt(text: str) -> str:
    """Return the first 200 characters of a text, on one line, as valid UTF-8 without control characters."""
    return printable(" ".join(text.encode(errors="replace").decode().split())[:200])
