"""Text to passages of at most N tokens, in which every character of the text that is not white space stands once."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rqa.data.records import Passage
from rqa.documents.convert import Document
from rqa.documents.sections import Block, Section
from rqa.errors import InputError

MAX_CHARACTERS_PER_TOKEN = 20  # on average in a passage: some tokenizers make one token of any long word
CACHED_COUNTS = 1000  # texts: a block is counted alone, as the start of a passage, and as a passage
MAX_TITLE_SHARE = 0.5  # of the tokens of a passage; longer titles lose headings, then characters
SEPARATOR = " > "  # between the headings of a title
_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)*")
_LINE_END = re.compile(r"(?<!\n)\n(?!\n)")


@dataclass(frozen=True)
class SplitPassage:
    """A passage, and its number of tokens."""

    passage: Passage
    tokens: int


class Splitter:
    """Splits documents at headings, then at blocks, then inside a block that is too long.

    `count_tokens` counts the tokens of a title, a newline and a text, with everything that the encoder adds. Code,
    tables and lists that are too long are cut at line ends, prose at sentences; a line or sentence that is still too
    long is cut at words, then at characters. `num_cut_blocks` counts blocks that were cut, by their kind.
    """

    def __init__(self, count_tokens: Callable[[str], int], max_tokens: int) -> None:
        self.count_tokens, self.max_tokens = lru_cache(CACHED_COUNTS)(count_tokens), max_tokens
        self.num_cut_blocks = {"lines": 0, "prose": 0, "heading": 0}
        if (own := count_tokens("")) > max_tokens * (1 - MAX_TITLE_SHARE):
            raise InputError(
                f"--max_passage_tokens: expected at least twice the {own} tokens that the encoder adds to a passage, "
                f"got {max_tokens}"
            )

    def split(self, document: Document, path: str) -> Iterator[SplitPassage]:
        """Yield the passages of a document in order. Their source is `path`#start-end, in characters of its text."""
        for section in document.sections:
            title = self._title(document.name, section.headings)
            for start, end in self._ranges(document.text, section, title):
                text = document.text[start:end]
                passage = Passage(text, title, (f"{path}#{start}-{end}",))
                yield SplitPassage(passage, self.count_tokens(passage.content))

    def _title(self, name: str, headings: Sequence[str]) -> str:
        parts = [name, *(part for part in headings if part)]
        if len(parts) > 1 and parts[1] == name:
            del parts[1]
        while not self._is_short(SEPARATOR.join(parts)) and len(parts) > 2:
            del parts[1]  # the name and the last heading stay
        title = SEPARATOR.join(parts)
        while not self._is_short(title):
            title = title[: len(title) * 3 // 4].rstrip()
        return title

    def _is_short(self, title: str) -> bool:
        own = self.count_tokens("")
        return not title or self.count_tokens(f"{title}\n") - own <= (self.max_tokens - own) * MAX_TITLE_SHARE

    def _ranges(self, text: str, section: Section, title: str) -> Iterator[tuple[int, int]]:
        """Yield the range of each passage, without blank lines at its start and white space at its end."""

        def fits(part: str) -> bool:
            if len(part) > self.max_tokens * MAX_CHARACTERS_PER_TOKEN:
                return False
            return self.count_tokens(f"{title}\n{part}") <= self.max_tokens

        pieces = [piece for block in section.blocks for piece in self._pieces(text, block, fits)]
        first = last = 0  # of the pieces of the next passage
        while first < len(pieces):
            start, end = trimmed(text, pieces[first][0], pieces[last][1])
            if last + 1 < len(pieces) and fits(_trimmed_part(text, start, pieces[last + 1][1])):
                last += 1
                continue
            if start < end:
                yield start, end
            first = last = last + 1

    def _pieces(self, text: str, block: Block, fits: Callable[[str], bool]) -> list[tuple[int, int]]:
        """Return the range of a block, or of its parts if it does not fit."""
        if fits(_trimmed_part(text, block.start, block.end)):
            return [(block.start, block.end)]
        self.num_cut_blocks[block.kind] += 1
        return list(cut(text, block.start, block.end, fits, is_prose=block.kind == "prose"))


def cut(text: str, start: int, end: int, fits: Callable[[str], bool], *, is_prose: bool) -> Iterator[tuple[int, int]]:
    """Yield ranges that fit and touch each other. In prose a single line end is like a space."""
    from semantic_text_splitter import TextSplitter

    part = text[start:end]
    visible = _LINE_END.sub(" ", part) if is_prose else part
    splitter = TextSplitter.from_callback(
        lambda piece: 1 if fits(_trimmed_part(piece, 0, len(piece))) else 2, 1, trim=False
    )
    for offset, piece in splitter.chunk_indices(visible):
        range_ = start + offset, start + offset + len(piece)
        if is_prose and not fits(_trimmed_part(text, *range_)):
            yield from cut(text, *range_, fits, is_prose=False)
        else:
            yield range_


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a range without the blank lines at its start and the white space at its end."""
    part = text[start:end].rstrip()
    blank = _BLANK_LINES.match(part).end()  # type: ignore[union-attr]  # it matches "" too
    return start + blank, start + len(part)


def _trimmed_part(text: str, start: int, end: int) -> str:
    return text[slice(*trimmed(text, start, end))]
