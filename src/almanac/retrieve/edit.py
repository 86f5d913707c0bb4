"""A document with parts of its text replaced: sections, offsets and pages are counted anew, exactly.

Changes are given in offsets of ``document.text``. What they leave standing keeps its order, its section and its page:
if the character at ``x`` stays and stands at ``y`` afterwards, ``page_at(y)`` is what ``page_at(x)`` was.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence

from almanac.data.filters.repair import Change
from almanac.retrieve.read.document import SEPARATOR, Document, Section


@dataclasses.dataclass(frozen=True)
class _Piece:
    """``text`` stands where characters ``[start, end)`` of the old text stood; ``kept`` if it is those characters."""

    start: int
    end: int
    text: str
    kept: bool


def with_changes(document: Document, changes: Sequence[Change]) -> Document:
    """``document`` after ``changes``, which are in order and apart from each other.

    Parts of a change that lie outside the sections (in the blank line between two) are ignored. White space at the ends
    of a changed section goes, and a section left without text stays only if it has a heading.
    """
    if not changes:
        return document
    sections: list[Section] = []
    moved: list[tuple[_Piece, int]] = []  # piece, where it begins in the new text
    end = number = 0
    for section in document.sections:
        while number < len(changes) and changes[number].end < section.start:
            number += 1
        pieces = _pieces(section, changes, number) if section.text else []
        text = "".join(piece.text for piece in pieces)
        if not text and not section.heading:
            continue
        start = end + len(SEPARATOR) if text and end else end
        end = start
        for piece in pieces:
            moved.append((piece, end))
            end += len(piece.text)
        sections.append(dataclasses.replace(section, text=text, start=start, end=end))
    pages = tuple(_page_start(offset, moved, end) for offset in document.pages)
    return dataclasses.replace(document, sections=tuple(sections), pages=pages)


def with_names(document: Document, change: Callable[[str], str]) -> Document:
    """``document`` with its title and every heading passed through ``change``; offsets do not move."""
    names = {name: change(name) for section in document.sections for name in section.heading}
    sections = tuple(
        dataclasses.replace(section, heading=tuple(names[name] for name in section.heading))
        for section in document.sections
    )
    return dataclasses.replace(document, title=change(document.title), sections=sections)


def _pieces(section: Section, changes: Sequence[Change], number: int) -> list[_Piece]:
    """The pieces of a section; the changes before ``number`` end before it."""
    pieces: list[_Piece] = []
    place = section.start
    while number < len(changes) and changes[number].start <= section.end:
        change = changes[number]
        number += 1
        start, end = max(change.start, section.start), min(change.end, section.end)
        if change.start < section.start or start > end:  # its replacement went to the section where it began
            place = max(place, end)
            continue
        pieces += [_kept(section, place, start), _Piece(start, end, change.replacement, False)]
        place = end
    if not pieces and place == section.start:
        return [_kept(section, section.start, section.end)]
    return _without_edges(section, [*pieces, _kept(section, place, section.end)])


def _kept(section: Section, start: int, end: int) -> _Piece:
    return _Piece(start, end, section.text[start - section.start : end - section.start], True)


def _without_edges(section: Section, pieces: list[_Piece]) -> list[_Piece]:
    pieces = [piece for piece in pieces if piece.text]
    while pieces and pieces[0].kept:
        bare = pieces[0].text.lstrip()
        pieces[0] = _kept(section, pieces[0].end - len(bare), pieces[0].end)
        if bare:
            break
        pieces.pop(0)
    while pieces and pieces[-1].kept:
        bare = pieces[-1].text.rstrip()
        pieces[-1] = _kept(section, pieces[-1].start, pieces[-1].start + len(bare))
        if bare:
            break
        pieces.pop()
    return pieces


def _page_start(offset: int, moved: list[tuple[_Piece, int]], length: int) -> int:
    """Where a page that began at ``offset`` begins now: at the first character left of it."""
    place = bisect.bisect_right(moved, offset, key=lambda item: item[0].end)
    if place == len(moved):
        return length
    piece, start = moved[place]
    if offset <= piece.start:
        return start
    return start + (offset - piece.start) if piece.kept else start + len(piece.text)
