"""Reliability R27: text that people do not see reaches neither index nor model."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.retrieve.read import html, markdown
from almanac.retrieve.read import text as plain
from almanac.retrieve.read.document import clean

SECRET = "SECRET ORDER"
STYLES = [
    "display:none",
    "DISPLAY : None !important",
    "disp/**/lay:none;display:none",
    "visibility:hidden",
    "visibility: collapse",
    "opacity:0",
    "opacity: 0.01",
    "font-size:0",
    "font-size: 1px",
    "font-size:0em",
    "color:white",
    "color:#FFF",
    "color: #ffffff",
    "color: rgb(255, 255, 255)",
    "color:transparent",
    "color: rgba(10, 20, 30, 0)",
    "color:red;background-color:red",
    "color:#123456;background:#123456",
    "position:absolute;left:-9999px",
    "position:absolute; top : -5000px",
    "text-indent:-9999px",
    "margin-left:-2000px",
    "height:0;overflow:hidden",
    "width:1px;overflow:hidden",
    "max-height:0",
    "transform:scale(0)",
    "clip:rect(0,0,0,0)",
    "clip: rect(0 0 0 0)",
]
ELEMENTS = [
    *(f'<span style="{style}">{SECRET}</span>' for style in STYLES),
    *(f'<div style="{style}"><p><b>{SECRET}</b></p></div>' for style in STYLES),
    f"<p hidden>{SECRET}</p>",
    f'<p hidden="until-found">{SECRET}</p>',
    f"<font color=white>{SECRET}</font>",
    f'<font color="#FFFFFF">{SECRET}</font>',
    f'<table bgcolor="#ff0000"><tr><td><font color="#ff0000">{SECRET}</font></td></tr></table>',
    f'<p style="dis&#112;lay:none">{SECRET}</p>',
    f'<p title=">" hidden>{SECRET}</p>',
    f'<p title="<b>" hidden>{SECRET}</p>',
    f"<p title='\"' hidden x='\">'>{SECRET}</p>",
    f"<p don't='x' hidden>{SECRET}</p>",
    f'<p style="display:none" style="">{SECRET}</p>',
    f'<p style="display:/*a*b*/none">{SECRET}</p>',
    f"<P HIDDEN>{SECRET}</P>",
    f"<p\nhidden\n>{SECRET}</p>",
    f"<p hidden/>{SECRET}</p>",
    f"<dialog>{SECRET}</dialog>",
    f"<template>{SECRET}</template>",
    f"<script>{SECRET}</script>",
    f"<script type=text/plain>{SECRET}</script >",
    f"<style>{SECRET}</style>",
    f"<noscript>{SECRET}</noscript>",
    f"<svg><desc>{SECRET}</desc></svg>",
    f"<object>{SECRET}</object>",
    f"<iframe>{SECRET}</iframe>",
    f"<!-- {SECRET} -->",
    f"<!-- a > b {SECRET} -->",
    f"<!--> <!-- {SECRET} -->",
    f"<!-- a -- {SECRET} --!>",
    f"<? {SECRET} >",
    f'<p title="{SECRET}" data-x="{SECRET}"></p>',
    f'<meta name="description" content="{SECRET}">',
    f'<input type="hidden" value="{SECRET}">',
]


@pytest.mark.parametrize("element", [*ELEMENTS, f"<p/hidden>{SECRET}</p>", f"<! {SECRET} >"])
def test_hidden_elements_are_left_out_of_pages(element: str) -> None:
    document = html.read(f"<p>before</p>{element}<p>after</p>".encode(), "a.html").document
    assert SECRET not in document.text
    assert "before" in document.text
    assert document.text.endswith("after")


@pytest.mark.parametrize("element", ELEMENTS)
def test_hidden_elements_are_left_out_of_markdown(element: str) -> None:
    document = markdown.read(f"before\n\n{element}\n\nafter\n".encode(), "a.md").document
    assert SECRET not in document.text
    assert document.text.startswith("before")
    assert document.text.endswith("after")


def test_markdown_between_hidden_tags_is_hidden_too() -> None:
    parts = ["a", "<div hidden>", SECRET, f"# {SECRET}", f"- {SECRET}", f"```\n{SECRET}\n```", "</div>"]
    source = "\n\n".join([*parts, f"b <i hidden>{SECRET}</i> c"])
    document = markdown.read(source.encode(), "a.md").document
    assert document.text == "a\n\nb  c"
    assert SECRET not in repr(document)


@pytest.mark.parametrize(
    "source",
    [
        f"a\n\n<!-- {SECRET}\n\n{SECRET}\n-->\n\nb",
        f"a\n\n[//]: # ({SECRET})\n\nb",
        f'a\n\n[x]: https://example.org "{SECRET}"\n\nb',
        f"---\ndescription: {SECRET}\n---\na\n\nb",
        f"a <!-- {SECRET} -->\n\nb",
    ],
)
def test_comments_and_definitions_of_markdown_are_left_out(source: str) -> None:
    assert SECRET not in markdown.read(source.encode(), "a.md").document.text


@pytest.mark.parametrize(
    "visible",
    [
        '<p style="color:white;background:#000">seen</p>',
        '<div style="background-color:navy"><p style="color:white">seen</p></div>',
        '<p style="color:rgb(0,0,0)">seen</p>',
        '<p style="font-size:0.8em">seen</p>',
        '<p style="opacity:0.9">seen</p>',
        '<p style="margin-left:-4px;left:0">seen</p>',
        '<p style="overflow:hidden;height:200px">seen</p>',
        "<dialog open>seen</dialog>",
        "<details><summary>seen</summary></details>",
    ],
)
def test_what_is_visible_stays(visible: str) -> None:
    reading = html.read(f"<p>a</p>{visible}<p>b</p>".encode(), "a.html")
    assert reading.document.text == "a\n\nseen\n\nb"
    assert reading.notes == ()


INVISIBLE = (
    "\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2062\u2066\u2069\u00ad\ufeff\u180e\u034f\u3164"
    "\U000e0041\U000e007f\ufe01\U000e0101"
)


@pytest.mark.parametrize("character", INVISIBLE)
@pytest.mark.parametrize("reader", [html, markdown, plain])
def test_invisible_characters_are_removed_and_noted(reader, character: str) -> None:
    for spelled in (character, f"&#{ord(character)};"):
        if spelled.startswith("&") and reader is plain:
            continue
        reading = reader.read(f"vis{spelled}ible".encode(), "a.x")
        assert reading.document.text == "visible"
        assert reading.notes == ("removed 1 invisible characters",)


def test_a_message_in_tag_characters_is_gone() -> None:
    smuggled = "".join(chr(0xE0000 + ord(letter)) for letter in SECRET)
    assert clean(f"a{smuggled}b") == ("ab", len(SECRET))


def test_joiners_that_spell_words_stay() -> None:
    persian, family = "می‌خواهم", "\U0001f468\u200d\U0001f469"
    assert clean(persian) == (persian, 0)
    assert clean(family) == (family, 0)
    assert clean("a\u200cb") == ("ab", 1)


@given(st.text(max_size=60))
def test_clean_is_normal_and_final(raw: str) -> None:
    once, _ = clean(raw)
    assert unicodedata.is_normalized("NFC", once)
    assert clean(once)[0] == once
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n" for c in once)
