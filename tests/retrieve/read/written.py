"""Small files of each kind, written by hand, so that a test says byte by byte what a reader is given."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="'
    'http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="word/document.xml"/>'
    "</Relationships>"
)
CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)


def zipped(entries: Mapping[str, str | bytes], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def docx(body: str, **parts: str) -> bytes:
    """A Word document; ``parts`` are the XML of styles, numbering, footnotes (without their root) or core."""
    entries = {
        "_rels/.rels": RELATIONS,
        "word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>",
    }
    core = parts.pop("core", "")
    if core:
        entries["docProps/core.xml"] = core
    entries |= {f"word/{name}.xml": f"<w:{name} {W}>{content}</w:{name}>" for name, content in parts.items()}
    return zipped(entries)


def paragraph(text: str, style: str = "", *, run: str = "") -> str:
    named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    properties = f"<w:rPr>{run}</w:rPr>" if run else ""
    return f'<w:p>{named}<w:r>{properties}<w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def epub(chapters: Mapping[str, str], *, title: str = "A book", spine: Sequence[str] = (), **entries: str) -> bytes:
    """A book whose chapters are the bodies of XHTML pages; ``spine`` is their order, that of the manifest if empty."""
    ids = {name: f"c{number}" for number, name in enumerate(chapters)}
    items = "".join(f'<item id="{ids[name]}" href="{name}" media-type="application/xhtml+xml"/>' for name in chapters)
    order = "".join(f'<itemref idref="{ids[name]}"/>' for name in spine or chapters)
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/" version="3.0">'
        f"<metadata><dc:title>{title}</dc:title></metadata><manifest>{items}</manifest><spine>{order}</spine></package>"
    )
    pages = {
        f"OEBPS/{name}": f'<?xml version="1.0"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><head>'
        f"<title>{name}</title></head><body>{body}</body></html>"
        for name, body in chapters.items()
    }
    files = {"mimetype": "application/epub+zip", "META-INF/container.xml": CONTAINER, "OEBPS/book.opf": package}
    return zipped({**files, **pages, **{name.replace("__", "/"): content for name, content in entries.items()}})


def show(text: str, x: float, y: float, *, size: float = 10, font: str = "R", before: str = "") -> str:
    """A line of text as PDF operators; fonts are R (regular) and B (bold)."""
    escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"q {before} BT /{font} {size} Tf 1 0 0 1 {x} {y} Tm ({escaped}) Tj ET Q\n"


def lines(texts: Sequence[str], x: float, top: float, *, size: float = 10, step: float = 12) -> str:
    return "".join(show(text, x, top - step * number, size=size) for number, text in enumerate(texts))


def pdf(
    pages: Sequence[str],
    *,
    title: str = "",
    bookmarks: Sequence[tuple[str, int]] = (),
    page_entries: str = "",
    objects: Mapping[int, str] | None = None,
) -> bytes:
    """A PDF of these content streams. ``bookmarks`` name a page from 0; ``objects`` are added or replace by number.

    Object 1 is the catalog, 2 the page tree, 3 and 4 the fonts, 5 the information, 6 the outline; the pages begin at
    10, two numbers each, the bookmarks at 9000.
    """
    kids = " ".join(f"{10 + 2 * number} 0 R" for number in range(len(pages)))
    outlines = "/Outlines 6 0 R" if bookmarks else ""
    made = {
        1: f"<< /Type /Catalog /Pages 2 0 R {outlines} >>",
        2: f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        3: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        4: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold /Encoding /WinAnsiEncoding >>",
        5: f"<< /Title ({title}) >>",
    }
    for number, content in enumerate(pages):
        made[10 + 2 * number] = (
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources << /Font << /R 3 0 R /B 4 0 R >> "
            f"/XObject << /I 7 0 R /F 8 0 R >> >> /Contents {11 + 2 * number} 0 R {page_entries} >>"
        )
        made[11 + 2 * number] = f"<< /Length {len(content.encode('latin-1'))} >>\nstream\n{content}\nendstream"
    if bookmarks:
        last = 9_000 + len(bookmarks) - 1
        made[6] = f"<< /Type /Outlines /First 9000 0 R /Last {last} 0 R /Count {len(bookmarks)} >>"
        for number, (name, page) in enumerate(bookmarks):
            following = f"/Next {9_001 + number} 0 R" if number + 1 < len(bookmarks) else ""
            target = f"[{10 + 2 * page} 0 R /Fit]"
            made[9_000 + number] = f"<< /Title ({name}) /Parent 6 0 R /Dest {target} {following} >>"
    return pdf_of({**made, **(objects or {})})


def pdf_of(objects: Mapping[int, str], *, trailer: str = "") -> bytes:
    """The file of numbered objects with its table of places."""
    data = bytearray(b"%PDF-1.7\n")
    places = {}
    for number, content in sorted(objects.items()):
        places[number] = len(data)
        data += f"{number} 0 obj\n{content}\nendobj\n".encode("latin-1")
    start = len(data)
    data += b"xref\n"
    for number, place in places.items():
        data += f"{number} 1\n{place:010d} 00000 n \n".encode()
    size = max(objects) + 1
    data += f"trailer\n<< /Size {size} /Root 1 0 R /Info 5 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n".encode()
    return bytes(data)


IMAGE = (
    "<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>\n"
    "stream\n0\nendstream"
)
DRAW_IMAGE = "q 600 0 0 800 0 0 cm /I Do Q\n"
