"""Markdown, with markdown-it-py: what a person would read, without the markup.

Emphasis, link targets, comments, front matter and link definitions go; link texts, image descriptions, code, lists and
tables stay. Directives of documentation generators are understood as far as they hide or wrap text: admonitions
(``/// note | Title``, ``!!! note "Title"``, ``:::note``), includes (``{* file *}``, ``--8<--``), template tags in raw
HTML and attributes after headings (``{ #anchor }``). HTML in Markdown follows `visibility`.
"""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt
from markdown_it.token import Token

from almanac.retrieve.read import text as plain
from almanac.retrieve.read.decode import decode
from almanac.retrieve.read.document import MAX_INDENT, Outline, Reading, fenced, inline_code
from almanac.retrieve.read.guard import guard
from almanac.retrieve.read.html import Page
from almanac.retrieve.read.visibility import Visibility

SUFFIXES = (".md", ".markdown", ".mkd")

# markdown-it-py needs up to 40 microseconds per line, 10 per mark and 40 per bracket (hence four times in the list):
# a file with more is read without its markup.
MAX_LINES, MAX_MARKS = 30_000, 80_000
_MARKS = "[[[[*_<`~&\\"

_FENCE = re.compile(r"[ >\t]*(`{3,}|~{3,})")
_FRONT_MATTER = re.compile(
    r"---[ \t]*\n(?=[\w-]+[ \t]*:)((?:(?!---[ \t]*\n|\.\.\.[ \t]*\n).*\n){1,200})(?:---|\.\.\.)[ \t]*(?:\n|\Z)"
)
_TITLE = re.compile(r"^title:[ \t]*[\"']?([^\n\"']+)", re.MULTILINE)
_SLASHES = re.compile(r" {0,3}(?:/{3,}|:{3,})[ \t]*([\w.-]*)[ \t]*(?:\{[^{}]*\}|\[[^\[\]]*\]|\|)?([^\n]*)$")
_BANG = re.compile(r" {0,3}(?:!!!|\?\?\?\+?) ([\w-]+)(?: \"([^\"\n]*)\")?[ \t]*$")
_INCLUDE = re.compile(r"[ \t]*(?:\{\*[^\n]*\*\}|\{![^\n]*!\}|-+8<-+[^\n]*|\[TOC\])[ \t]*$")
_TEMPLATE_LINE = re.compile(r"[ \t]*\{%[^\n]*%\}[ \t]*$")
_HEADING_ATTRIBUTES = re.compile(r"[ \t]*\{:?[ \t]*[#.][^{}\n]*\}[ \t]*$")
_TEMPLATE = re.compile(r"\{%[^{}%]*%\}|\{\{[^{}]*\}\}")
_TERMINALS = frozenset(("console", "terminal", "shell-session"))
_COLOUR = re.compile(r"</?(?:font|span|u|b|i)\b[^<>]*>")


def read(data: bytes, path: str) -> Reading:
    """The document in a Markdown file.

    Raises:
        FileFormatError: the bytes are not text.
    """
    decoded = decode(data, path)
    if decoded.text.count("\n") > MAX_LINES or sum(map(decoded.text.count, _MARKS)) > MAX_MARKS:
        reading = plain.read(data, path)
        return Reading(reading.document, (*reading.notes, "too long for Markdown in one file: read as plain text"))
    outline = Outline()
    source = _without_front_matter(decoded.text, outline)
    walker = _Walker(outline)
    for token in _parser().parse(_without_directives(source)):
        walker.take(token)
    walker.page.end()
    notes = decoded.notes
    if walker.page.visibility.left_out:
        notes = (*notes, f"left out {walker.page.visibility.left_out} hidden elements")
    return outline.build(path, hashlib.sha256(data).hexdigest(), notes=notes)


def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def _without_front_matter(source: str, outline: Outline) -> str:
    match = _FRONT_MATTER.match(source)
    if match is None:
        return source
    if title := _TITLE.search(match[1]):
        outline.title(title[1])
    return source[match.end() :]


