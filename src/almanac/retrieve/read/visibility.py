"""Which parts of an HTML page a person would see.

Text that is hidden from people but not from machines is a way to give orders to a model, so an element hidden by
attribute or inline style is left out with all its content (reliability R27). Style sheets are not evaluated: text
hidden by a class alone is kept, as it would be by any reader without a layout engine.
"""

from __future__ import annotations

import re
from collections import Counter

VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())
LEFT_OUT = frozenset(
    "script style nav footer template noscript svg math iframe object head select datalist audio video canvas".split()
)
_SIBLINGS = frozenset("li p td th tr dt dd option".split())  # an opening tag closes an open one of the same name
_LENGTH = re.compile(r"(-?\d*\.?\d+)")
_WHITES = frozenset("white #fff #ffffff #ffff #ffffffff rgb(255,255,255) rgba(255,255,255,1)".split())


class Visibility:
    """The open elements of a page, fed tag by tag; `hidden` tells whether text at this point is seen by nobody."""

    def __init__(self) -> None:
        self.left_out = 0  # elements hidden by attribute or style (not the scripts, menus and footers of every page)
        self._open: list[tuple[str, bool, str]] = []  # name, hidden or inside hidden, background colour
        self._names: Counter[str] = Counter()

    @property
    def hidden(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def inside(self, name: str) -> bool:
        """Whether an element called ``name`` is open."""
        return self._names[name] > 0

    def start(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        """An opening tag (names in lower case)."""
        if name in VOID:
            return
        if name in _SIBLINGS and self._open and self._open[-1][0] == name:
            self._pop()
        background = self._open[-1][2] if self._open else ""
        values = {key: (value or "") for key, value in attributes}
        style = _style(values)
        background = style.get("background-color") or style.get("background") or background
        concealed = _concealed(name, values, style, background)
        if concealed and not self.hidden:
            self.left_out += 1
        self._open.append((name, self.hidden or concealed or name in LEFT_OUT, background))
        self._names[name] += 1

    def end(self, name: str) -> None:
        """A closing tag; one that closes nothing is ignored."""
        if not self._names[name]:
            return
        while self._open[-1][0] != name:
            self._pop()
        self._pop()

    def _pop(self) -> None:
        self._names[self._open.pop()[0]] -= 1


def _style(values: dict[str, str]) -> dict[str, str]:
    """The declarations of an inline style, then the older colour attributes."""
    style: dict[str, str] = {}
    first, *pieces = values.get("style", "").lower().split("/*")
    text = first + "".join(piece.partition("*/")[2] for piece in pieces)
    for declaration in text.split(";"):
        key, _, value = declaration.partition(":")
        style[key.strip()] = " ".join(value.replace("!important", "").split()).replace(", ", ",")
    for key, attribute in (("background-color", "bgcolor"), ("color", "color")):
        if attribute in values:
            style.setdefault(key, values[attribute].lower().strip())
    return style


def _concealed(name: str, values: dict[str, str], style: dict[str, str], background: str) -> bool:
    if "hidden" in values or (name == "dialog" and "open" not in values):
        return True
    if style.get("display") == "none" or style.get("visibility") in ("hidden", "collapse"):
        return True
    if _small(style.get("font-size"), 2) or _small(style.get("opacity"), 0.1):
        return True
    if _small(style.get("max-height"), 0) or (
        style.get("overflow") == "hidden" and (_small(style.get("height"), 1) or _small(style.get("width"), 1))
    ):
        return True
    if any(_length(style.get(side), 0) <= -999 for side in ("left", "top", "right", "text-indent", "margin-left")):
        return True
    if style.get("transform", "").startswith("scale(0") or style.get("clip", "").startswith(("rect(0", "rect(1px")):
        return True
    return _same_colour(style.get("color", ""), background)


def _same_colour(colour: str, background: str) -> bool:
    if not colour:
        return False
    if colour == "transparent" or (colour.startswith(("rgba(", "hsla(")) and colour.endswith((",0)", ",0.0)", "/ 0)"))):
        return True
    white_page = not background or background.split()[0] in _WHITES
    return colour == background or (colour in _WHITES and white_page)


def _length(value: str | None, default: float) -> float:
    """The number a length starts with, whatever its unit."""
    match = _LENGTH.match(value) if value else None
    return float(match[1]) if match else default


def _small(value: str | None, limit: float) -> bool:
    """Whether a length is given and at most ``limit``; relative units (em, rem, %) count when zero only."""
    if not value:
        return False
    size = _length(value, limit + 1)
    return size <= 0 or (size <= limit and not value.endswith(("em", "%", "vw", "vh")))
