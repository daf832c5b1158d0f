"""Verdicts: parsing of the judge's responses, their scores, agreement between raters, and an estimate of the cost."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from rqa.endpoint.responses import CHARACTERS_PER_TOKEN, completed_text, excerpt, json_object, used_tokens
from rqa.errors import InputError
from rqa.prompts.answer_decoder import REASONING

Status = Literal["judged", "malformed", "refused", "failed"]
Support = Mapping[int, tuple[bool, frozenset[int]]]  # of each sentence: fully supported, and the supporting numbers
Decide = Callable[[Mapping[str, Any]], Any]  # a JSON object -> its decision, None if it has no valid one

TOKENS_PER_VERDICT = 100.0  # one to three sentences, if no verdict is cached yet


@dataclass(frozen=True)
class Verdict:
    """The result of one request: `correct`, or the `support` of the sentences. Both are None unless it is "judged".

    `explanation` is the judge's, or the reason why there is no verdict. Tokens are those of the response, cached or
    new; `calls` counts the HTTP calls of this run. A request that is repeated in a run counts both once.
    """

    status: Status
    correct: bool | None = None
    explanation: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    support: Support | None = None


def read_verdict(response: str, body: str) -> Verdict:
    """Return the verdict in a response to the request `body`. Tokens without a valid count are estimated."""
    verdict, correct = _read(response, body, "correct", _correct)
    return replace(verdict, correct=correct)


def read_support(response: str, body: str, cited: Mapping[int, Set[int]]) -> Verdict:
    """Return the verdict on citations; `cited` are the numbers that each sentence cites. See `read_verdict`."""
    verdict, support = _read(response, body, "sentences", partial(_support, cited=cited))
    return replace(verdict, support=support)


def _read(response: str, body: str, field: str, decide: Decide) -> tuple[Verdict, Any]:
    """Return the verdict without its decision, and the decision, which stands in an object with `field`."""
    completion = json_object(response)
    tokens = used_tokens(completion, body)
    content, defect, reason = completed_text(completion)
    if defect:
        return Verdict(defect, None, reason, *tokens), None
    value = _decision_in(content := without_draft(content), field, decide)
    if value is None or (decision := decide(value)) is None:
        count = len(_verdicts_in(content, field))
        return Verdict("malformed", None, f"expected one verdict, got {count}: {excerpt(content)}", *tokens), None
    # An escape can decode to a lone surrogate, which UTF-8 cannot encode.
    explanation = value.get("explanation")
    text = explanation.encode(errors="replace").decode() if isinstance(explanation, str) else ""
    return Verdict("judged", None, text, *tokens), decision


def without_draft(content: str, opening_of_object: re.Pattern[str] | None = None) -> str:
    """Return the content without the reasoning before its end mark, or, if there is none, after its start mark.

    The answer is a JSON object that begins as `opening_of_object`, by default a verdict.
    """
    pattern = opening_of_object or _OPENING
    last = max((match.start() for match in pattern.finditer(content)), default=len(content))
    # A mark after the last object may be a quotation in its texts.
    end = max((match.end() for match in _DRAFT_END.finditer(content, 0, last)), default=0)
    start, opening = _DRAFT_START.search(content, end), pattern.search(content, end)
    is_unfinished = start and not (opening and opening.start() < start.start())
    return content[end : start.start()] if start and is_unfinished else content[end:]


def _decision_in(content: str, field: str, decide: Decide) -> dict[str, Any] | None:
    """Return the JSON object that decides, None if there is none or if it is not clear which one decides.

    Objects with different verdicts are a decision and quotations. The last one decides if no other text is on its
    lines, and if no object with another verdict stands like that.
    """
    spans = _verdicts_in(content, field)
    if all(decide(value) == decide(spans[0][2]) for _, _, value in spans):
        return spans[-1][2] if spans else None
    # The texts around an object include the brace of the one before and of the one after.
    last_ends = [0, *(end - 1 for _, end, _ in spans)]
    next_starts = [*(start + 1 for start, _, _ in spans[1:]), len(content)]
    alone = [
        value
        for (start, end, value), last_end, next_start in zip(spans, last_ends, next_starts, strict=False)
        if _is_alone(content[last_end:start], content[end:next_start])
    ]
    is_clear = bool(alone) and all(decide(value) == decide(alone[0]) for value in alone)
    return alone[-1] if is_clear and alone[-1] is spans[-1][2] else None


def _verdicts_in(content: str, field: str) -> list[tuple[int, int, dict[str, Any]]]:
    """Return start, end and value of each JSON object in a text that has `field`; [] if an object is broken."""
    spans, end = [], 0
    while match := _OPENING.search(content, end):
        try:
            value, end = _DECODER.raw_decode(content, match.start())
        except (ValueError, RecursionError):
            return []
        if field in value:
            spans.append((match.start(), end, value))
    return spans


def _correct(verdict: Mapping[str, Any]) -> bool | None:
    return verdict["correct"] if type(verdict["correct"]) is bool else None


def _support(verdict: Mapping[str, Any], cited: Mapping[int, Set[int]]) -> Support | None:
    """Return the support of each sentence in `cited`, None if one is missing or twice, or contradicts itself.

    Numbers that the sentence does not cite are left out, and sentences that cite no passage.
    """
    items = [_sentence(item) for item in verdict["sentences"]] if isinstance(verdict["sentences"], list) else [None]
    support = {item[0]: item[1:] for item in items if item}
    if len(support) < len(items) or not cited.keys() <= support.keys():
        return None
    own = {number: (support[number][0], support[number][1] & numbers) for number, numbers in cited.items()}
    is_consistent = all(supporting or not is_supported for is_supported, supporting in own.values())
    return own if is_consistent else None


def _sentence(item: Any) -> tuple[int, bool, frozenset[int]] | None:
    """Return number, support and supporting numbers of an item, None if it is not valid."""
    values: dict[str, Any] = item if isinstance(item, dict) else {}
    is_supported, supporting = values.get("supported"), values.get("supporting")
    if type(is_supported) is not bool or not isinstance(supporting, list):
        return None
    numbers = [each for each in (values.get("sentence"), *supporting) if type(each) is int]
    return (numbers[0], is_supported, frozenset(numbers[1:])) if len(numbers) > len(supporting) else None


def _is_alone(before: str, after: str) -> bool:
    """Return True if an object shares its lines only with marks of Markdown and a label, such as "My decision:"."""
    label = before.rpartition("\n")[2].strip(_MARKS)
    is_labelled = label in ("", "json") or (label.endswith(":") and "}" not in label)
    return is_labelled and not after.partition("\n")[0].strip(_MARKS)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("duplicate field")
    return dict(pairs)


# The quotation marks of other languages, and names without any, begin an object that is not JSON.
_OPENING = re.compile(r"\{\s*(?:\"|['“‘]?(?:correct|explanation|sentences)\b)")
_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_refuse_duplicates)  # not strict: line feeds in texts
_MARKS = " \t\r>*_`#~-."  # of Markdown, around an object

# Drafts that the server did not split off
_DRAFTS = REASONING | {f"<{name}>": f"</{name}>" for name in ("thinking", "thought", "reasoning")}
_DRAFT_START = re.compile("|".join(map(re.escape, _DRAFTS)), re.IGNORECASE)
_DRAFT_END = re.compile("|".join(map(re.escape, _DRAFTS.values())), re.IGNORECASE)


def summarize(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return `judge_accuracy`, in per cent of the judged answers, its bounds, and counts of statuses, calls, tokens.

    The bounds `judge_accuracy_low` and `judge_accuracy_high` count all missing verdicts as incorrect, and as correct.
    The accuracy is absent if nothing was judged, the bounds are absent if there are no verdicts.
    """
    counts = Counter(verdict.status for verdict in verdicts)
    judged, right = counts["judged"], sum(verdict.correct is True for verdict in verdicts)
    scores = {"judge_accuracy": 100 * right / judged} if judged else {}
    if verdicts:
        scores["judge_accuracy_low"] = 100 * right / len(verdicts)
        scores["judge_accuracy_high"] = 100 * (right + len(verdicts) - judged) / len(verdicts)
    scores |= {f"judge_{status}": counts[status] for status in get_args(Status)}
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        scores[f"judge_{name}"] = sum(getattr(verdict, name) for verdict in verdicts)
    return scores


