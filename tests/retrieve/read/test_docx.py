"""The Word reader: headings, lists, tables and notes stay; what the printed page does not show goes, and is noted."""

from __future__ import annotations

import io

import pytest
from retrieve.read.written import docx, paragraph, zipped

from almanac.core.errors import FileFormatError
from almanac.retrieve.read import docx as reader
from almanac.retrieve.read.document import Reading

STYLES = (
    '<w:style w:styleId="H1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="Chapter"><w:name w:val="My chapter"/><w:basedOn w:val="H1"/></w:style>'
    '<w:style w:styleId="Sub"><w:name w:val="Sub"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style>'
    '<w:style w:styleId="Ghost"><w:name w:val="Ghost"/><w:rPr><w:vanish/></w:rPr></w:style>'
    '<w:style w:styleId="T"><w:name w:val="Title"/></w:style>'
    '<w:style w:styleId="TOC1"><w:name w:val="toc 1"/></w:style>'
    '<w:style w:styleId="Loop"><w:name w:val="Loop"/><w:basedOn w:val="Pool"/></w:style>'
    '<w:style w:styleId="Pool"><w:name w:val="Pool"/><w:basedOn w:val="Loop"/></w:style>'
)
NUMBERING = (
    '<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt w:val="decimal"/></w:lvl>'
    '<w:lvl w:ilvl="1"><w:numFmt w:val="bullet"/></w:lvl></w:abstractNum>'
    '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
)


def read(body: str, **parts: str) -> Reading:
    return reader.read(docx(body, **{"styles": STYLES, **parts}), "papers/my_paper.docx")


def text(body: str, **parts: str) -> str:
    return read(body, **parts).document.text


def item(words: str, level: int = 0) -> str:
    numbered = f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="1"/></w:numPr>'
    return f"<w:p><w:pPr>{numbered}</w:pPr><w:r><w:t>{words}</w:t></w:r></w:p>"


def test_headings_by_name_by_basis_and_by_level() -> None:
    body = paragraph("Before.") + paragraph("One", "H1") + paragraph("A.") + paragraph("Deep", "Sub") + paragraph("B.")
    body += paragraph("Two", "Chapter") + paragraph("C.", "Loop")
    document = read(body).document
    assert [(section.heading, section.level, section.text) for section in document.sections] == [
        ((), 0, "Before."),
        (("One",), 1, "A."),
        (("One", "Deep"), 2, "B."),
        (("Two",), 1, "C."),
    ]
    assert document.title == "One"


def test_the_title_comes_from_the_properties_or_the_title_style() -> None:
    core = '<p xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Named</dc:title></p>'
    body = paragraph("Shown", "T") + paragraph("x")
    assert read(body, core=core).document.title == "Named"
    assert read(body).document.title == "Shown"
    assert read(paragraph("x")).document.title == "my paper"


def test_lists_count_and_nest() -> None:
    body = item("one") + item("inner", 1) + item("two") + paragraph("Between.") + item("three")
    assert text(body, numbering=NUMBERING) == "1. one\n  - inner\n2. two\n\nBetween.\n\n3. three"


def test_tables_are_rows() -> None:
    def cell(*contents: str) -> str:
        return f"<w:tc>{''.join(contents)}</w:tc>"

    def row(*cells: str) -> str:
        return f"<w:tr>{''.join(cells)}</w:tr>"

    inner = f"<w:tbl>{row(cell(paragraph('x')), cell(paragraph('y')))}</w:tbl>"
    body = f"<w:tbl>{row(cell(paragraph('Name')), cell(paragraph('Use')))}"
    body += (
        row(cell(paragraph("a|b")), cell(paragraph("first"), paragraph("second")))
        + row(cell(inner), cell())
        + "</w:tbl>"
    )
    assert text(body) == "| Name | Use |\n| a/b | first second |\n| x / y |  |"


def test_breaks_tabs_links_and_fields() -> None:
    body = (
        "<w:p><w:r><w:t>a</w:t><w:br/><w:t>b</w:t><w:tab/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t></w:r>"
        "<w:hyperlink><w:r><w:t> link</w:t></w:r></w:hyperlink>"
        "<w:r><w:instrText>PAGE</w:instrText></w:r>"
        "<w:sdt><w:sdtContent><w:r><w:t> control</w:t></w:r></w:sdtContent></w:sdt></w:p>"
    )
    assert text(body) == "a\nb c-d link control"


