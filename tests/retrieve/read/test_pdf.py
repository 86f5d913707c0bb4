"""The PDF reader: reading order, headings, pages, and what a person would not see or read."""

from __future__ import annotations

import itertools

import pytest
from retrieve.read.written import DRAW_IMAGE, IMAGE, lines, pdf, pdf_of, show

from almanac.core.errors import FileFormatError, MissingExtraError
from almanac.retrieve.chunk.headings import chunk_document
from almanac.retrieve.read import pdf as reader
from almanac.retrieve.read.document import Document, Reading

pytest.importorskip("pypdfium2")

BODY = [
    "The quick brown fox jumps over the lazy dog and runs away,",
    "because the dog is awake now and will not be jumped over.",
    "Then it goes on to the next dog, which sleeps more deeply,",
    "and jumps again.",
]


def read(data: bytes) -> Reading:
    reading = reader.read(data, "papers/some-paper.pdf")
    document = reading.document
    for section in document.sections:
        assert document.text[section.start : section.end] == section.text
    return reading


def text(*pages: str, **options: object) -> str:
    return read(pdf(pages, **options)).document.text  # type: ignore[arg-type]


def headings(document: Document) -> list[tuple[int, str]]:
    return [(section.level, section.heading[-1]) for section in document.sections if section.heading]


def test_lines_become_paragraphs_and_distance_parts_them() -> None:
    page = lines(BODY, 50, 700) + lines(["A second paragraph begins lower down the page."], 50, 630)
    assert text(page) == " ".join(BODY) + "\n\nA second paragraph begins lower down the page."


def test_an_indent_begins_a_paragraph() -> None:
    page = lines(BODY[:3], 50, 700) + show("Indented as in books, a new thought is begun here.", 65, 664)
    page += show("It goes on at the left edge of the column as before.", 50, 652)
    assert text(page).split("\n\n") == [
        " ".join(BODY[:3]),
        "Indented as in books, a new thought is begun here. It goes on at the left edge of the column as before.",
    ]


@pytest.mark.parametrize("order", ["columns", "rows", "right first"])
def test_two_columns_are_read_one_after_the_other_whatever_the_order_in_the_file(order: str) -> None:
    left = [f"Left line {word} of the first column" for word in "one two three four five six".split()]
    right = [f"Right line {word} of the other column" for word in "one two three four five six".split()]
    pieces = {
        "columns": lines(left, 50, 600) + lines(right, 320, 600),
        "right first": lines(right, 320, 600) + lines(left, 50, 600),
        "rows": "".join(
            show(a, 50, 600 - 12 * n) + show(b, 320, 600 - 12 * n)
            for n, (a, b) in enumerate(zip(left, right, strict=True))
        ),
    }
    title = show("A title that stands over both of the columns of this page", 50, 640, size=16)
    reading = read(pdf([title + pieces[order]]))
    assert headings(reading.document) == [(1, "A title that stands over both of the columns of this page")]
    assert " ".join(reading.document.text.split()) == " ".join(left + right)


def test_three_columns() -> None:
    columns = [[f"{name} row {row} of text here" for row in "abcdef"] for name in ("First", "Middle", "Third")]
    page = "".join(lines(column, 40 + 190 * number, 600) for number, column in enumerate(columns))
    assert " ".join(text(page).split()) == " ".join(itertools.chain(*columns))


def test_a_full_width_line_parts_the_columns_above_from_those_below() -> None:
    above = [[f"{side} above line {n} with some words" for n in range(5)] for side in ("Left", "Right")]
    below = [[f"{side} below line {n} with some words" for n in range(5)] for side in ("Left", "Right")]
    wide = "This sentence runs over the whole width of the page, from the one edge to the other, without a gap in it."
    page = lines(above[0], 50, 700) + lines(above[1], 320, 700) + show(wide, 50, 620)
    page += lines(below[0], 50, 590) + lines(below[1], 320, 590)
    assert " ".join(text(page).split()) == " ".join([*above[0], *above[1], wide, *below[0], *below[1]])


def test_a_table_is_read_by_rows() -> None:
    rows = [("Name", "Price", "Stock"), ("Apple", "3", "120"), ("Pear", "4", "80")]
    page = lines(BODY, 50, 700) + "".join(
        show(cell, 50 + 120 * column, 600 - 14 * row)
        for row, cells in enumerate(rows)
        for column, cell in enumerate(cells)
    )
    assert text(page).endswith("| Name | Price | Stock |\n| Apple | 3 | 120 |\n| Pear | 4 | 80 |")


def test_a_cell_of_several_lines_stays_one_cell() -> None:
    page = show("Key", 50, 600) + show("Meaning", 200, 600) + show("a", 50, 586) + show("the first", 200, 586)
    page += show("letter", 200, 572) + show("b", 50, 558) + show("the second", 200, 558)
    assert text(page) == "| Key | Meaning |\n| a | the first letter |\n| b | the second |"


