"""Sections and blocks: exact ranges for each format, and every character in one block."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqa.documents.pdf import pdf_marks
from rqa.documents.sections import markdown_marks, rst_marks, sections_of, text_marks

MARKDOWN = """\
Preface.

# Lamps

## Oil

First
paragraph.

- item
- second

  ```python
  # no heading
  ```

| a | b |
|---|---|
| 1 | 2 |

Setext *title*
--------------

    indented code

# Last
"""
RST = """\
=======
Lamps
=======

Oil
---

First::

    =====
    Code
    =====

* item
  more

Gas
---

+---+
| a |
+---+
"""


def outline(text, marks):
    """Return (headings, [(kind, block)]) of each section."""
    return [
        (section.headings, [(block.kind, text[block.start : block.end].strip("\n")) for block in section.blocks])
        for section in sections_of(text, marks)
    ]


def test_markdown():
    assert outline(MARKDOWN, markdown_marks(MARKDOWN)) == [
        ((), [("prose", "Preface.")]),
        (
            ("Lamps", "Oil"),
            [
                ("heading", "# Lamps"),
                ("heading", "## Oil"),
                ("prose", "First\nparagraph."),
                ("prose", "- item"),
                ("prose", "- second"),
                ("lines", "  ```python\n  # no heading\n  ```"),
                ("lines", "| a | b |\n|---|---|\n| 1 | 2 |"),
            ],
        ),
        (
            ("Lamps", "Setext title"),
            [("heading", "Setext *title*\n--------------"), ("lines", "    indented code")],
        ),
        (("Last",), [("heading", "# Last")]),
    ]


def test_front_matter_is_no_heading():
    text = "---\ntitle: Lamps\n---\n# Oil\ntext\n"
    assert outline(text, markdown_marks(text)) == [
        ((), [("lines", "---\ntitle: Lamps\n---")]),
        (("Oil",), [("heading", "# Oil"), ("prose", "text")]),
    ]


def test_restructured_text():
    assert outline(RST, rst_marks(RST)) == [
        (
            ("Lamps", "Oil"),
            [
                ("heading", "=======\nLamps\n======="),
                ("heading", "Oil\n---"),
                ("lines", "First::\n\n    =====\n    Code\n    ====="),
                ("lines", "* item\n  more"),
            ],
        ),
        (("Lamps", "Gas"), [("heading", "Gas\n---"), ("lines", "+---+\n| a |\n+---+")]),
    ]


def test_text_has_paragraphs_and_pages_are_sections():
    text = "One\ntwo\n\n  three\n"
    assert outline(text, text_marks(text)) == [((), [("lines", "One\ntwo"), ("lines", "  three")])]
    pages = ["One\n\ntwo", "", "three"]
    assert outline("\n\n".join(pages), pdf_marks(pages)) == [
        (("page 1",), [("prose", "One"), ("prose", "two")]),
        (("page 3",), [("prose", "three")]),
    ]


LINES = st.sampled_from(
    (
        *("", "", "a", "a b", "# a", "## b", "===", "---", "- a", "  b", "    c", "```", "| a |", "|---|", "> q"),
        *("1. x", "a::", ".. note::", "+--+", "<div>", "\t", "[a]: /b", "***", "\x0b", "é\u2028"),
    )
)


@pytest.mark.parametrize("marks", [markdown_marks, rst_marks, text_marks])
@given(lines=st.lists(LINES, max_size=20))
@settings(max_examples=300)
def test_every_character_is_in_one_block(marks, lines):
    text = "\n".join(lines)
    sections = sections_of(text, marks(text))
    assert "".join(text[block.start : block.end] for section in sections for block in section.blocks) == text
