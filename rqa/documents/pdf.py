"""PDF to the text of its pages."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from rqa.documents.sections import Mark, text_marks
from rqa.errors import InputError


def pdf_pages(path: Path) -> list[str]:
    """Return the text of each page. Raises InputError if the file needs a password."""
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # a line for each object that is not as in the standard
    with path.open("rb") as file:
        reader = PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError("expected a PDF file without a password, got an encrypted one")
        return [page.extract_text().strip() for page in reader.pages]


def pdf_marks(pages: Sequence[str]) -> Iterator[Mark]:
    """Yield the paragraphs of the pages, which are joined by a blank line. Each page with text is a section."""
    line = 0
    for number, page in enumerate(pages, 1):
        if page.strip():
            yield Mark(line, "prose", 1, f"page {number}")
            yield from (Mark(line + mark.line, "prose") for mark in text_marks(page) if mark.line)
        line += page.count("\n") + 2
