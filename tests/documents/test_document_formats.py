"""Converters: the exact text of each format, and the reason of each file that has none."""

import importlib.util
import zipfile
from pathlib import Path

import pytest
from tiny_documents import docx, encrypted, pdf

from rqa.documents import html
from rqa.documents.convert import check_packages, read_document
from rqa.errors import InputError

PAGE = """<!doctype html><html><head><title>The  lamps</title><style>p {color: red}</style></head><body>
<nav><a href="/">Home</a></nav><div role="navigation">Menu</div><script>alert("no")</script>
<h1>Oil<a class="headerlink" href="#oil">¶</a></h1>
<p>Read <a href="https://example.com/x">the book</a> with snake_case and 2*3*4.<img src="a.png" alt="A lamp"></p>
<pre><code>if lit:
    read()

    turn()</code></pre>
<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
<ul><li>one</li><li>two</li></ul>
<p hidden>Not shown.</p>
</body></html>"""
PAGE_TEXT = """# Oil

Read the book with snake_case and 2*3*4.

```
if lit:
    read()

    turn()
```

| a | b |
| --- | --- |
| 1 | 2 |

- one
- two"""


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_document(path)


def test_html_is_its_text_without_scripts_and_navigation(tmp_path):
    document = read(tmp_path, "a.html", PAGE)
    assert document.name == "The lamps"
    assert document.text.strip() == PAGE_TEXT
    assert [section.headings for section in document.sections if section.headings] == [("Oil",)]


def test_declarations_of_xhtml_are_not_text(tmp_path):
    declared = '<?xml version="1.0" encoding="UTF-8"?>\n' + PAGE.replace("<table>", "<![if !IE]><?php lamp ?><table>")
    assert read(tmp_path, "a.xhtml", declared).text.strip() == PAGE_TEXT


def test_words_of_two_blocks_do_not_join(tmp_path):
    head, cells = "<tr><th>a</th><th>b</th></tr>", "<td><p>one</p><p>two</p></td><td><h1>x</h1><h2>y</h2></td>"
    table = f"<table>{head}<tr>{cells}</tr></table>"
    text = read(tmp_path, "a.html", f"{table}<pre><code>first</code><code>second</code></pre>").text
    assert text.split() == "| a | b | | --- | --- | | one two | x y | ``` first second ```".split()


def test_docx(tmp_path):
    paragraphs = (("Heading 1", "Lamps"), ("", "A & b."), ("Heading 2", "Oil"), ("", "Two."))
    document = read(tmp_path, "a.docx", docx(*paragraphs, table=[["a", "b"], ["1", "2"]]))
    assert document.name == "a"
    assert document.text.split("\n\n") == [
        "# Lamps",
        "A & b.",
        "## Oil",
        "Two.",
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
    ]
    assert [section.headings for section in document.sections] == [("Lamps",), ("Lamps", "Oil")]


def test_pdf(tmp_path):
    document = read(tmp_path, "a.pdf", pdf(["The lamp is lit.", "It shines."], ["Page two."]))
    assert document.text == "The lamp is lit.\nIt shines.\n\nPage two."
    assert [section.headings for section in document.sections] == [("page 1",), ("page 2",)]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_files_are_their_characters(tmp_path, name, encoding):
    assert read(tmp_path, name, "Été\r\n\r\nzwei\rdrei".encode(encoding)).text == "Été\n\nzwei\ndrei"


def test_html_in_its_declared_encoding(tmp_path):
    content = '<html><head><meta charset="iso-8859-1"></head><body><p>Été</p></body></html>'
    assert read(tmp_path, "a.html", content.encode("latin-1")).text.strip() == "Été"
    assert read(tmp_path, "b.html", content.encode()).text.strip() == "Été"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", "Été".encode("latin-1"), "expected UTF-8, got another encoding at byte 1"),
        ("a.md", b"a\0b", "expected text, got binary data: NUL at character 2"),
        ("a.html", "<p>Été</p>".encode("latin-1"), "expected UTF-8, got another encoding at byte 4"),
        ("a.html", "<html><meta charset=nonsense>Été".encode("latin-1"), "expected the declared encoding nonsense"),
        ("a.rst", b" \n", "expected text, got none"),
        ("a.html", b"<script>x</script>", "expected text, got none"),
        ("a.docx", b"\xd0\xcf\x11\xe0", "expected a DOCX file, got other data"),
        ("a.pdf", encrypted(pdf(["secret"])), "expected a PDF file without a password"),
        ("a.pdf", pdf([]), "expected text, got none (a scan needs OCR)"),
    ],
)
def test_a_file_that_has_no_text_is_an_error_with_the_reason(tmp_path, name, content, reason):
    with pytest.raises(InputError) as error:
        read(tmp_path, name, content)
    assert str(error.value).startswith(reason)


def test_a_packed_bomb_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MAX_UNPACKED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", "a" * 1001)
    with pytest.raises(InputError, match="expected at most 1,000 bytes unpacked, got 1,001"):
        read_document(tmp_path / "a.docx")


def test_a_missing_package_is_an_error_with_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("rqa.documents.convert.find_spec", lambda name: None if name == "mammoth" else find(name))
    check_packages([Path("a.html"), Path("b.pdf")])
    with pytest.raises(InputError, match=r'\.docx files: .*mammoth.*pip install "\.\[documents\]"'):
        check_packages([Path("a.html"), Path("b.docx")])
