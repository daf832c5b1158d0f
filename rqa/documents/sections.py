"""The structure of a text: sections under headings, and their blocks. Together the blocks are the whole text."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

# heading: belongs to the blocks after it. lines: code, a table or a list, cut at line ends. prose: cut at sentences.
Kind = Literal["heading", "lines", "prose"]

_FRONT_MATTER = re.compile(r"---[ \t]*\n(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\n|\Z)")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*$")  # of a reStructuredText heading: one character, repeated
_LIST_ITEM = re.compile(r"[-*+•|:>] |[^\W_]{1,4}[.)] |\.\. |[+=][-=]")  # also fields, directives and tables
_LINE_KINDS = {"fence", "code_block", "html_block", "table_open"}
_BLOCKS = {"heading_open", "paragraph_open", "hr", *_LINE_KINDS}  # of markdown-it, without lists and quotes


@dataclass(frozen=True)
class Mark:
    """The start of a block: its line, its kind, and for the start of a section the level and the text of its heading.

    A section that has a heading without a line of its own, such as a page, has another kind than "heading".
    """

    line: int
    kind: Kind
    level: int = 0
    heading: str = ""


@dataclass(frozen=True)
class Block:
    """A range of characters that is one piece if it fits into a passage."""

    start: int
    end: int
    kind: Kind


@dataclass
class Section:
    """The headings above a part of a text, outermost first, and the blocks of that part, which touch each other."""

    headings: tuple[str, ...]
    blocks: list[Block] = field(default_factory=list)


def sections_of(text: str, marks: Iterable[Mark]) -> list[Section]:
    """Return the sections. Every character is in one block: a block ends where the next one starts.

    A heading without text of its own is the beginning of the next section.
    """
    by_line: dict[int, Mark] = {}
    for mark in marks:
        if mark.line not in by_line or by_line[mark.line].kind == "prose":  # code that starts in the line of a list
            by_line[mark.line] = mark
    ordered = [by_line[line] for line in sorted(by_line)]
    starts = _line_starts(text)
    offsets = [0, *(starts[mark.line] for mark in ordered[1:]), len(text)]
    headings: list[tuple[int, str]] = []
    sections: list[Section] = [Section(())]
    for mark, start, end in zip(ordered, offsets, offsets[1:], strict=False):
        if mark.level:
            headings = [*(each for each in headings if each[0] < mark.level), (mark.level, mark.heading)]
            if any(block.kind != "heading" for block in sections[-1].blocks):
                sections.append(Section(()))
            sections[-1].headings = tuple(heading for _, heading in headings)
        sections[-1].blocks.append(Block(start, end, mark.kind))
    return sections


def _line_starts(text: str) -> list[int]:
    return [0, *(match.end() for match in re.finditer("\n", text))]


def markdown_marks(text: str) -> Iterator[Mark]:
    """Yield the blocks of Markdown with tables; front matter is one of them."""
    from markdown_it import MarkdownIt

    front_matter = _FRONT_MATTER.match(text)
    first = front_matter[0].count("\n") if front_matter else 0
    yield Mark(0, "lines" if front_matter else "prose")
    body = text[front_matter.end() :] if front_matter else text
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    for i, token in enumerate(tokens):
        if token.type not in _BLOCKS or token.map is None:
            continue
        line = first + token.map[0]
        if token.type == "heading_open" and token.level == 0:
            yield Mark(line, "heading", int(token.tag[1]), _plain(tokens[i + 1].children or ()))
        else:
            yield Mark(line, "lines" if token.type in _LINE_KINDS else "prose")


def _plain(inline: Sequence[object]) -> str:
    parts = (" " if getattr(part, "type", "") == "softbreak" else getattr(part, "content", "") for part in inline)
    return " ".join("".join(parts).split())


def rst_marks(text: str) -> Iterator[Mark]:
    """Yield the blocks of reStructuredText: headings, and paragraphs with the indented lines that belong to them."""
    lines = text.split("\n")
    levels: dict[tuple[str, bool], int] = {}  # by the style of a heading, in the order of their first use
    headings = dict(_rst_headings(lines))
    below = (next((i for i in range(end, len(lines)) if lines[i].strip()), 0) for end, *_ in headings.values())
    ordered = sorted({0, *headings, *below, *_paragraphs(lines, indented=False)})
    for line, end in zip(ordered, [*ordered[1:], len(lines)], strict=True):
        if line in headings:
            _, style, title = headings[line]
            yield Mark(line, "heading", levels.setdefault(style, len(levels) + 1), title)
        else:
            yield Mark(line, _kind_of(lines[line:end]))


def _rst_headings(lines: Sequence[str]) -> Iterator[tuple[int, tuple[int, tuple[str, bool], str]]]:
    """Yield (first line, (line after it, style, title)) of each heading."""
    for i in range(1, len(lines)):
        title, adornment = lines[i - 1].strip(), _ADORNMENT.match(lines[i])
        if not adornment or not title or len(lines[i].rstrip()) < len(title) or _ADORNMENT.match(lines[i - 1]):
            continue
        over = i >= 2 and lines[i - 2].rstrip() == lines[i].rstrip()
        if over or (not lines[i - 1][0].isspace() and (i < 2 or not lines[i - 2].strip())):
            yield i - 1 - over, (i + 1, (adornment[1], over), title)


def _kind_of(lines: Sequence[str]) -> Kind:
    is_prose = not any(line[:1].isspace() or _LIST_ITEM.match(line) for line in lines if line.strip())
    return "prose" if is_prose else "lines"


def text_marks(text: str, kind: Kind = "lines") -> Iterator[Mark]:
    """Yield the paragraphs of plain text, which blank lines separate."""
    yield Mark(0, kind)
    for line in _paragraphs(text.split("\n"), indented=True):
        yield Mark(line, kind)


def _paragraphs(lines: Sequence[str], *, indented: bool) -> Iterator[int]:
    """Yield the lines that follow a blank line; without `indented`, those alone that begin without white space."""
    for i, line in enumerate(lines):
        if i and line.strip() and not lines[i - 1].strip() and (indented or not line[0].isspace()):
            yield i
