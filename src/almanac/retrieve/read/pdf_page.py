"""What stands on a page of a PDF: runs of text with their boxes, and what a person would not see left out.

PDFium gives characters in the order of the file. They are gathered into runs: characters on one line without a wide gap
between them. Hidden text is text that is invisible, transparent, off the page, smaller than two points or white where
nothing dark lies behind it. An invisible layer over a page-wide image is kept: that is how scanned pages carry their
text. Units are points, y grows upwards.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

GAP = 1.4  # ems between two characters that belong to different columns or cells
MIN_SIZE = 2.0  # points
MAX_OBJECTS = 5_000  # of a page that are looked at as backgrounds
HYPHEN = "\x02"  # PDFium's mark for a hyphen at the end of a line
_INVISIBLE_MODES = (3, 7)
_PATH, _IMAGE, _SHADING, _FORM = 2, 3, 4, 5  # kinds of page objects
_WHITE = 250
_BOLD_WEIGHT = 600
_SCAN_SHARE = 0.5  # of the page that an image covers


@dataclasses.dataclass(slots=True)
class Run:
    """Text on one line; ``size`` is that of its font on the page."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float
    bold: bool


@dataclasses.dataclass
class PageText:
    """``aside`` is text at another angle than the page's own; ``hidden`` counts characters left out."""

    width: float
    height: float
    runs: list[Run]
    aside: list[str]
    images: bool
    hidden: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Style:
    size: float
    bold: bool
    quarter: int  # turns of 90 degrees against the clock (PDFium's angles go with it)
    white: bool
    invisible: bool


_WHITE_SPACE = frozenset((0, 9, 10, 13, 32, 0xA0))

Box = tuple[float, float, float, float]  # left, bottom, right, top


def page_text(raw: Any, page: Any) -> PageText:
    """The text of an opened page; ``raw`` is PDFium's binding."""
    frame = raw.FS_RECTF()
    raw.FPDF_GetPageBoundingBox(page, frame)
    bounds = (frame.left, frame.bottom, frame.right, frame.top)
    handle = raw.FPDFText_LoadPage(page)
    if not handle:
        return PageText(bounds[2] - bounds[0], bounds[3] - bounds[1], [], [], False, 0)
    try:
        reader = _Reader(raw, page, handle, bounds)
        return reader.read()
    finally:
        raw.FPDFText_ClosePage(handle)


@functools.cache
def _fast_calls(raw: Any) -> tuple[Any, Any, Any]:
    """The three calls made for every character, with addresses as plain integers: half the time of the binding's."""
    address, integer = ctypes.c_void_p, ctypes.c_int

    def plain(call: Any, result: Any, *arguments: Any) -> Any:
        return ctypes.PYFUNCTYPE(result, *arguments)(ctypes.cast(call, address).value)

    return (
        plain(raw.FPDFText_GetUnicode, ctypes.c_uint, address, integer),
        plain(raw.FPDFText_GetLooseCharBox, integer, address, integer, address),
        plain(raw.FPDFText_GetTextObject, address, address, integer),
    )


