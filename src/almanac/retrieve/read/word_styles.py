"""What the styles and numberings of a Word document say: which paragraphs are headings, lists or contents, what hides.

Source: ECMA-376 part 1, 17.7 (styles), 17.9 (numbering). Styles are based on each other; a circle is cut.
"""

from __future__ import annotations

import dataclasses
import re
from xml.etree.ElementTree import Element

_NAMESPACES = (
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "http://purl.oclc.org/ooxml/wordprocessingml/main",
)
_MAX_BASES = 20
_OFF = ("0", "false", "off")
_HEADING = re.compile(r"heading ([1-9])")
_WHITE = re.compile(r"f{6}", re.IGNORECASE)
MIN_HALF_POINTS = 4  # text smaller than two points is not for people


def word(tag: str) -> str:
    """The local name of an element or attribute of WordprocessingML, else the empty text."""
    namespace, _, name = tag[1:].partition("}")
    return name if namespace in _NAMESPACES else ""


def child(element: Element | None, *names: str) -> Element | None:
    """The first descendant along ``names``."""
    for name in names:
        if element is None:
            return None
        element = next((inner for inner in element if word(inner.tag) == name), None)
    return element


def value(element: Element | None, name: str = "val") -> str:
    """An attribute of WordprocessingML, empty where it or the element is missing."""
    if element is None:
        return ""
    return next((text for key, text in element.attrib.items() if word(key) == name), "")


def switched_on(properties: Element | None, name: str) -> bool | None:
    """Whether a property is on or off; None where nothing is said."""
    element = child(properties, name)
    return None if element is None else value(element).lower() not in _OFF


def shaded(properties: Element | None) -> bool:
    """Whether a run, paragraph or cell has a ground of its own colour."""
    return value(child(properties, "shd"), "fill").lower() not in ("", "auto", "ffffff")


def concealed(properties: Element | None, *, backed: bool = False) -> bool | None:
    """Whether run properties hide their text from people; None where they say nothing about it.

    ``backed`` tells that a coloured ground lies behind, on which white is visible.
    """
    hidden = switched_on(properties, "vanish")
    if hidden or switched_on(properties, "specVanish") or switched_on(properties, "webHidden"):
        return True
    size = value(child(properties, "sz"))
    if size.isdecimal() and int(size) < MIN_HALF_POINTS:
        return True
    white = _WHITE.fullmatch(value(child(properties, "color")))
    backed = backed or child(properties, "highlight") is not None or shaded(properties)
    return True if white and not backed else hidden


@dataclasses.dataclass(frozen=True)
class Style:
    """``level`` is that of a heading (1 to 9), or 0; ``numbering`` a pair (list, its level)."""

    level: int = 0
    title: bool = False
    contents: bool = False
    hidden: bool = False
    numbering: tuple[str, int] | None = None


class Styles:
    """The styles of a document by id."""

    def __init__(self, root: Element | None) -> None:
        styles = root if root is not None else []
        self._elements = {value(each, "styleId"): each for each in styles if word(each.tag) == "style"}
        self._known: dict[str, Style] = {}

    def __getitem__(self, name: str) -> Style:
        if name not in self._known:
            self._known[name] = self._resolve(name)
        return self._known[name]

    def _resolve(self, name: str) -> Style:
        """The style with what it takes over from those it is based on."""
        level, hidden, numbering = 0, None, None
        first = value(child(self._elements.get(name), "name")).lower()
        for _ in range(_MAX_BASES):
            element = self._elements.get(name)
            if element is None:
                break
            properties = child(element, "pPr")
            level = level or outline_level(properties) or _named_level(value(child(element, "name")))
            hidden = concealed(child(element, "rPr")) if hidden is None else hidden
            numbering = numbering or list_of(properties)
            name = value(child(element, "basedOn"))
        return Style(level, first == "title", first.startswith("toc"), bool(hidden), numbering)


def outline_level(properties: Element | None) -> int:
    """The heading level that paragraph properties give, or 0."""
    level = value(child(properties, "outlineLvl"))
    return int(level) + 1 if level.isdecimal() and int(level) < 9 else 0


def _named_level(name: str) -> int:
    match = _HEADING.fullmatch(name.lower())
    return int(match[1]) if match else 0


def list_of(properties: Element | None) -> tuple[str, int] | None:
    """The list that a paragraph is an item of, and its level from 0."""
    numbering = child(properties, "numPr")
    if numbering is None:
        return None
    level = value(child(numbering, "ilvl"))
    return value(child(numbering, "numId")), min(int(level), 8) if level.isdecimal() else 0


class Numbering:
    """Counts the items of numbered lists."""

    def __init__(self, root: Element | None) -> None:
        parts = list(root) if root is not None else []
        abstract = {value(each, "abstractNumId"): each for each in parts if word(each.tag) == "abstractNum"}
        self._formats: dict[tuple[str, int], str] = {}
        for each in parts:
            if word(each.tag) == "num":
                levels = abstract.get(value(child(each, "abstractNumId")))
                for level in levels if levels is not None else []:
                    if word(level.tag) == "lvl" and value(level, "ilvl").isdecimal():
                        key = value(each, "numId"), int(value(level, "ilvl"))
                        self._formats[key] = value(child(level, "numFmt"))
        self._counts: dict[tuple[str, int], int] = {}

    def marker(self, item: tuple[str, int]) -> str:
        """What stands before the next item of this list and level: a bullet or its number; empty if it is no list."""
        name, level = item
        if name in ("", "0"):
            return ""
        if self._formats.get(item, "bullet") in ("bullet", "none"):
            return "- "
        for deeper in range(level + 1, 9):
            self._counts.pop((name, deeper), None)
        self._counts[item] = self._counts.get(item, 0) + 1
        return f"{self._counts[item]}. "