def _without_directives(source: str) -> str:
    """``source`` without directive lines; an admonition's own title becomes a paragraph. Code blocks are left alone."""
    lines: list[str] = []
    fence = ""
    indented = False  # inside a ``!!!`` block, whose text is indented by four
    for line in source.split("\n"):
        if indented and line.strip():
            indented = line.startswith("    ")
            line = line.removeprefix("    ")
        match = _FENCE.match(line)
        if fence:
            if match and match[1].startswith(fence) and not line.strip(" >\t`~"):
                fence = ""
        elif match:
            fence = match[1]
        elif _TEMPLATE_LINE.match(line):
            continue  # it often stands within raw HTML, which a blank line would end
        elif _INCLUDE.match(line):
            line = ""
        elif directive := _SLASHES.match(line) or _BANG.match(line):
            indented = indented or line.lstrip(" ")[0] in "!?"
            title = (directive[2] or "").strip(" |\"'").rstrip(":")
            line = f"\n{title}:\n" if title else ""
        lines.append(line)
    return "\n".join(lines)


class _InlineTags(HTMLParser):
    """Single tags between words: they open and close elements, and two of them stand for text."""

    def __init__(self, visibility: Visibility) -> None:
        super().__init__()
        self._visibility = visibility
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._visibility.start(tag, attrs)
        if tag == "br":
            self.text = "\n"
        elif tag == "img":
            self.text = _TEMPLATE.sub("", dict(attrs).get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        self._visibility.end(tag)

    def take(self, tag: str) -> str:
        self.text = ""
        self.feed(guard(tag))
        return self.text


class _Walker:
    """Turns markdown-it's flat token list into headings and blocks."""

    def __init__(self, outline: Outline) -> None:
        self.page = Page(outline)
        self._outline = outline
        self._tags = _InlineTags(self.page.visibility)
        self._heading = 0
        self._lists: list[int | None] = []  # open lists: the next number, or None for bullets
        self._marker = ""
        self._lines: list[str] = []  # of the outermost open list
        self._cells: list[str] | None = None
        self._rows: list[str] = []

    def take(self, token: Token) -> None:
        kind = token.type
        if kind == "inline":
            self._inline(self._visible(token.children or []))
        elif kind == "heading_open":
            self._heading = int(token.tag[1]) if token.level == 0 else 0
        elif kind in ("fence", "code_block"):
            self._code(token)
        elif kind == "html_block":
            self._end_list_lines()
            self.page.take(_TEMPLATE.sub("", token.content))
        elif kind in ("bullet_list_open", "ordered_list_open"):
            self._lists.append(int(token.attrGet("start") or 1) if kind == "ordered_list_open" else None)
        elif kind == "list_item_open":
            self._mark_item()
        elif kind in ("bullet_list_close", "ordered_list_close"):
            self._lists.pop()
            if not self._lists:
                self._end_list_lines()
        elif kind == "tr_open":
            self._cells = []
        elif kind == "tr_close":
            self._rows.append(f"| {' | '.join(self._cells or [])} |")
            self._cells = None
        elif kind == "table_close":
            self._block("\n".join(self._rows))
            self._rows = []

    def _inline(self, text: str) -> None:
        if self._cells is not None:
            self._cells.append(" ".join(text.split()))
        elif self._heading:
            self._outline.heading(self._heading, _HEADING_ATTRIBUTES.sub("", " ".join(text.split())))
            self._heading = 0
        else:
            self._block(text)

    def _visible(self, tokens: list[Token]) -> str:
        parts: list[str] = []
        for token in tokens:
            if token.type == "html_inline":
                text = self._tags.take(token.content)
            elif token.type == "code_inline":
                text = inline_code(token.content)
            elif token.type == "image":
                text = self._visible(token.children or [])
            elif token.type == "softbreak":
                text = " "
            elif token.type == "hardbreak":
                text = "\n"
            else:
                text = token.content
            if not self.page.visibility.hidden:
                parts.append(text)
        return "".join(parts).strip()

    def _code(self, token: Token) -> None:
        if self.page.visibility.hidden:
            return
        language = (token.info.split() or [""])[0].strip("{}.").lower()
        code = token.content
        if language in _TERMINALS:
            code = _COLOUR.sub("", code)
        self._block(fenced(code, language))

    def _mark_item(self) -> None:
        number = self._lists[-1]
        self._marker = "- " if number is None else f"{number}. "
        if number is not None:
            self._lists[-1] = number + 1

    def _block(self, text: str) -> None:
        if not text:
            return
        if not self._lists:
            self._outline.block(text)
            return
        indent = "  " * min(len(self._lists) - 1, MAX_INDENT)
        first, self._marker = indent + (self._marker or "  "), ""
        self._lines.append(first + text.replace("\n", "\n" + indent + "  "))

    def _end_list_lines(self) -> None:
        if self._lines:
            self._outline.block("\n".join(self._lines))
            self._lines = []
