"""Words of a text, for comparisons of texts."""

import unicodedata

import regex  # type: ignore[import-untyped]

_SCRIPT = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"  # without spaces between words
_WORD = regex.compile(rf"(?V1){_SCRIPT}|[\w--{_SCRIPT}]+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case. In scripts without spaces every character is a word."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())  # type: ignore[no-any-return]


def contains_words(text: str, part: str) -> bool:
    """Return True if the words of `part` are words of the text, in succession."""
    return f" {' '.join(words(part))} " in f" {' '.join(words(text))} "