class _Reader:
    """Goes through the characters of one page."""

    def __init__(self, raw: Any, page: Any, handle: Any, bounds: Box) -> None:
        self._raw = raw
        self._page = page
        self._handle = handle
        self._bounds = bounds
        self._styles: dict[int | None, _Style] = {}
        self._backgrounds: list[tuple[Box, bool]] | None = None

    def read(self) -> PageText:
        turned: dict[int, list[Run]] = {}
        hidden = 0
        gatherers: dict[int, _Gatherer] = {}
        for code, style, box in self._characters():
            if style is None or box is None:
                for gatherer in gatherers.values():
                    gatherer.space(code)
            elif self._hides(style, box):
                hidden += 1
            else:
                gatherer = gatherers.get(style.quarter)
                if gatherer is None:
                    gatherer = gatherers[style.quarter] = _Gatherer(turned.setdefault(style.quarter, []))
                gatherer.add(chr(code), style, _turned(box, style.quarter) if style.quarter else box)
        for gatherer in gatherers.values():
            gatherer.end()
        main = max(turned, key=lambda quarter: sum(len(run.text) for run in turned[quarter]), default=0)
        aside = [run.text for quarter, runs in turned.items() if quarter != main for run in runs]
        left, bottom, right, top = _turned(self._bounds, main)
        runs = [_moved(run, left, bottom) for run in turned.get(main, [])]
        images = any(is_image for _, is_image in self._behind())
        return PageText(right - left, top - bottom, runs, aside, images, hidden)

    def _characters(self) -> Iterator[tuple[int, _Style | None, Box | None]]:
        """Each character with its style and box; white space has neither."""
        unicode_of, box_of, object_of = _fast_calls(self._raw)
        handle = ctypes.cast(self._handle, ctypes.c_void_p).value
        box = self._raw.FS_RECTF()
        place = ctypes.addressof(box)
        styles = self._styles
        for index in range(max(0, self._raw.FPDFText_CountChars(self._handle))):
            code = unicode_of(handle, index)
            if code in _WHITE_SPACE:
                yield code, None, None
            elif code < 0x110000 and not 0xD800 <= code < 0xE000 and box_of(handle, index, place):
                low, high = box.bottom, box.top
                found = (box.left, low, box.right, high) if low <= high else (box.left, high, box.right, low)
                key = object_of(handle, index)
                style = styles.get(key)
                if style is None:
                    style = styles[key] = self._look(key, index, found)
                yield code, style, found

    def _look(self, address: int | None, index: int, box: Box) -> _Style:
        raw, handle = self._raw, self._handle
        pointer = raw.FPDFText_GetTextObject(handle, index)
        matrix = raw.FS_MATRIX()
        scale = math.hypot(matrix.c, matrix.d) if raw.FPDFText_GetMatrix(handle, index, matrix) else 1.0
        angle = raw.FPDFText_GetCharAngle(handle, index)
        quarter = -round(angle / (math.pi / 2)) % 4 if angle >= 0 and math.isfinite(angle) else 0
        height = box[3] - box[1] if quarter % 2 == 0 else box[2] - box[0]
        size = raw.FPDFText_GetFontSize(handle, index) * scale
        if not height / 3 <= size <= height * 3:  # scaled once more by a form around it
            size = height / 1.2
        red, green, blue, alpha = (ctypes.c_uint(255) for _ in range(4))
        known = raw.FPDFText_GetFillColor(handle, index, red, green, blue, alpha)
        white = bool(known) and min(red.value, green.value, blue.value) >= _WHITE
        mode = raw.FPDFTextObj_GetTextRenderMode(pointer) if address else 0
        return _Style(
            size, self._is_bold(index), quarter, white, mode in _INVISIBLE_MODES or (bool(known) and not alpha.value)
        )

    def _is_bold(self, index: int) -> bool:
        name = ctypes.create_string_buffer(128)
        flags = ctypes.c_int(0)
        length = self._raw.FPDFText_GetFontInfo(self._handle, index, name, len(name), flags)
        if 0 < length <= len(name) and any(word in name.value.lower() for word in (b"bold", b"black", b"heavy")):
            return True
        return self._raw.FPDFText_GetFontWeight(self._handle, index) >= _BOLD_WEIGHT

    def _hides(self, style: _Style, box: Box) -> bool:
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        if style.size < MIN_SIZE or not _holds(self._bounds, x, y):
            return True
        if style.invisible:
            page_area = _area(self._bounds)
            return not any(image and _area(each) > _SCAN_SHARE * page_area for each, image in self._behind())
        return style.white and not any(_holds(each, x, y) for each, _ in self._behind())

    def _behind(self) -> list[tuple[Box, bool]]:
        """Boxes of images and of what is filled with a colour; whether each is an image."""
        if self._backgrounds is None:
            self._backgrounds = []
            count = self._raw.FPDFPage_CountObjects(self._page)
            for index in range(min(count, MAX_OBJECTS)):
                self._add_background(self._raw.FPDFPage_GetObject(self._page, index), 2)
        return self._backgrounds

    def _add_background(self, item: Any, depth: int) -> None:
        raw = self._raw
        assert self._backgrounds is not None
        kind = raw.FPDFPageObj_GetType(item)
        if kind == _FORM and depth:
            for index in range(min(raw.FPDFFormObj_CountObjects(item), MAX_OBJECTS - len(self._backgrounds))):
                self._add_background(raw.FPDFFormObj_GetObject(item, index), depth - 1)
        if kind not in (_PATH, _IMAGE, _SHADING) or len(self._backgrounds) >= MAX_OBJECTS:
            return
        if kind == _PATH and not self._is_filled(item):
            return
        sides = [ctypes.c_float() for _ in range(4)]
        if raw.FPDFPageObj_GetBounds(item, *sides):
            left, bottom, right, top = (side.value for side in sides)
            self._backgrounds.append(((left, bottom, right, top), kind == _IMAGE))

    def _is_filled(self, path: Any) -> bool:
        raw = self._raw
        fill, stroke = ctypes.c_int(0), ctypes.c_int(0)
        red, green, blue, alpha = (ctypes.c_uint(255) for _ in range(4))
        drawn = raw.FPDFPath_GetDrawMode(path, fill, stroke) and fill.value
        known = raw.FPDFPageObj_GetFillColor(path, red, green, blue, alpha)
        return bool(drawn and known) and alpha.value > 0 and min(red.value, green.value, blue.value) < _WHITE


