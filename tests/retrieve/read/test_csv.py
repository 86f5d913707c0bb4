"""The table reader: each row a line that can be cited."""

from __future__ import annotations

import pytest

from almanac.core.errors import FileFormatError
from almanac.retrieve.read import csv as reader


def text(source: str, path: str = "stock/price_list.csv") -> str:
    return reader.read(source.encode(), path).document.text


def test_rows_are_lines_under_the_title() -> None:
    document = reader.read(b"Name,Price\nApple,3\nPear,4\n", "stock/price_list.csv").document
    assert document.text == "Name: Apple; Price: 3\nName: Pear; Price: 4"
    assert document.title == "price list"
    assert [section.heading for section in document.sections] == [("price list",)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_separator_is_found(delimiter: str) -> None:
    rows = [["Name", "Price", "Note"], ["Apple", "3", "red, ripe; good"], ["Pear", "4", "green|soft"]]
    source = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    assert text(source) == "Name: Apple; Price: 3; Note: red, ripe; good\nName: Pear; Price: 4; Note: green|soft"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Preis;Menge\n3,50;2\n4,25;1\n", "Preis: 3,50; Menge: 2\nPreis: 4,25; Menge: 1"),
        ("1,2\n3,4\n", "column 1: 1; column 2: 2\ncolumn 1: 3; column 2: 4"),
        ("a,a\nb,c\n", "column 1: a; column 2: a\ncolumn 1: b; column 2: c"),
        (",North,South\nMay,1,2\n", "column 1: May; North: 1; South: 2"),
        ("A,B\n1,\n,2\n,\n\n3,4,5\n", "A: 1\nB: 2\nA: 3; B: 4; column 3: 5"),
        ('A,B\n"two\nlines","say ""so"""\n', 'A: two lines; B: say "so"'),
        ("Name\nApple\nPear\n", "Name: Apple\nName: Pear"),
        ("only one line, it seems\n", "column 1: only one line; column 2: it seems"),
        ("A,B\r\n1,2\r\n", "A: 1; B: 2"),
        ("\ufeffA,B\n1,2\n", "A: 1; B: 2"),
    ],
)
def test_shapes_of_tables(source: str, expected: str) -> None:
    assert text(source) == expected


def test_tabs_part_a_tsv_whatever_else_is_in_it() -> None:
    assert text("A, B\tC, D\n1, 2\t3, 4\n", "a.tsv") == "A, B: 1, 2; C, D: 3, 4"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("," * 2_000 + "\n", "more than 1,000 columns"),
        ('a,b\n"' + "x" * 200_000, "field larger than field limit"),
        ("a\x00,b", "binary"),
        (f"{'n' * 79},b\n" + "x,y\n" * 450_000, "more than 32 MiB of text"),
    ],
)
def test_tables_beyond_the_limits_are_named(source: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        text(source)


def test_an_empty_table_has_no_text() -> None:
    assert text("") == ""
    assert text(",,\n,,\n") == ""
