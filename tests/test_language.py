"""Plain language: no banned word in prose, and few of the words that make sentences hard to read.

    python tests/test_language.py [FOLDER]

prints the counts of a project, this one by default. Prose is docstrings, comments, messages and help in Python files,
the text of Markdown files and of the report page.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ("rqa/**/*.py", "recipes/**/*.py")
OTHERS = (
    "benchmarks/*.py",
    "*.md",
    "docs/**/*.md",
    "docs/*.py",
    "mkdocs.yml",
    "tests/README.md",
    "Makefile",
    "setup.cfg",
    "recipes/configs/*.yaml",
    "rqa/**/templates/*",
)

BANNED = {
    "tell": r"\b(?:tells?|told|telling)\b",
    "say": r"\b(?:says?|said|saying)\b",
    "mend": r"\bmend(?:s|ed)?\b",
    "nobody, whoever, whatever": r"\b(?:nobody|whoever|whomever|whatever)\b",
    "go on (resume)": r"\b(?:go|goes|going|gone|went) on\b",
    "that cannot be": r"\bthat (?:cannot|can not|can't) be(?=[.,;:]|$)",
    "what as a subject": r"(?:^|[.:;] )what (?!\w+\?)[^?]*?(?:[.;]|$)|\bwhat (?:is|was|are|were)\b(?![^.;]*\?)",
}
RATES = {  # words by 1,000 words of prose in the library: (pattern, least, most)
    "what": (r"\bwhat\b", 0.0, 1.0),
    "tell, say, nobody, whoever, whatever": (
        r"\b(?:tells?|told|says?|said|nobody|whoever|whatever)\b",
        0.0,
        0.3,
    ),
    "if": (r"\bif\b", 4.0, 1000.0),
}
# Texts for language models
DATA = {"PROMPT", "PROMPTS", "SUPPORT_PROMPT", "_START", "_ANSWERED", "INSTRUCTION", "REFUSAL_ANSWER"}
# A string literal is prose if it has at least four words, and one of these.
COMMON_WORDS = set("a an and are as at be by for from has have if in is it its no not of on or the to with".split())


@dataclass(frozen=True)
class Prose:
    """A text, and the line where it begins. `kind` is "docstring", "comment", "message" or "page"."""

    path: Path
    line: int
    kind: str
    text: str


def words_in(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)


def prose_of(path: Path) -> Iterator[Prose]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from docstrings_and_messages(path, text)
        yield from comments(path, text)
    elif path.suffix == ".md":
        yield from lines_of(path, re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", blank, text))
    elif path.suffix in (".html", ".jinja"):
        yield from lines_of(path, re.sub(r"(?s)<script.*?</script>|<[^>]*>|\{\{.*?\}\}|\{%.*?%\}", blank, text))
    elif path.suffix in (".js", ".css"):
        yield from lines_of(path, text, r"//(.*)|/\*(.*?)\*/|\"([^\"\n]*)\"|'([^'\n]*)'|`([^`]*)`")
    else:
        yield from lines_of(path, text, r"#(.*)|echo (.*)")


def blank(found: re.Match[str]) -> str:
    """Return the line feeds of a match, so that line numbers stay."""
    return "\n" * found[0].count("\n") or " "


def lines_of(path: Path, text: str, pattern: str = r"(?s)(.+?)(?:\n\s*\n|\Z)") -> Iterator[Prose]:
    """Yield the paragraphs of a text, or the parts that a pattern finds."""
    for match in re.finditer(pattern, text):
        part = next(filter(None, match.groups()), "")
        if len(words_in(part)) > 1:
            line = text.count("\n", 0, match.start() + len(match[0]) - len(match[0].lstrip())) + 1
            yield Prose(path, line, "page", part)


def docstrings_and_messages(path: Path, text: str) -> Iterator[Prose]:
    tree = ast.parse(text)
    seen: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                literal = node.body[0].value
                seen.add(id(literal))
                yield Prose(path, literal.lineno, "docstring", literal.value)
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in DATA for t in node.targets):
            seen |= {id(part) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in seen:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = [part for part in node.values if isinstance(part, ast.Constant)]
            seen |= set(map(id, parts))
            literal_text = "…".join(str(part.value) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            literal_text = node.value
        else:
            continue
        words = words_in(literal_text)
        if len(words) > 3 and COMMON_WORDS & {word.lower() for word in words}:
            yield Prose(path, node.lineno, "message", literal_text)


def comments(path: Path, text: str) -> Iterator[Prose]:
    """Yield the comments; those of consecutive lines are one text."""
    block: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or re.match(r"# (?:noqa|type:|fmt:)", token.string):
            continue
        comment = re.sub(r"#\s*(?:noqa|type:).*", "", token.string[1:]).strip()
        if block and token.start[0] == last + 1 and not token.line[: token.start[1]].strip():
            block.append(comment)
        else:
            if block:
                yield Prose(path, first, "comment", " ".join(block))
            block, first = [comment], token.start[0]
        last = token.start[0]
    if block:
        yield Prose(path, first, "comment", " ".join(block))


def files(root: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})


def banned_in(prose: Prose) -> Iterator[str]:
    """Yield a line with place, rule and words for each banned word."""
    for sentence in re.finditer(r"(?s).+?(?:[.?!](?=\s)|\n\s*\n|$)", prose.text):
        text = " ".join(sentence[0].split())
        for rule, pattern in BANNED.items():
            if match := re.search(pattern, text, re.IGNORECASE):
                line = prose.line + prose.text.count(
                    "\n", 0, sentence.start() + len(sentence[0]) - len(sentence[0].lstrip())
                )
                start = max(0, match.start() - 30)
                path = prose.path.relative_to(ROOT) if prose.path.is_relative_to(ROOT) else prose.path
                yield f"{path}:{line}: {rule}: …{text[start : match.end() + 30]}…"


def rates(prose: Iterable[Prose]) -> tuple[int, dict[str, float]]:
    """Return the number of words, and of each of RATES by 1,000 words."""
    texts = [each.text for each in prose]
    total = sum(len(words_in(text)) for text in texts)
    counts = {
        name: sum(len(re.findall(pattern, text, re.IGNORECASE)) for text in texts)
        for name, (pattern, *_) in RATES.items()
    }
    return total, {name: 1000 * count / max(1, total) for name, count in counts.items()}


FILES = files(ROOT, LIBRARY + OTHERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_has_no_banned_word(path):
    found = [line for prose in prose_of(path) for line in banned_in(prose)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", RATES)
def test_the_library_has_plain_sentences(name):
    _, found = rates(prose for path in files(ROOT, LIBRARY) for prose in prose_of(path))
    _, least, most = RATES[name]
    assert least <= found[name] <= most


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("Tell whether a row is read.", ["tell"]),
        ("What is read stands there.", ["what as a subject"]),
        ("It returns what was read.", ["what as a subject"]),
        ("Raise InputError for values that cannot be.", ["that cannot be"]),
        ("Values that cannot be parsed are refused.", []),
        ("A run that nobody ended\nand that goes on.", ["nobody, whoever, whatever", "go on (resume)"]),
        ("What is logged?", []),
        ("Return the passages, best first.", []),
    ],
)
def test_banned_sentences_are_found(text, rules):
    found = [line.split(": ")[1] for line in banned_in(Prose(ROOT / "file.py", 1, "comment", text))]
    assert found == rules


def print_counts(root: Path) -> None:
    """Print the rates by kind of prose, and the number of banned words by file."""
    library = [prose for path in files(root, LIBRARY) for prose in prose_of(path)]
    kinds = {
        "docstrings and comments of rqa/ and recipes/": ("docstring", "comment"),
        "messages and help of rqa/ and recipes/": ("message",),
        "all prose of rqa/ and recipes/": ("docstring", "comment", "message"),
    }
    for title, names in kinds.items():
        total, found = rates(prose for prose in library if prose.kind in names)
        print(
            f"{title}: {total:,} words; by 1,000: " + ", ".join(f'"{name}" {rate:.1f}' for name, rate in found.items())
        )
    banned = {
        path: [line for prose in prose_of(path) for line in banned_in(prose)] for path in files(root, LIBRARY + OTHERS)
    }
    print(f"banned words: {sum(map(len, banned.values()))}")
    for path, lines in banned.items():
        if lines:
            print(f"  {path.relative_to(root)}: {len(lines)}")


if __name__ == "__main__":
    print_counts(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