def test_bullets_and_numbers_make_lists() -> None:
    page = lines(["\x95 first item of the list that is", "  wrapped once", "\x95 second item"], 50, 600)
    page += lines(["1. one", "2. two"], 50, 500)
    assert text(page) == "- first item of the list that is wrapped once\n- second item\n1. one\n2. two"


def test_words_divided_at_line_ends_are_joined_and_compounds_are_not() -> None:
    page = lines(
        ["The administra-", "tion is well-", "known to Anglo-", "Saxon and state-of-the-", "art people."], 50, 600
    )
    assert text(page) == "The administration is wellknown to Anglo-Saxon and state-of-the-art people."


def test_headings_by_size_and_weight() -> None:
    page = show("Handbook", 50, 740, size=24) + show("Holidays", 50, 700, size=16) + lines(BODY, 50, 680)
    page += show("In detail", 50, 610, font="B") + lines(BODY, 50, 590)
    page += show("Travel", 50, 510, size=16) + lines(BODY, 50, 490)
    document = read(pdf([page])).document
    assert headings(document) == [(1, "Handbook"), (2, "Holidays"), (3, "In detail"), (2, "Travel")]
    assert document.sections[2].heading == ("Handbook", "Holidays", "In detail")
    assert document.title == "Handbook"


def test_a_heading_of_two_lines_is_one_heading() -> None:
    page = show("A heading that is so long that", 50, 740, size=16) + show("it takes two lines", 50, 721, size=16)
    assert headings(read(pdf([page + lines(BODY, 50, 690)])).document) == [
        (1, "A heading that is so long that it takes two lines")
    ]


def test_bookmarks_name_headings_that_look_like_text() -> None:
    pages = [show("Opening", 50, 740) + lines(BODY, 50, 700), show("Ending", 50, 740) + lines(BODY, 50, 700)]
    document = read(pdf(pages, bookmarks=[("Opening", 0), ("Ending", 1)])).document
    assert headings(document) == [(1, "Opening"), (1, "Ending")]


def test_a_title_in_the_properties_counts_unless_it_is_a_file_name() -> None:
    page = show("Big words", 50, 740, size=20) + lines(BODY, 50, 700)
    assert read(pdf([page], title="The true title")).document.title == "The true title"
    assert read(pdf([page], title="draft_7.doc")).document.title == "Big words"
    assert read(pdf([lines(BODY, 50, 700)])).document.title == "some paper"


def test_pages_begin_where_their_text_does() -> None:
    document = read(pdf([lines([f"This is what page {n} says."], 50, 700) for n in (1, 2, 3)])).document
    assert document.text == "This is what page 1 says.\n\nThis is what page 2 says.\n\nThis is what page 3 says."
    assert [document.text[page:][:19] for page in document.pages] == [f"This is what page {n}"[:19] for n in (1, 2, 3)]
    assert [document.page_at(document.text.index(f"page {n}")) for n in (1, 2, 3)] == [1, 2, 3]


def test_a_sentence_that_runs_over_the_page_is_joined_and_the_page_begins_within_it() -> None:
    first = lines([*BODY[:2], "The last word of this page is admini-"], 50, 700)
    document = read(pdf([first, lines(["stration, and then it ends.", "Quite so."], 50, 700)])).document
    assert "page is administration, and then it ends." in document.text
    assert document.text[document.pages[1] :].startswith("stration")
    assert document.page_at(document.text.index("admini")) == 1


def test_empty_pages_are_counted() -> None:
    document = read(pdf(["", lines(["Only here."], 50, 700), "", lines(["And here."], 50, 700), ""])).document
    assert len(document.pages) == 5
    assert document.page_at(0) == 2
    assert document.page_at(document.text.index("And")) == 4


def test_chunks_know_their_page_and_keep_their_ids() -> None:
    pages = [lines([f"Page {n} speaks about subject {n} in its own words."] * 4, 50, 700) for n in range(1, 6)]
    document = read(pdf(pages)).document
    chunks = chunk_document(document, count_tokens=lambda piece: len(piece.split()), max_tokens=40, overlap_tokens=0)
    assert [chunk.page for chunk in chunks] == [1, 2, 3, 4, 5]
    assert [chunk.as_passage().page for chunk in chunks] == [1, 2, 3, 4, 5]
    unpaged = Document(document.path, document.title, document.sections, document.digest)
    without = chunk_document(unpaged, count_tokens=lambda piece: len(piece.split()), max_tokens=40, overlap_tokens=0)
    assert [chunk.id for chunk in without] == [chunk.id for chunk in chunks]
    assert {chunk.page for chunk in without} == {None}


