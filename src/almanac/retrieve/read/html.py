"""HTML pages, with the standard library's parser: headings, text, lists, tables and code that a person would see."""

from __future__ import annotations

import hashlib
from html.parser import HTMLParser

from almanac.retrieve.read.decode import decode
from almanac.retrieve.read.document import MAX_INDENT, Outline, Reading, fenced, inline_code
from almanac.retrieve.read.guard import guard
from almanac.retrieve.read.visibility import Visibility

SUFFIXES = (".html", ".htm", ".xhtml")

_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = frozenset(
    """address article aside blockquote body caption center dd details dialog div dl dt fieldset figcaption figure form
    header hr html legend li main ol p pre section summary table tbody textarea tfoot thead tr ul""".split()
)
_CELLS = frozenset(("td", "th"))


def read(data: bytes, path: str) -> Reading:
    """The document in an HTML file.

    Raises:
        FileFormatError: the bytes are not text.
    """
    decoded = decode(data, path)
    outline = Outline()
    page = Page(outline)
    page.take(decoded.text)
    page.end()
    notes = decoded.notes
    if page.visibility.left_out:
        notes = (*notes, f"left out {page.visibility.left_out} hidden elements")
    return outline.build(path, hashlib.sha256(data).hexdigest(), notes=notes)


class Page(HTMLParser):
    """Feeds an outline with what is visible. One page may be taken in pieces; elements stay open in between."""

    def __init__(self, outline: Outline) -> None:
        super().__init__(convert_charrefs=True)
        self.visibility = Visibility()
        self._outline = outline
        self._text: list[str] = []  # the block being read
        self._code: list[str] | None = None  # inside inline code or a code block
        self._cells: list[str] | None = None  # inside a table row
        self._in_cell = False
        self._rows: list[str] = []
        self._lists: list[int | None] = []  # open lists: the next number, or None for bullets
        self._items: list[str] = []
        self._marker = ""

    def take(self, source: str) -> None:
        """Reads a piece of HTML to its end."""
        self.feed(guard(source))
        self.close()
        if self._code is not None:
            self._text.append("".join(self._code))
            self._code = None
        self._finish()

    def end(self) -> None:
        """Hands on what an unclosed table row still holds."""
        self._end_row()
        self._finish()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        before = self.visibility.hidden
        if not before and (tag in _BLOCKS or tag in _HEADINGS):
            self._flush()
        self.visibility.start(tag, attrs)
        if self.visibility.hidden:
            return
        if tag in ("pre", "code", "kbd", "samp") and self._code is None:
            self._code = []
        elif tag == "br":
            self._text.append("\n")
        elif tag == "img":
            self._add(dict(attrs).get("alt") or "")
        elif tag in ("ul", "ol"):
            self._lists.append(1 if tag == "ol" else None)
        elif tag == "li":
            self._mark_item()
        elif tag == "tr":
            self._end_row()
            self._cells = []
        elif tag in _CELLS:
            self._end_cell()
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if self.visibility.hidden:
            if tag == "title" and self.visibility.inside("head"):
                self._outline.title("".join(self._text))
                self._text = []
            self.visibility.end(tag)
            return
        if tag in ("pre", "code", "kbd", "samp"):
            self._end_code(tag)
        elif tag in _HEADINGS:
            heading, self._text = "".join(self._text), []
            self._finish()
            self._outline.heading(_HEADINGS[tag], heading)
        elif tag in _CELLS:
            self._end_cell()
        elif tag in _BLOCKS:
            self._flush()
            self._end_block(tag)
        self.visibility.end(tag)

    def handle_data(self, data: str) -> None:
        if self.visibility.hidden:
            if self.visibility.inside("title") and self.visibility.inside("head"):
                self._text.append(data)
        elif self._code is not None:
            self._code.append(data)
        else:
            self._add(data)

    def _add(self, text: str) -> None:
        folded = " ".join(text.split())
        if folded or text:
            self._text.append(
                (" " if text[:1].isspace() else "") + folded + (" " if folded and text[-1:].isspace() else "")
            )

    def _end_code(self, tag: str) -> None:
        if self._code is None or (tag != "pre" and self.visibility.inside("pre")):
            return
        code, self._code = "".join(self._code), None
        if tag == "pre":
            self._block(fenced(code))
        else:
            self._text.append(inline_code(code))

    def _mark_item(self) -> None:
        number = self._lists[-1] if self._lists else None
        self._marker = "- " if number is None else f"{number}. "
        if number is not None:
            self._lists[-1] = number + 1

    def _end_block(self, tag: str) -> None:
        if tag == "tr":
            self._end_row()
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
            if not self._lists:
                self._finish()
        elif tag == "table":
            self._end_row()
            self._finish()

    def _end_cell(self) -> None:
        """Closes the open cell, if any: closing tags of cells and rows may be left out."""
        if self._cells is not None and self._in_cell:
            self._cells.append(" ".join("".join(self._text).split()))
            self._text = []
        self._in_cell = False

    def _end_row(self) -> None:
        self._end_cell()
        if self._cells and any(self._cells):
            self._rows.append(f"| {' | '.join(self._cells)} |")
        self._cells = None

    def _flush(self) -> None:
        """Ends the paragraph being read."""
        lines = [" ".join(line.split()) for line in "".join(self._text).split("\n")]
        text, self._text = "\n".join(line for line in lines if line), []
        if self._cells is not None:
            if text:
                self._text = [text.replace("\n", " ") + " "]
            return
        self._block(text)

    def _block(self, text: str) -> None:
        if not text:
            return
        if self._lists:
            indent = "  " * min(len(self._lists) - 1, MAX_INDENT)
            first, self._marker = indent + (self._marker or "  "), ""
            self._items.append(first + text.replace("\n", "\n" + indent + "  "))
        elif self._cells is not None:
            self._text.append(text + " ")
        else:
            self._outline.block(text)

    def _finish(self) -> None:
        """Hands on everything collected: the paragraph, the list, the table."""
        self._flush()
        if self._items:
            self._outline.block("\n".join(self._items))
        if self._rows:
            self._outline.block("\n".join(self._rows))
        self._items, self._rows = [], []
