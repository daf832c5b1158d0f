"""Removal of the key from texts of the server, which may repeat it, also escaped."""

import base64
import html
import re
from array import array
from collections.abc import Iterator

MIN_SECRET_LENGTH = 12  # characters: a shorter key is a placeholder such as "EMPTY", which any text may contain
_MAX_NESTING = 4  # of escapes within escapes: JSON in JSON has two levels

# An escape of JSON, of a URL or of HTML, also nested; and characters that a reader does not see.
_ESCAPE = re.compile(
    r"""\\+ (?: u(?P<u>[0-9a-fA-F]{4}) | x(?P<x>[0-9a-fA-F]{2}) | [bfnrt] )?
    | % (?P<percent>[0-9a-fA-F]{2})
    | (?P<entity> &\#?\w{1,32};? )
    | \x1b\[ [0-?]* [ -/]* [@-~]
    | [\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]+""",
    re.VERBOSE,
)


def without_key(text: str, key: str) -> str:
    """Return `text` with "[key]" in place of the key, and of its beginning of at least 12 characters.

    It is recognized in plain text, in base64 at any offset ("Bearer KEY"), in escapes of JSON, URLs and HTML, nested
    up to four times, and split by control characters, invisible characters or colours of a terminal.
    """
    if len(key) < MIN_SECRET_LENGTH:
        return text
    secrets = [key, *_in_base64(key)]
    starts, ends = array("q", range(len(text))), array("q", range(1, len(text) + 1))  # of each character in `text`
    decoded, spans = text, set[tuple[int, int]]()
    for _ in range(_MAX_NESTING + 1):
        spans |= {(starts[i], ends[j - 1]) for secret in secrets for i, j in _occurrences(decoded, secret)}
        if not _ESCAPE.search(decoded):
            break
        decoded, starts, ends = _decode(decoded, starts, ends)
    return _replaced(text, sorted(spans))


def _in_base64(key: str) -> Iterator[str]:
    """Yield the characters that encode the key alone, in the standard and the URL alphabet, at each offset."""
    for offset in range(3):  # of the key in its group of three bytes
        data = bytes(offset) + key.encode()
        encoded = base64.b64encode(data).decode()[-(-8 * offset // 6) : 8 * len(data) // 6]
        yield encoded
        yield encoded.translate(str.maketrans("+/", "-_"))


def _occurrences(text: str, secret: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each longest beginning of `secret` that is long enough."""
    start = text.find(head := secret[:MIN_SECRET_LENGTH])
    while start >= 0 and len(head) == MIN_SECRET_LENGTH:
        end = start + len(head)
        while text[end : end + 1] and text[end] == secret[end - start : end - start + 1]:
            end += 1
        yield start, end
        start = text.find(head, end)


def _decode(text: str, starts: "array[int]", ends: "array[int]") -> tuple[str, "array[int]", "array[int]"]:
    """Return the text without one level of escapes, and the place of each character in the original text."""
    parts, new_starts, new_ends, end = [], array("q"), array("q"), 0
    for match in _ESCAPE.finditer(text):
        code = match["u"] or match["x"] or match["percent"]
        character = chr(int(code, 16)) if code else html.unescape(match["entity"] or "")
        parts += [text[end : match.start()], character]
        new_starts += starts[end : match.start()] + array("q", [starts[match.start()]] * len(character))
        new_ends += ends[end : match.start()] + array("q", [ends[match.end() - 1]] * len(character))
        end = match.end()
    return "".join([*parts, text[end:]]), new_starts + starts[end:], new_ends + ends[end:]


def _replaced(text: str, spans: list[tuple[int, int]]) -> str:
    """Return the text with one "[key]" for each group of overlapping spans, which are sorted."""
    parts, end = list[str](), 0
    for start, stop in spans:
        if start >= end:
            parts += [text[end:start], "[key]"]
        end = max(end, stop)
    return "".join([*parts, text[end:]])