def test_running_heads_feet_and_page_numbers_are_left_out_and_counted() -> None:
    pages = [
        show("Annual report 2025", 50, 770, size=8)
        + lines([f"What page {n} says is not the same as the others.", f"It says {'so ' * n}on line two."], 50, 700)
        + show("Confidential", 50, 30, size=8)
        + show(str(n), 500, 30, size=8)
        for n in range(1, 5)
    ]
    reading = read(pdf(pages))
    assert not any(word in reading.document.text for word in ("Annual", "Confidential"))
    assert reading.document.text.count("What page") == 4
    assert reading.notes == ("left out 12 running heads, feet and page numbers",)


def test_what_stands_once_at_the_edge_of_a_page_stays() -> None:
    pages = [show(f"{word} words at the very top.", 50, 775) + lines(BODY, 50, 700) for word in ("Own", "Other")]
    assert "Own words at the very top." in text(*pages)


def test_a_printed_table_of_contents_is_left_out() -> None:
    page = show("Contents", 50, 740, size=16) + lines(["One . . . . . . . . . 3", "Two ............. xiv"], 50, 700)
    reading = read(pdf([page, lines(BODY, 50, 700)]))
    assert reading.document.text == " ".join(BODY)
    assert reading.notes == ("left out a table of contents of 2 lines",)


HIDDEN = {
    "white": show("SECRET", 50, 500, before="1 1 1 rg"),
    "nearly white": show("SECRET", 50, 500, before="0.995 1 0.99 rg"),
    "invisible": show("SECRET", 50, 500, before="3 Tr"),
    "clipping only": show("SECRET", 50, 500, before="7 Tr"),
    "tiny": show("SECRET", 50, 500, size=1),
    "scaled to nothing": show("SECRET", 50, 500, before="0.05 0 0 0.05 0 0 cm"),
    "off the page": show("SECRET", 50, 900),
    "left of the page": show("SECRET", -200, 500),
    "white over white": "1 1 1 rg 0 400 600 200 re f\n" + show("SECRET", 50, 500, before="1 1 1 rg"),
    "white over an outline": "0 0 0 RG 40 490 100 30 re S\n" + show("SECRET", 50, 500, before="1 1 1 rg"),
    "white beside a dark box": "0 g 300 490 100 30 re f\n" + show("SECRET", 50, 500, before="1 1 1 rg"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_text_is_removed_and_noted(name: str) -> None:
    reading = read(pdf([lines(BODY, 50, 700) + HIDDEN[name]]))
    assert reading.document.text == " ".join(BODY)
    assert reading.notes == ("removed 6 hidden characters",)


def test_white_text_on_a_dark_ground_stays() -> None:
    page = lines(BODY, 50, 700) + "0 0 0.5 rg 40 490 200 30 re f\n" + show("SEEN", 50, 500, before="1 1 1 rg")
    assert text(page).endswith("SEEN")


def test_text_recognised_under_a_scan_is_read() -> None:
    page = DRAW_IMAGE + show("Recognised words", 50, 500, before="3 Tr")
    assert text(page, objects={7: IMAGE}) == "Recognised words"


def test_pages_of_images_alone_are_named() -> None:
    reading = read(pdf([lines(BODY, 50, 700), DRAW_IMAGE, DRAW_IMAGE, "", DRAW_IMAGE], objects={7: IMAGE}))
    assert reading.notes == ("pages of images only, not read: 2-3, 5",)
    with pytest.raises(FileFormatError, match=r"only images of pages.*OCR"):
        read(pdf([DRAW_IMAGE, DRAW_IMAGE], objects={7: IMAGE}))


def test_a_page_turned_on_its_side_is_read_upright() -> None:
    page = "".join(f"BT /R 10 Tf 0 1 -1 0 {100 + 12 * n} 50 Tm ({line}) Tj ET\n" for n, line in enumerate(BODY))
    assert text(page, page_entries="/Rotate 90") == " ".join(BODY)


def test_a_stamp_along_the_edge_does_not_disturb_the_text() -> None:
    stamp = "BT /R 20 Tf 0 1 -1 0 30 200 Tm (Preprint of May) Tj ET\n"
    assert text(stamp + lines(BODY, 50, 700)) == " ".join(BODY) + "\n\nPreprint of May"


def test_a_password_is_named() -> None:
    locked = pdf_of(
        {1: "<< /Type /Catalog /Pages 2 0 R >>", 2: "<< /Type /Pages /Kids [] /Count 0 >>"},
        trailer=f"/Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <{'ab' * 32}> /U <{'cd' * 32}> >> /ID [<00> <00>]",
    )
    with pytest.raises(FileFormatError, match="needs a password"):
        read(locked)


def test_what_is_no_pdf_is_named() -> None:
    with pytest.raises(FileFormatError, match="no PDF file"):
        read(b"plain words")
    with pytest.raises(FileFormatError, match="no PDF file"):
        read(b"")


def test_without_its_library_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str):
        raise ImportError(name)

    monkeypatch.setattr(reader.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"almanac-lm\[docs\]"):
        read(pdf([""]))