class _Gatherer:
    """Builds runs from characters of one direction."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs
        self._letters: list[str] = []
        self._box: Box = (0, 0, 0, 0)
        self._last: Box = (0, 0, 0, 0)
        self._styles: dict[_Style, int] = {}
        self._space = False

    def space(self, code: int) -> None:
        if code in (10, 13):
            self.end()
        self._space = True

    def add(self, letter: str, style: _Style, box: Box) -> None:
        if self._letters and self._breaks(box, style.size):
            self.end()
        if self._letters:
            if self._space:
                self._letters.append(" ")
            left, bottom, right, top = self._box
            if box[2] > right or box[1] < bottom or box[3] > top or box[0] < left:
                self._box = (min(left, box[0]), min(bottom, box[1]), max(right, box[2]), max(top, box[3]))
        else:
            self._box = box
        self._letters.append(letter)
        self._styles[style] = self._styles.get(style, 0) + 1
        self._last = box
        self._space = False

    def end(self) -> None:
        """Closes the run being gathered."""
        if self._letters:
            text = "".join(self._letters)
            sizes: Counter[float] = Counter()
            bold = 0
            for style, count in self._styles.items():
                sizes[round(style.size * 2) / 2] += count
                bold += count if style.bold else -count
            self._runs.append(Run(text, *self._box, max(sizes, key=lambda size: sizes[size]), bold > 0))
        self._letters = []
        self._styles = {}
        self._space = False

    def _breaks(self, box: Box, size: float) -> bool:
        last = self._last
        if last[1] != box[1] or last[3] != box[3]:
            overlap = min(last[3], box[3]) - max(last[1], box[1])
            if overlap < 0.4 * min(last[3] - last[1], box[3] - box[1]):
                return True
        return box[0] - last[2] > GAP * size or box[0] < last[0] - size


def _turned(box: Box, quarter: int) -> Box:
    """The box on a page turned so that its text lies upright."""
    left, bottom, right, top = box
    if quarter == 1:
        return bottom, -right, top, -left
    if quarter == 2:
        return -right, -top, -left, -bottom
    if quarter == 3:
        return -top, left, -bottom, right
    return box


def _moved(run: Run, left: float, bottom: float) -> Run:
    return dataclasses.replace(
        run, left=run.left - left, right=run.right - left, bottom=run.bottom - bottom, top=run.top - bottom
    )


def _holds(box: Box, x: float, y: float) -> bool:
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
