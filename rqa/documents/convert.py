"""Files to text: one converter for each format. Nothing is fetched, and no code of a document runs."""

import codecs
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rqa.documents.html import docx_to_html, html_to_markdown
from rqa.documents.pdf import pdf_marks, pdf_pages
from rqa.documents.sections import Section, markdown_marks, rst_marks, sections_of, text_marks
from rqa.errors import InputError
from rqa.terminal import plural

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # NUL, and halves of surrogate pairs: tokenizers and JSON refuse them


@dataclass(frozen=True)
class Document:
    """A name, the text that a file was converted to, and its sections."""

    name: str
    text: str
    sections: list[Section]


@dataclass(frozen=True)
class _Format:
    """A converter (path to document), and the packages that it needs, by the names under which they are imported."""

    convert: Callable[[Path], Document]
    packages: tuple[str, ...] = ()


def read_document(path: Path) -> Document:
    """Return a converted file. Raises InputError with the reason if it cannot be converted or has no text.

    The libraries of the formats raise other errors for broken files.
    """
    document = FORMATS[path.suffix.lower()].convert(path)
    if not document.text.strip():
        raise InputError("expected text, got none" + (" (a scan needs OCR)" if path.suffix.lower() == ".pdf" else ""))
    return document


def check_packages(paths: Iterable[Path]) -> None:
    """Raise InputError if a package that the formats of these files need is not installed."""
    formats = {path.suffix.lower() for path in paths}
    needed = {name: each for each in sorted(formats) for name in ("semantic_text_splitter", *FORMATS[each].packages)}
    if missing := [name for name in needed if find_spec(name) is None]:
        raise InputError(
            f"{needed[missing[0]]} files: {plural(len(missing), 'package')} not installed: {', '.join(missing)}. "
            'Run `pip install ".[documents]"`'
        )


def decode(content: bytes) -> str:
    """Return a text file's text with line ends of one newline. Raises InputError if it is neither UTF-8 nor UTF-16."""
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8, got another encoding at byte {error.start + 1}") from error
    if "\0" in text:
        raise InputError(f"expected text, got binary data: NUL at character {text.index(chr(0)) + 1}")
    return normalized(text)


def normalized(text: str) -> str:
    """Return text with line ends of one newline, and with U+FFFD in place of characters that JSON has not."""
    return _UNUSABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _text(path: Path) -> Document:
    text = decode(path.read_bytes())
    return Document(path.stem, text, sections_of(text, text_marks(text)))


def _markdown(path: Path) -> Document:
    text = decode(path.read_bytes())
    return Document(path.stem, text, sections_of(text, markdown_marks(text)))


def _rst(path: Path) -> Document:
    text = decode(path.read_bytes())
    return Document(path.stem, text, sections_of(text, rst_marks(text)))


def _html(path: Path) -> Document:
    return _of_html(path, path.read_bytes())


def _docx(path: Path) -> Document:
    return _of_html(path, docx_to_html(path))


def _of_html(path: Path, html: bytes | str) -> Document:
    title, markdown = html_to_markdown(html, decode)
    text = normalized(markdown)
    return Document(title or path.stem, text, sections_of(text, markdown_marks(text)))


def _pdf(path: Path) -> Document:
    pages = [normalized(page) for page in pdf_pages(path)]
    return Document(path.stem, "\n\n".join(pages), sections_of("\n\n".join(pages), pdf_marks(pages)))


_HTML_PACKAGES = ("bs4", "markdownify", "markdown_it")
FORMATS = {
    **dict.fromkeys((".txt", ".text"), _Format(_text)),
    **dict.fromkeys((".md", ".markdown"), _Format(_markdown, ("markdown_it",))),
    ".rst": _Format(_rst),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _Format(_html, _HTML_PACKAGES)),
    ".docx": _Format(_docx, ("mammoth", *_HTML_PACKAGES)),
    ".pdf": _Format(_pdf, ("pypdf",)),
}
