"""Responses of an OpenAI-compatible endpoint: the first choice, its texts, and the tokens that it took."""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

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


def completed_text(completion: Mapping[str, Any]) -> tuple[str, Literal["", "refused", "malformed"], str]:
    """Return the text of a chat completion, the kind of its defect, "" if it has none, and the reason.

    "refused" is by the model or a content filter, "malformed" is a text that the token limit truncated.
    """
    if (choice := first_choice(completion)) is None:  # a content filter refused the request
        return "", "refused", excerpt(json.dumps(completion, ensure_ascii=False))
    content, refusal = choice_texts(choice)[0], message_text(choice["message"].get("refusal"))
    if refusal or choice.get("finish_reason") == "content_filter":
        return content, "refused", excerpt(refusal or f"content filter: {content}")
    if choice.get("finish_reason") == "length":
        return content, "malformed", f"truncated at the token limit: {excerpt(content)}"
    return content, "", ""


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