@dataclass(frozen=True)
class Agreement:
    """Agreement of two raters: the number of ids that both rated, the per cent they agree on, and Cohen's kappa."""

    both: int
    per_cent: float
    kappa: float | None


def cohens_kappa(a: Mapping[str, bool | None], b: Mapping[str, bool | None]) -> Agreement:
    """Return the agreement of two raters' labels by id, with Cohen's kappa (1960); None is a missing label.

    kappa = (p_o - p_e) / (1 - p_e). p_o is the share of ids on which the raters agree. p_e is the expected share if
    each draws labels at random with its own frequencies. kappa is None if p_e is 1. Raises InputError without pairs.
    """
    pairs = [(a[id], b[id]) for id in a.keys() & b.keys() if a[id] is not None and b[id] is not None]
    if not (n := len(pairs)):
        raise InputError(f"agreement: expected ids with a label of both raters, got none of {len(a)} and {len(b)} ids")
    agreed = sum(x == y for x, y in pairs)
    yes_a, yes_b = sum(x is True for x, _ in pairs), sum(y is True for _, y in pairs)
    by_chance = yes_a * yes_b + (n - yes_a) * (n - yes_b)  # of n * n; integers, so that equality is exact
    return Agreement(n, 100 * agreed / n, (n * agreed - by_chance) / (n * n - by_chance) if by_chance < n * n else None)


