"""HTML and DOCX to Markdown: headings, paragraphs, lists, code and tables, without scripts, styles and navigation."""

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rqa.errors import InputError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

MAX_UNPACKED_BYTES = 2**30  # of a DOCX file: a packed bomb has more

_NOT_TEXT = ("script", "style", "template", "noscript", "head", "nav", "svg", "iframe", "object", "button", "select")
_NOT_TEXT_SELECTORS = "[role=navigation], [role=search], [hidden], [aria-hidden=true]"
_HEADINGS_IN_CELLS = ":is(td, th) :is(h1, h2, h3, h4, h5, h6)"
_HEADING_LINKS = "h1 a, h2 a, h3 a, h4 a, h5 a, h6 a"
_LINK_SIGNS = {"", "#", "¶", "§"}  # the text of a link from a heading to itself


def html_to_markdown(html: bytes | str, decode: Callable[[bytes], str]) -> tuple[str, str]:
    """Return the title ("" if there is none) and the text as Markdown, in which links are their texts.

    `decode` decodes bytes without a declared encoding. Raises InputError if the bytes have another encoding.
    """
    from bs4.element import Declaration, ProcessingInstruction
    from markdownify import MarkdownConverter

    soup = _soup(html if isinstance(html, str) else _decoded(html, decode))
    for declaration in soup.find_all(string=lambda text: isinstance(text, (Declaration, ProcessingInstruction))):
        declaration.extract()  # <?xml version="1.0"?>, which the converter reads as text
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for tag in [*soup(_NOT_TEXT), *soup.select(_NOT_TEXT_SELECTORS)]:
        tag.decompose()
    for heading in soup.select(_HEADINGS_IN_CELLS):
        heading.name = "p"  # a row is one line, in which words of two headings would join
    for code in soup.select("pre > code + code"):
        code.insert_before("\n")
    for link in soup.select(_HEADING_LINKS):
        if link.get_text().strip() in _LINK_SIGNS:
            link.decompose()
    plain: dict[str, Any] = {"escape_asterisks": False, "escape_underscores": False, "escape_misc": False}
    style: dict[str, Any] = {"heading_style": "ATX", "bullets": "-", "table_infer_header": True}
    converter = MarkdownConverter(strip=["a", "img"], **style, **plain)
    return title, converter.convert_soup(soup)


def _soup(html: str) -> "BeautifulSoup":
    from bs4 import BeautifulSoup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XML that is parsed as HTML, a text that looks like a file name
        return BeautifulSoup(html, "html.parser")


def _decoded(html: bytes, decode: Callable[[bytes], str]) -> str:
    """Return the text of HTML in its declared encoding, which is ignored if the bytes are UTF-8."""
    from bs4.dammit import EncodingDetector

    try:
        return decode(html)
    except InputError:
        declared = EncodingDetector.find_declared_encoding(html, is_html=True)
        if not declared:
            raise
    try:
        return html.decode(declared)
    except (LookupError, UnicodeDecodeError) as error:
        raise InputError(f"expected the declared encoding {declared}, got {error}") from error


def docx_to_html(path: Path) -> str:
    """Return a DOCX file as HTML without images. Raises InputError if it is no DOCX file."""
    import mammoth

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise InputError("expected a DOCX file, got other data. A file with a password has to be unlocked") from error
    if size > MAX_UNPACKED_BYTES:
        raise InputError(f"expected at most {MAX_UNPACKED_BYTES:,} bytes unpacked, got {size:,}")
    with path.open("rb") as file:
        no_images = mammoth.images.img_element(lambda _image: {})
        html: str = mammoth.convert_to_html(file, convert_image=no_images, external_file_access=False).value
    return html
