"""Small documents of binary formats, written by hand, and the comparison of texts."""

import io
import zipfile
from html import escape

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
RELATIONSHIPS = "openxmlformats-package.relationships"
OFFICE = "application/vnd.openxmlformats-officedocument.wordprocessingml"


def visible(text: str) -> str:
    """Return the characters that are not white space."""
    return "".join(text.split())


def pdf(*pages: list[str]) -> bytes:
    """Return a PDF file with the lines of each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    kids = []
    for lines in pages:
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        contents = f"/Contents {len(objects)} 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {font} {contents} >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    content, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(content))
        content += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = f"trailer << /Root 1 0 R /Size {len(objects) + 1} >>\nstartxref\n{len(content)}\n%%EOF\n"
    return content + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{end}".encode()


def encrypted(content: bytes) -> bytes:
    """Return a PDF file that needs a password."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(content)))
    writer.encrypt("secret", algorithm="RC4-128")
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def docx(*paragraphs: tuple[str, str], table: list[list[str]] | None = None) -> bytes:
    """Return a DOCX file of (style, text), and a table. The styles are "Heading 1" and so on, or ""."""
    styles = sorted({style for style, _ in paragraphs if style})
    ids = {style: style.replace(" ", "") for style in styles}
    body = "".join(
        f'<w:p><w:pPr>{f"""<w:pStyle w:val="{ids[style]}"/>""" if style else ""}</w:pPr>{run(text)}</w:p>'
        for style, text in paragraphs
    )
    rows = "".join(
        f"<w:tr>{''.join(f'<w:tc><w:p>{run(cell)}</w:p></w:tc>' for cell in row)}</w:tr>" for row in table or []
    )
    body += f"<w:tbl>{rows}</w:tbl>" if rows else ""
    names = "".join(
        f'<w:style w:type="paragraph" w:styleId="{ids[style]}"><w:name w:val="{style.lower()}"/></w:style>'
        for style in styles
    )
    rels = f'<Default Extension="rels" ContentType="application/vnd.{RELATIONSHIPS}+xml"/>'
    types = f"{rels}{override('document', 'document.main')}{override('styles', 'styles')}"
    start = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">{types}</Types>',
        "_rels/.rels": relationship(f"{start}/officeDocument", "word/document.xml"),
        "word/_rels/document.xml.rels": relationship(f"{start}/styles", "styles.xml"),
        "word/document.xml": f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>',
        "word/styles.xml": f'<w:styles xmlns:w="{WORD}">{names}</w:styles>',
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r>'


def override(part: str, kind: str) -> str:
    return f'<Override PartName="/word/{part}.xml" ContentType="{OFFICE}.{kind}+xml"/>'


def relationship(kind: str, target: str) -> str:
    return (
        f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" Type="{kind}" Target="{target}"/>'
        "</Relationships>"
    )
