"""Citations in answers: "[1]", "[1, 2]" and "[1][2]" cite passages by number, from 1.

A number has at most nine digits and no leading zero. Other brackets, such as "[a]", "[01]" or "[1-3]", are text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from rqa.data.records import Example, Passage

_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_NUMBERS = rf"{_NUMBER}(?:\s*,\s*{_NUMBER})*"
_CITATION = re.compile(rf"(?<!\s)(\s*)\[({_NUMBERS})\]")
_PART = re.compile(rf"(\s*,\s*|^)({_NUMBER})")  # a number of a citation, with the separator before it
# The end of a sentence, with the citations behind it: a mark of punctuation, or the end of a line.
_END = re.compile(rf"(?:([.!?…]+)[\"'”’»)]*|[。！？]+[\"”’」』）]*|(?=\n))(?:\s*\[{_NUMBERS}\])*")
_NO_SENTENCE = re.compile(r"\s*\d{1,3}[.)]\s*|[\W_]*")  # the number of a list item, or no word


def cited_numbers(text: str) -> list[int]:
    """Return the numbers of all citations, in order, with repetitions."""
    return [int(number) for _, group in _CITATION.findall(text) for _, number in _PART.findall(group)]


def renumber(text: str, numbers: Mapping[int, int | None]) -> str:
    """Return the text with each cited number replaced by its value in `numbers`.

    A number with the value None is removed, a citation without numbers together with the white space before it. Of
    numbers with the same value in adjacent citations, the first remains. Numbers that `numbers` lacks stay.
    """
    result, end = "", 0
    is_start_removed = False
    sources: dict[int, int] = {}  # the old number by the new one, in adjacent citations
    for match in _CITATION.finditer(text):
        if match.start() > end:
            sources = {}
        group = _renumbered(match[2], numbers, sources)
        is_start_removed |= not (match.start() or group)
        result += text[end : match.start()] + (f"{match[1]}[{group}]" if group else "")
        end = match.end()
    result += text[end:]
    return result.lstrip() if is_start_removed else result


def _renumbered(group: str, numbers: Mapping[int, int | None], sources: dict[int, int]) -> str:
    """Return the numbers of one citation with their separators; "" if none remains."""
    kept: list[str] = []
    for separator, digits in _PART.findall(group):
        old = int(digits)
        new = numbers.get(old, old)
        if new is not None and sources.setdefault(new, old) == old:
            kept += [separator if kept else "", str(new)]
    return "".join(kept)


def without_citations(text: str) -> str:
    """Return the text without its citations and the white space before each, also nested ones: "[[1]2]"."""
    while numbers := cited_numbers(text):
        text = renumber(text, dict.fromkeys(numbers))
    return text


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each with the citations behind its end.

    A sentence ends at a line end, at 。！？, and at . ! ? … before white space without a lower-case letter behind it.
    This rule by characters also cuts "Dr. Rome" in two.
    """
    inner = {i for match in _CITATION.finditer(text) for i in range(match.start(2), match.end())}
    parts, start = [], 0
    for match in _END.finditer(text):
        part, rest = text[start : match.end()], text[match.end() :]
        is_end = not match[1] or not rest or (rest[:1].isspace() and not rest.lstrip()[:1].islower())
        if is_end and match.end() not in inner and not _NO_SENTENCE.fullmatch(without_citations(part)):
            parts.append(part)
            start = match.end()
    if parts and _NO_SENTENCE.fullmatch(without_citations(text[start:])):
        parts[-1] += text[start:]
    else:
        parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def with_number(text: str, number: int) -> str:
    """Return the text with `number` in place of every cited number."""
    return _CITATION.sub(lambda match: re.sub(_NUMBER, str(number), match[0]), text)


def new_numbers(ids: Sequence[str], numbers: Mapping[str, int]) -> dict[int, int | None]:
    """Return the number in a prompt of each passage in `ids`, by its number there, from 1; None if it has none."""
    return {old: numbers.get(id) for old, id in enumerate(ids, 1)}


def numbered(passages: Iterable[Passage]) -> dict[str, int]:
    """Return the number of each passage by its id, from 1; of equal passages the first."""
    numbers: dict[str, int] = {}
    for number, passage in enumerate(passages, 1):
        numbers.setdefault(passage.id, number)
    return numbers


def without_cited_history(example: Example) -> Example:
    """Return the example without citations in the assistant's turns: they cite passages of other prompts."""
    turns = example.chat_history
    history = tuple(replace(t, text=without_citations(t.text)) if t.role == "assistant" else t for t in turns)
    return example if history == turns else replace(example, chat_history=history)


def citation_problems(answers: Iterable[str], num_gold: int) -> Iterator[str]:
    """Yield a message for each answer with a citation of another number than those of the gold passages."""
    for answer in answers:
        if wrong := [number for number in cited_numbers(answer) if not 1 <= number <= num_gold]:
            docs = (
                f"[1] to [{num_gold}], one for each of the {num_gold} gold_docs" if num_gold else "none: no gold_docs"
            )
            yield f'field "gold_answer": expected citations {docs}, got [{wrong[0]}]'
