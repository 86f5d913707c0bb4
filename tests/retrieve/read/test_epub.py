"""The book reader: chapters in the order of the spine, as the page shows them."""

from __future__ import annotations

import pytest
from retrieve.read.written import CONTAINER, epub, zipped

from almanac.core.errors import FileFormatError
from almanac.retrieve.read import epub as reader
from almanac.retrieve.read.document import Reading


def read(data: bytes) -> Reading:
    return reader.read(data, "books/a.epub")


def test_chapters_in_the_order_of_the_spine() -> None:
    chapters = {"b.xhtml": "<h1>Second</h1><p>B.</p>", "a.xhtml": "<h1>First</h1><p>A.</p><h2>Deep</h2><p>D.</p>"}
    document = read(epub(chapters, title="Life &amp; work", spine=["a.xhtml", "b.xhtml"])).document
    assert [(section.heading, section.text) for section in document.sections] == [
        (("First",), "A."),
        (("First", "Deep"), "D."),
        (("Second",), "B."),
    ]
    assert document.title == "Life & work"


def test_empty_elements_of_xhtml_swallow_nothing() -> None:
    body = '<script src="x"/><title/><a id="x"/><p>One.</p><hr/><p/><img src="a" alt="seen"/><p>Two.</p>'
    assert read(epub({"a.xhtml": body})).document.text == "One.\n\nseen\n\nTwo."


def test_hidden_text_is_left_out_and_does_not_reach_the_next_chapter() -> None:
    reading = read(epub({"a.xhtml": "<p>A.</p><div style='display:none'>SECRET", "b.xhtml": "<p>B.</p>"}))
    assert reading.document.text == "A.\n\nB."
    assert reading.notes == ("left out 1 hidden elements",)


def test_missing_chapters_are_noted() -> None:
    data = epub({"a.xhtml": "<p>A.</p>", "b%20c.xhtml": "<p>B.</p>"})
    reading = read(data)
    assert reading.document.text == "A."
    assert reading.notes == ("its part OEBPS/b c.xhtml is missing",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"words", "not a whole zip file"),
        (zipped({"a.xhtml": "x"}), "has no META-INF/container.xml"),
        (zipped({"META-INF/container.xml": "<x/>"}), "does not say where"),
        (zipped({"META-INF/container.xml": CONTAINER}), "has no OEBPS/book.opf"),
        (zipped({"META-INF/container.xml": CONTAINER.replace("OEBPS/", "../../")}), r"has no \.\./\.\./book.opf"),
        (zipped({"META-INF/container.xml": "<!DOCTYPE x>" + CONTAINER}), "declares a document type"),
    ],
)
def test_what_is_no_book_is_named(data: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read(data)


def test_copy_protection_is_named_but_obfuscated_fonts_do_no_harm() -> None:
    def locks(part: str) -> str:
        return f'<encryption xmlns:e="urn:e"><e:Data><e:CipherReference URI="{part}"/></e:Data></encryption>'

    chapters = {"a.xhtml": "<p>A.</p>"}
    assert read(epub(chapters, **{"META-INF__encryption.xml": locks("OEBPS/font.otf")})).document.text == "A."
    with pytest.raises(FileFormatError, match="copy protection"):
        read(epub(chapters, **{"META-INF__encryption.xml": locks("OEBPS/a.xhtml")}))