@dataclass(frozen=True)
class Cost:
    """An estimate: calls, besides `cached` responses, their tokens and price, and the `basis` of the estimate."""

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None
    basis: str

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens} prompt tokens and {self.completion_tokens} completion tokens"
        price = "" if self.price is None else f", at a price of {self.price:.2f}"
        return f"{self.calls} calls, {tokens}{price}\n({self.cached} cached; {self.basis})"


def price_of(
    prompt_tokens: float, completion_tokens: float, prompt_price: float | None, completion_price: float | None
) -> float | None:
    """Return the price of tokens by the prices of a million of them; one None counts as 0, two as no price: None."""
    price = (prompt_tokens * (prompt_price or 0) + completion_tokens * (completion_price or 0)) / 1e6
    return None if prompt_price is completion_price is None else price


def estimate_cost(
    bodies: Sequence[str],
    responses: Mapping[str, str],
    prompt_price: float | None,
    completion_price: float | None,
    tokens_per_answer: float = TOKENS_PER_VERDICT,
) -> Cost:
    """Return the cost of the request bodies without a response; `responses` are by body, prices of a million tokens.

    `tokens_per_answer` is used if there is no response.
    """
    lengths = [len(body) for body in bodies if body not in responses]
    cached = {body: read_verdict(response, body) for body, response in responses.items()}
    counted = {body: verdict for body, verdict in cached.items() if verdict.prompt_tokens}
    characters_per_token, basis = CHARACTERS_PER_TOKEN, "assumed"
    if counted:
        characters_per_token = sum(map(len, counted)) / sum(verdict.prompt_tokens for verdict in counted.values())
        tokens_per_answer = sum(verdict.completion_tokens for verdict in counted.values()) / len(counted)
        basis = f"mean of {len(counted)} cached responses"
    prompt_tokens = math.ceil(sum(lengths) / characters_per_token)
    completion_tokens = math.ceil(len(lengths) * tokens_per_answer)
    price = price_of(prompt_tokens, completion_tokens, prompt_price, completion_price)
    basis = f"{characters_per_token:.3g} characters per token, {tokens_per_answer:.3g} tokens per answer, {basis}"
    return Cost(len(lengths), len(cached), prompt_tokens, completion_tokens, price, basis)
