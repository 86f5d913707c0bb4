"""Word documents (DOCX): headings, paragraphs, lists, tables and footnotes, read from the file's own XML.

What a reader of the printed page would not see is left out and noted: hidden, white and tiny text, deletions that are
tracked, comments. Tables of contents, page headers and footers are left out as well. Word fixes pages only when it
prints, so the document has none.

Source: ECMA-376 (Office Open XML) part 1, 11 (package), 17 (WordprocessingML).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from almanac.core.errors import FileFormatError
from almanac.retrieve.read.document import MAX_INDENT, Outline, Reading
from almanac.retrieve.read.word_styles import (
    Numbering,
    Style,
    Styles,
    child,
    concealed,
    list_of,
    outline_level,
    shaded,
    value,
    word,
)
from almanac.retrieve.read.xml import MAX_BYTES as MAX_XML_BYTES
from almanac.retrieve.read.xml import local_name, parse_xml
from almanac.retrieve.read.zipped import Box

SUFFIXES = (".docx",)
MAX_BYTES = 64 * 2**20

_RELATIONS = "_rels/.rels"
_PROPERTIES = "docProps/core.xml"
_OLD_WORD = b"\xd0\xcf\x11\xe0"  # the container of encrypted and of older Office files
_WRAPPERS = frozenset("ins moveTo sdt sdtContent smartTag customXml hyperlink fldSimple dir bdo ruby rubyBase".split())
_SPACES = {"tab": " ", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "ptab": " "}
_REMEDY = "Save it again as a Word document (.docx)."


def read(data: bytes, path: str) -> Reading:
    """The document in a DOCX file.

    Raises:
        FileFormatError: no DOCX, encrypted, or larger than the limits of zip and XML allow.
    """
    if data.startswith(_OLD_WORD):
        raise FileFormatError(f"{path} is encrypted or in the format of old Word", remedy=_REMEDY)
    box = Box(data, path)
    main = _main_part(box, path)
    folder = posixpath.dirname(main)
    document = _part(box, path, main)
    body = child(document, "body")
    if body is None:
        raise FileFormatError(f"{path} is no Word document", remedy=_REMEDY)
    outline = Outline()
    if _PROPERTIES in box:
        properties = _part(box, path, _PROPERTIES)
        titles = (each.text or "" for each in properties or () if local_name(each.tag) == "title")
        outline.title(next(titles, ""))
    writer = _Writer(
        outline,
        Styles(_part(box, path, posixpath.join(folder, "styles.xml"))),
        Numbering(_part(box, path, posixpath.join(folder, "numbering.xml"))),
        _part(box, path, posixpath.join(folder, "footnotes.xml")),
    )
    writer.take(body)
    writer.end_list()
    return outline.build(path, hashlib.sha256(data).hexdigest(), notes=writer.notes())


def _part(box: Box, path: str, name: str) -> Element | None:
    if name not in box:
        return None
    return parse_xml(box.read(name, max_bytes=MAX_XML_BYTES), f"{path}/{name}")


def _main_part(box: Box, path: str) -> str:
    """The name of the part that holds the text."""
    relations = _part(box, path, _RELATIONS)
    for relation in relations if relations is not None else ():
        if relation.get("Type", "").endswith("/officeDocument"):
            name = posixpath.normpath(relation.get("Target", "").lstrip("/"))
            if name in box:
                return name
    raise FileFormatError(f"{path} is no Word document", remedy=_REMEDY)


class _Writer:
    """Walks through the body and feeds an outline."""

    def __init__(self, outline: Outline, styles: Styles, numbering: Numbering, footnotes: Element | None) -> None:
        self._outline = outline
        self._styles = styles
        self._numbering = numbering
        self._footnotes = {
            value(note, "id"): note
            for note in (footnotes if footnotes is not None else ())
            if word(note.tag) == "footnote"
        }
        self._hidden = 0
        self._deleted = 0
        self._contents = 0
        self._backed = False  # whether the paragraph or cell being read has a coloured ground
        self._items: list[str] = []
        self._references: list[str] = []  # footnotes of the paragraph being read
        self._noted = 0

    def notes(self) -> tuple[str, ...]:
        told = (
            (self._hidden, "removed {} hidden pieces of text"),
            (self._deleted, "left out {} tracked deletions"),
            (self._contents, "left out a table of contents of {} lines"),
        )
        return tuple(note.format(count) for count, note in told if count)

    def take(self, parent: Element) -> None:
        """Adds the paragraphs and tables in ``parent``."""
        for element in _blocks(parent):
            if word(element.tag) == "p":
                self._paragraph(element)
            else:
                self.end_list()
                self._outline.block("\n".join(self._rows(element)))
                self._end_notes()

    def end_list(self) -> None:
        """Hands on the items collected."""
        if self._items:
            self._outline.block("\n".join(self._items))
            self._items = []

    def _paragraph(self, element: Element) -> None:
        properties = child(element, "pPr")
        style = self._styles[value(child(properties, "pStyle"))]
        text = self._text(element, style)
        if not text.strip():
            return
        level = outline_level(properties) or style.level
        item = list_of(properties) or style.numbering
        marker = self._numbering.marker(item) if item and not level else ""
        if style.contents:
            self._contents += 1
        elif level or style.title:
            self.end_list()
            if style.title:
                self._outline.title(text)
            self._outline.heading(level or 1, text)
        elif marker and item:
            indent = "  " * min(item[1], MAX_INDENT)
            self._items.append(f"{indent}{marker}" + text.strip().replace("\n", f"\n{indent}  "))
        else:
            self.end_list()
            self._outline.block(text)
        if not self._items:
            self._end_notes()

    def _end_notes(self) -> None:
        """Adds the footnotes that the last block refers to."""
        references, self._references = self._references, []
        for name in references:
            note = self._footnotes.pop(name, None)
            if note is not None:
                text = " ".join(self._text(each, Style()) for each in _blocks(note) if word(each.tag) == "p")
                if text.strip():
                    self._noted += 1
                    self._outline.block(f"Note {self._noted}: {' '.join(text.split())}")

    def _rows(self, table: Element) -> Iterator[str]:
        for row in _inside(table, "tr"):
            cells = [" ".join(self._cell(cell).split()).replace("|", "/") for cell in _inside(row, "tc")]
            if any(cells):
                yield f"| {' | '.join(cells)} |"

    def _cell(self, cell: Element) -> str:
        """The text of a cell; a table in it is read row by row."""
        parts = []
        around, self._backed = self._backed, self._backed or shaded(child(cell, "tcPr"))
        for element in _blocks(cell):
            if word(element.tag) == "p":
                style = self._styles[value(child(element, "pPr", "pStyle"))]
                parts.append(self._text(element, style))
            else:
                parts += (row.strip("| ") for row in self._rows(element))
        self._backed = around
        return " ".join(parts)

    def _text(self, paragraph: Element, style: Style) -> str:
        around, self._backed = self._backed, self._backed or shaded(child(paragraph, "pPr"))
        text = "".join(self._pieces(paragraph, style.hidden))
        self._backed = around
        return text

    def _pieces(self, parent: Element, hidden: bool) -> Iterator[str]:
        """The visible text of runs, in order; ``hidden`` is what their paragraph's style says."""
        for element in parent:
            name = word(element.tag)
            if name == "r":
                yield from self._run(element, hidden)
            elif name in _WRAPPERS:
                yield from self._pieces(element, hidden)
            elif name in ("del", "moveFrom"):
                self._deleted += 1
            elif local_name(element.tag) in ("oMath", "oMathPara"):
                yield "".join(each.text or "" for each in element.iter() if local_name(each.tag) == "t")

    def _run(self, run: Element, hidden: bool) -> Iterator[str]:
        properties = child(run, "rPr")
        own = concealed(properties, backed=self._backed)
        if own is None:
            style = value(child(properties, "rStyle"))
            own = self._styles[style].hidden or None if style else None
        if hidden if own is None else own:
            self._hidden += any(word(each.tag) == "t" and each.text for each in run)
            return
        for element in run:
            name = word(element.tag)
            if name == "t":
                yield element.text or ""
            elif name in _SPACES:
                yield _SPACES[name]
            elif name == "footnoteReference":
                self._references.append(value(element, "id"))
            elif name in ("drawing", "pict") or local_name(element.tag) == "AlternateContent":
                yield from self._text_box(element)

    def _text_box(self, drawing: Element) -> Iterator[str]:
        """The text of a box that floats beside the paragraph; of two forms of one box, the first."""
        if local_name(drawing.tag) == "AlternateContent":
            drawing = drawing[0] if len(drawing) else drawing
        for content in drawing.iter():
            if word(content.tag) == "txbxContent":
                for paragraph in _blocks(content):
                    if word(paragraph.tag) == "p":
                        style = self._styles[value(child(paragraph, "pPr", "pStyle"))]
                        yield f"\n{self._text(paragraph, style)}"


def _blocks(parent: Element) -> Iterator[Element]:
    """The paragraphs and tables in ``parent``, also those in content controls."""
    for element in parent:
        name = word(element.tag)
        if name in ("p", "tbl"):
            yield element
        elif name in _WRAPPERS:
            yield from _blocks(element)


def _inside(parent: Element, name: str) -> Iterator[Element]:
    """The children called ``name``, also those in content controls."""
    for element in parent:
        if word(element.tag) == name:
            yield element
        elif word(element.tag) in _WRAPPERS:
            yield from _inside(element, name)
