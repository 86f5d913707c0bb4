"""The Markdown reader: what a person would read, under the right headings, and nothing else."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from almanac.retrieve.read import markdown
from almanac.retrieve.read.document import Document
from almanac.retrieve.read.folder import read_folder

FASTAPI = Path(__file__).parents[3] / "shared" / "data" / "docs" / "fastapi"


def read(source: str, path: str = "guide/intro.md") -> Document:
    document = markdown.read(source.encode(), path).document
    for section in document.sections:
        assert document.text[section.start : section.end] == section.text
    return document


def text(source: str) -> str:
    return read(source).text


def test_headings_make_a_path_and_text_belongs_to_the_nearest() -> None:
    document = read("Preface.\n\n# Guide\n\nA.\n\n## Setup\n\n### Deep\n\nB.\n\n## Use\n\nC.\n")
    assert [(section.heading, section.level, section.text) for section in document.sections] == [
        ((), 0, "Preface."),
        (("Guide",), 1, "A."),
        (("Guide", "Setup"), 2, ""),
        (("Guide", "Setup", "Deep"), 3, "B."),
        (("Guide", "Use"), 2, "C."),
    ]
    assert document.title == "Guide"
    assert document.text == "Preface.\n\nA.\n\nB.\n\nC."


def test_a_skipped_level_still_nests_and_a_higher_one_closes_it() -> None:
    document = read("# A\n\n#### D\n\nx\n\n## B\n\ny\n")
    assert [section.heading for section in document.sections] == [("A",), ("A", "D"), ("A", "B")]


def test_digest_is_of_the_source_bytes_and_the_path_is_kept() -> None:
    document = read("# A\n\nb\n")
    assert document.digest == hashlib.sha256(b"# A\n\nb\n").hexdigest()
    assert document.path == "guide/intro.md"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Some *em* and **strong** and ~~old~~ text", "Some em and strong and old text"),
        ("See [the guide](https://example.org/x 'title') now", "See the guide now"),
        ("![a diagram](pic.png) shows it", "a diagram shows it"),
        ("Call `run(x)` and ``a`b``", "Call `run(x)` and `` a`b ``"),
        ("one\ntwo  \nthree", "one two\nthree"),
        ("```python\nx = 1\n\ny = *2*\n```", "```python\nx = 1\n\ny = *2*\n```"),
        ("    indented = 1", "```\nindented = 1\n```"),
        ("- a\n- b\n  1. c\n  2. d\n- e", "- a\n- b\n  1. c\n  2. d\n- e"),
        ("3. c\n4. d", "3. c\n4. d"),
        ("> quoted *text*", "quoted text"),
        ("> # No section\n>\n> text", "No section\n\ntext"),
        ("- ## No section\n- b", "- No section\n- b"),
        ("| A | B |\n|---|---|\n| 1 | `2` |", "| A | B |\n| 1 | `2` |"),
        ("a &amp; b &copy; c", "a & b © c"),
        ("A <abbr title='x'>CLI</abbr><br>tool", "A CLI\ntool"),
        ("[ref] text\n\n[ref]: https://example.org 'hidden words'", "ref text"),
        ("[//]: # (a comment for machines)\n\nseen", "seen"),
    ],
)
def test_markup_goes_and_text_stays(source: str, expected: str) -> None:
    assert text(source) == expected


def test_front_matter_is_dropped_and_gives_the_title() -> None:
    document = read('---\ntitle: "Real title"\ntags: [a]\n---\n\n# Heading\n\nBody.\n')
    assert document.title == "Real title"
    assert document.text == "Body."
    assert text("---\n\nA rule above, no front matter: here\n\n---\n") == "A rule above, no front matter: here"


def test_documentation_directives_disappear_but_their_text_does_not() -> None:
    source = (
        "# Title with code `x` { #title-with-code }\n\n{* ../../src/a.py hl[1:2] *}\n\n/// note | Technical *Details*\n\n"
        'Inside.\n\n///\n\n!!! warning "Careful"\n    Hot *surface*.\n\nAfter.\n\n:::tip\nBe quick.\n:::\n\n'
        '--8<-- "snippet.md"\n\n```\n/// kept in code\n{* kept *}\n```\n'
    )
    document = read(source)
    assert document.sections[0].heading == ("Title with code `x`",)
    assert document.text == (
        "Technical Details:\n\nInside.\n\nCareful:\n\nHot surface.\n\nAfter.\n\nBe quick.\n\n"
        "```\n/// kept in code\n{* kept *}\n```"
    )


def test_admonitions_without_blank_lines_and_templates_in_html() -> None:
    assert text("/// tip\nOnly this.\n///\n") == "Only this."
    assert text("<div>\n{% for x in y %}\n<b>{{ x }}</b> shown\n{% endfor %}\n</div>\n") == "shown"


def test_terminal_blocks_lose_their_colour_tags_only() -> None:
    assert text('```console\n$ <font color="#0F0">run</font> a<b\n```') == "```console\n$ run a<b\n```"
    assert text('```html\n<font color="red">x</font>\n```') == '```html\n<font color="red">x</font>\n```'


@pytest.mark.parametrize(
    "pattern",
    [
        "[",
        "![",
        "*a _b ",
        "> ",
        "# a\n",
        "1. a\n",
        "|a|b|\n|-|-|\n",
        "<a ",
        "a <!-- ",
        "<ul><li>a\n\n",
        "`` ` ",
        "{* *} ",
    ],
)
def test_two_megabytes_of_anything_are_read_in_bounded_time(pattern: str) -> None:
    """Each of these takes an unguarded reader far longer, some of them hours."""
    source = (pattern * (2_000_000 // len(pattern))).encode()
    before = time.process_time()
    markdown.read(source, "bomb.md")
    assert time.process_time() - before < 5


def test_just_under_the_limits_it_is_still_markdown_and_still_quick() -> None:
    source = "[a](b) *c*\n\n" * (markdown.MAX_MARKS // 6 - 100)
    before = time.process_time()
    reading = markdown.read(source.encode(), "long.md")
    assert time.process_time() - before < 5
    assert reading.notes == ()
    assert reading.document.text.startswith("a c\n\na c")
    assert "plain text" in markdown.read((source * 2).encode(), "longer.md").notes[-1]


@pytest.mark.skipif(not FASTAPI.is_dir(), reason=f"the shared documents are not at {FASTAPI}")
def test_real_documentation_reads_whole_and_clean() -> None:
    result = read_folder(FASTAPI)
    assert len(result.documents) == 145
    assert [path for path, _ in result.skipped] == ["LICENSE"]
    by_path = {document.path: document for document in result.documents}
    first = by_path["tutorial/first-steps.md"]
    assert first.title == "First Steps"
    operation = next(section for section in first.sections if section.heading[-1] == "Operation")
    assert operation.heading[1:] == ("Recap, step by step", "Step 3: create a path operation", "Operation")
    assert "- `POST`: to create data." in operation.text
    for document in result.documents:
        assert "\n///" not in document.text
        assert "{*" not in document.text.replace("{**", "")
        assert not any("{ #" in name for section in document.sections for name in section.heading)
        assert all(document.text[s.start : s.end] == s.text for s in document.sections)