def test_footnotes_follow_their_paragraph() -> None:
    body = (
        '<w:p><w:r><w:t>Claim</w:t></w:r><w:r><w:footnoteReference w:id="2"/></w:r><w:r><w:t>.</w:t></w:r></w:p>'
        + paragraph("Next.")
    )
    notes = (
        f'<w:footnote w:id="0">{paragraph("rule")}</w:footnote><w:footnote w:id="2">{paragraph("Proof.")}</w:footnote>'
    )
    assert text(body, footnotes=notes) == "Claim.\n\nNote 1: Proof.\n\nNext."


HIDDEN = [
    "<w:vanish/>",
    '<w:vanish w:val="1"/>',
    "<w:specVanish/>",
    "<w:webHidden/>",
    '<w:color w:val="FFFFFF"/>',
    '<w:color w:val="ffffff"/><w:shd w:fill="auto"/>',
    '<w:sz w:val="2"/>',
    '<w:rStyle w:val="Ghost"/>',
]


@pytest.mark.parametrize("run", HIDDEN)
def test_hidden_text_is_removed_and_noted(run: str) -> None:
    body = paragraph("Seen.") + paragraph("SECRET", run=run) + paragraph("Also seen.")
    reading = read(body)
    assert reading.document.text == "Seen.\n\nAlso seen."
    assert reading.notes == ("removed 1 hidden pieces of text",)


def test_a_style_that_hides_hides_its_paragraphs_and_a_run_may_show_again() -> None:
    body = paragraph("SECRET", "Ghost") + paragraph("Shown.", "Ghost", run='<w:vanish w:val="0"/>')
    assert text(body) == "Shown."


@pytest.mark.parametrize(
    "run", ['<w:vanish w:val="0"/>', '<w:color w:val="FFFFFF"/><w:shd w:fill="000000"/>', "<w:b/>"]
)
def test_what_is_visible_stays(run: str) -> None:
    reading = read(paragraph("Seen.", run=run))
    assert reading.document.text == "Seen."
    assert reading.notes == ()


def test_tracked_deletions_go_and_insertions_stay() -> None:
    body = (
        "<w:p><w:r><w:t>Pay </w:t></w:r><w:del><w:r><w:delText>100</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>200</w:t></w:r></w:ins><w:moveFrom><w:r><w:t>gone</w:t></w:r></w:moveFrom></w:p>"
    )
    reading = read(body)
    assert reading.document.text == "Pay 200"
    assert reading.notes == ("left out 2 tracked deletions",)


def test_a_table_of_contents_is_left_out() -> None:
    reading = read(paragraph("One ... 3", "TOC1") + paragraph("Two ... 4", "TOC1") + paragraph("Text."))
    assert reading.document.text == "Text."
    assert reading.notes == ("left out a table of contents of 2 lines",)


def test_a_text_box_is_read_once() -> None:
    box = f"<w:drawing><x><w:txbxContent>{paragraph('Boxed.')}</w:txbxContent></x></w:drawing>"
    body = (
        '<w:p xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><w:r><w:t>Text.</w:t></w:r><w:r>'
        f"<mc:AlternateContent><mc:Choice>{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback></mc:AlternateContent>"
        "</w:r></w:p>"
    )
    assert text(body) == "Text.\nBoxed."


def test_a_file_of_python_docx_reads_alike() -> None:
    docx_library = pytest.importorskip("docx")
    made = docx_library.Document()
    made.add_heading("Holidays", 1)
    made.add_paragraph("Everyone has thirty days.")
    made.add_paragraph("first", style="List Bullet")
    made.add_paragraph("second", style="List Bullet")
    table = made.add_table(rows=2, cols=2)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"c{number}"
    made.add_paragraph("seen ").add_run("SECRET").font.hidden = True
    stream = io.BytesIO()
    made.save(stream)
    document = reader.read(stream.getvalue(), "a.docx").document
    assert [(section.heading, section.text) for section in document.sections] == [
        (("Holidays",), "Everyone has thirty days.\n\n- first\n- second\n\n| c0 | c1 |\n| c2 | c3 |\n\nseen")
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xd0\xcf\x11\xe0" + bytes(100), "encrypted or in the format of old Word"),
        (b"words", "not a whole zip file"),
        (zipped({"a.txt": "x"}), "no Word document"),
        (zipped({"_rels/.rels": "<x/>", "word/document.xml": "<x/>"}), "no Word document"),
    ],
)
def test_what_is_no_word_document_is_named(data: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        reader.read(data, "a.docx")


def test_a_document_type_is_refused() -> None:
    body = "</w:body></w:document>"
    with pytest.raises(FileFormatError, match="not well-formed"):
        read(body)
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>'
    with pytest.raises(FileFormatError, match="declares a document type"):
        reader.read(docx("", core=bomb), "a.docx")
