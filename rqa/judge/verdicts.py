"""Verdicts: parsed from the responses of the judge, their summary, agreement between raters, and cost."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rqa.errors import InputError

Status = Literal["judged", "malformed", "refused", "failed"]

CHARACTERS = 4.0  # of a token, and
ANSWER_TOKENS = 100.0  # of a verdict, where nothing better is known


@dataclass(frozen=True)
class Verdict:
    """What came of a case; `correct` is None unless `status` is judged.

    The explanation is the judge's, or why there is no verdict. Tokens are those of the response, whenever it was paid
    for; `calls` were made for it in this run. A request that stands twice in a run counts its tokens and calls once.
    """

    status: Status
    correct: bool | None = None
    explanation: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0


def read_verdict(response: str, request: str) -> Verdict:
    """Return what a stored response says. Tokens that the server did not count are 4 characters each."""
    body = json_object(response)
    if (choice := choice_of(body)) is None:  # an error that is an answer: a filter of what goes in
        return Verdict("refused", explanation=shown(response))
    said = [choice["message"].get(name) for name in ("content", "refusal")]
    content, refusal = (text if isinstance(text, str) else "" for text in said)
    match body:
        case {"usage": {"prompt_tokens": int(sent), "completion_tokens": int(got)}}:
            tokens = (sent, got)
        case _:
            tokens = (math.ceil(len(request) / CHARACTERS), math.ceil(len(content) / CHARACTERS))
    if refusal or choice.get("finish_reason") == "content_filter":
        return Verdict("refused", None, shown(refusal or f"content filter: {content}"), *tokens)
    if choice.get("finish_reason") == "length":
        return Verdict("malformed", None, f"cut at the limit of tokens: {shown(content)}", *tokens)
    found = _verdicts_in(content)
    if len({correct for correct, _ in found}) != 1:
        return Verdict("malformed", None, f"expected one verdict, found {len(found)}: {shown(content)}", *tokens)
    return Verdict("judged", *found[-1], *tokens)


def _verdicts_in(content: str) -> list[tuple[bool, str]]:
    """Return each verdict that stands in a text as a JSON object of its own; none where any object there is broken."""
    found = []
    start = _OPENING.search(content)
    while start:
        try:
            value, end = _DECODER.raw_decode(content, start.start())
        except (ValueError, RecursionError):
            return []
        if type(value.get("correct")) is bool:
            explanation = value.get("explanation")
            # Half of a surrogate pair, which an escape can bring, is in no file.
            text = explanation.encode(errors="replace").decode() if isinstance(explanation, str) else ""
            found.append((value["correct"], text))
        start = _OPENING.search(content, end)
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a field stands twice")
    return dict(pairs)


_OPENING = re.compile(r'\{\s*"')
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_distinct)  # a text may span lines


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a response is, or an empty one."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def choice_of(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the model said, where a response is a chat completion; of several choices the first."""
    match body.get("choices"):
        case [{"message": {}} as choice, *_] if not choice.get("error"):
            return dict(choice)
    return None


def shown(text: str) -> str:
    """Return the first 200 characters of a text, on one line, as they can be written."""
    return " ".join(text.encode(errors="replace").decode().split())[:200]


def summary(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the scores of a run: `judge_accuracy` in per cent of those judged, and how many came to which end.

    Between `judge_accuracy_low` and `judge_accuracy_high` is what it would be if all had been judged: the missing all
    wrong, all right. Without anything judged there is no accuracy, without cases there are no bounds.
    """
    ends = Counter(verdict.status for verdict in verdicts)
    judged, right = ends["judged"], sum(verdict.correct is True for verdict in verdicts)
    scores = {"judge_accuracy": 100 * right / judged} if judged else {}
    if verdicts:
        scores["judge_accuracy_low"] = 100 * right / len(verdicts)
        scores["judge_accuracy_high"] = 100 * (right + len(verdicts) - judged) / len(verdicts)
    for name in get_args(Status):
        scores[f"judge_{name}"] = ends[name]
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        scores[f"judge_{name}"] = sum(getattr(verdict, name) for verdict in verdicts)
    return scores


@dataclass(frozen=True)
class Agreement:
    """How two raters agree: on how many they both rated, in what per cent of those, and Cohen's kappa, or None."""

    both: int
    per_cent: float
    kappa: float | None


def kappa(a: Mapping[str, bool | None], b: Mapping[str, bool | None]) -> Agreement:
    """Return how far two raters' labels, by id, agree beyond chance (Cohen 1960); a None is no label.

    kappa = (p_o - p_e) / (1 - p_e), where p_o is the share of ids on which they agree, and p_e what it would be if each
    drew labels at random in the shares that are its own. It is undefined (None) where p_e is 1: both gave one and the
    same label to all. Raises InputError where no id has both labels.
    """
    pairs = [(a[id], b[id]) for id in a.keys() & b.keys() if a[id] is not None and b[id] is not None]
    n = len(pairs)
    if not n:
        raise InputError(f"agreement: of {len(a)} and {len(b)} ids none has a label of both; expected ids in common")
    agreed = sum(x == y for x, y in pairs)
    yes_a, yes_b = sum(x is True for x, _ in pairs), sum(y is True for _, y in pairs)
    by_chance = yes_a * yes_b + (n - yes_a) * (n - yes_b)  # of n * n; whole numbers: equality is exact
    return Agreement(n, 100 * agreed / n, (n * agreed - by_chance) / (n * n - by_chance) if by_chance < n * n else None)


@dataclass(frozen=True)
class Cost:
    """What judging takes: calls, beside the `stored` responses; tokens, estimated as `basis` says; and their price."""

    calls: int
    stored: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None
    basis: str


def cost_of(
    prompt_tokens: float, completion_tokens: float, prompt_price: float | None, completion_price: float | None
) -> float:
    """Return what tokens cost by the prices of a million of them; one that is not known counts as nothing."""
    return (prompt_tokens * (prompt_price or 0) + completion_tokens * (completion_price or 0)) / 1e6


def estimate(
    requests: Mapping[str, str],
    responses: Mapping[str, str],
    prompt_price: float | None,
    completion_price: float | None,
) -> Cost:
    """Return what those of `requests` cost that have no response yet; both are by key, prices of a million tokens."""
    stored = [(len(body), read_verdict(responses[key], body)) for key, body in requests.items() if key in responses]
    paid = [(length, verdict) for length, verdict in stored if verdict.prompt_tokens]
    per_token, per_verdict, basis = CHARACTERS, ANSWER_TOKENS, "assumed"
    if paid:
        per_token = sum(length for length, _ in paid) / sum(verdict.prompt_tokens for _, verdict in paid)
        per_verdict = sum(verdict.completion_tokens for _, verdict in paid) / len(paid)
        basis = f"as in {len(paid)} stored"
    lengths = [len(body) for key, body in requests.items() if key not in responses]
    sent, got = math.ceil(sum(lengths) / per_token), math.ceil(len(lengths) * per_verdict)
    price = cost_of(sent, got, prompt_price, completion_price)
    return Cost(
        calls=len(lengths),
        stored=len(stored),
        prompt_tokens=sent,
        completion_tokens=got,
        price=None if prompt_price is completion_price is None else price,
        basis=f"{per_token:.3g} characters of a request a token, {per_verdict:.3g} tokens a verdict ({basis})",
    )
