"""Lines that many documents share: menus, footers, licence notes. The first copy stays, the others go.

Pomikálek 2011 ("Removing Boilerplate and Duplicate Content from Web Corpora", thesis, Masaryk University) and the line
rule of CCNet (Wenzek et al. 2019, arXiv 1911.00359, section 3.1): what stands word for word in many documents of one
collection belongs to none of them. The measure is document frequency: a line is boilerplate if at least
``min_documents`` documents and at least ``min_share`` of all hold it.

Deviations, each for the sake of facts. The first document with such a line keeps it, so no fact leaves the collection
(CCNet drops every copy). Numbers are compared as they stand: ``Price: 10`` and ``Price: 20`` are two lines. Inside a
paragraph of prose a line goes only with the whole paragraph or from its edge, so no sentence is torn; items of a list
go one by one. Code blocks and table rows stay: ``import os`` and a table's header repeat for good reason. A document
that would lose more than ``max_removed`` of its characters is left whole.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from almanac.core.value import Value
from almanac.data.dedup.exact import text_digest
from almanac.data.filters.code import fenced_spans

_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s")
_LETTER = re.compile(r"[^\W\d_]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoilerplateRule(Value):
    """From which document frequency a line is boilerplate, and how much of one document may go."""

    min_documents: int = 5
    min_share: float = 0.3
    min_characters: int = 4
    max_removed: float = 0.5


@dataclasses.dataclass(frozen=True)
class SharedLine:
    """A line that ``documents`` documents hold; text ``first`` is the one that keeps it."""

    digest: str
    line: str
    documents: int
    first: int


@dataclasses.dataclass(frozen=True)
class Removal:
    """What one text loses: whole-line ``spans`` in order, or nothing and the share that was ``refused``."""

    spans: tuple[tuple[int, int], ...] = ()
    lines: tuple[str, ...] = ()
    refused: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Line:
    start: int
    end: int  # without the line break
    text: str
    eligible: bool


def shared_lines(texts: Sequence[str], *, rule: BoilerplateRule) -> tuple[SharedLine, ...]:
    """The boilerplate of a collection, in the order of first appearance."""
    seen: dict[str, tuple[str, int]] = {}
    frequency: dict[str, int] = {}
    for index, text in enumerate(texts):
        digests = {text_digest(line.text): line.text for line in _lines(text, rule) if line.eligible}
        for digest, line in digests.items():
            seen.setdefault(digest, (line.strip(), index))
            frequency[digest] = frequency.get(digest, 0) + 1
    least = max(rule.min_documents, rule.min_share * len(texts))
    return tuple(
        SharedLine(digest, line, frequency[digest], first)
        for digest, (line, first) in seen.items()
        if frequency[digest] >= least
    )


def removal(text: str, digests: frozenset[str], *, rule: BoilerplateRule) -> Removal:
    """What leaves ``text`` if the lines of these digests are boilerplate.

    Spans cover whole lines with a line break, and the blank lines that a removed paragraph leaves behind, so cutting
    them out leaves paragraphs one blank line apart.
    """
    lines = _lines(text, rule)
    gone = [line.eligible and text_digest(line.text) in digests for line in lines]
    _keep_sentences_whole(lines, gone)
    letters = sum(len(line.text) for line in lines)
    lost = sum(len(line.text) for line, flag in zip(lines, gone, strict=True) if flag)
    if not lost:
        return Removal()
    if lost > rule.max_removed * letters:
        return Removal(refused=lost / letters)
    quoted = tuple(line.text.strip() for line, flag in zip(lines, gone, strict=True) if flag)
    _take_blank_lines(lines, gone)
    return Removal(_spans(lines, gone, len(text)), quoted)


def _lines(text: str, rule: BoilerplateRule) -> list[_Line]:
    fences = fenced_spans(text)
    lines: list[_Line] = []
    offset = number = 0
    for line in text.split("\n"):
        end = offset + len(line)
        while number < len(fences) and fences[number][1] < offset:
            number += 1
        in_code = number < len(fences) and fences[number][0] <= offset < fences[number][1]
        stripped = line.strip()
        words = len(stripped) >= rule.min_characters and _LETTER.search(stripped)
        lines.append(_Line(offset, end, line, bool(words) and not in_code and not stripped.startswith("|")))
        offset = end + 1
    return lines


def _keep_sentences_whole(lines: list[_Line], gone: list[bool]) -> None:
    """Unmarks lines in the midst of a paragraph of prose."""
    start = 0
    for end in range(len(lines) + 1):
        if end < len(lines) and lines[end].text.strip():
            continue
        kept = [place for place in range(start, end) if not gone[place]]
        for place in range(kept[0], kept[-1]) if kept else ():
            gone[place] = gone[place] and _ITEM.match(lines[place].text) is not None
        start = end + 1


def _take_blank_lines(lines: list[_Line], gone: list[bool]) -> None:
    """Marks the blank lines after each paragraph that goes as a whole, or before it at the end of the text."""
    start = 0
    for end in range(len(lines) + 1):
        if end < len(lines) and lines[end].text.strip():
            continue
        if start < end and all(gone[start:end]):
            place = end
            while place < len(lines) and not lines[place].text.strip():
                gone[place] = True
                place += 1
        start = end + 1
    place = len(lines) - 1
    while place >= 0 and (gone[place] or not lines[place].text.strip()):
        gone[place] = True
        place -= 1


def _spans(lines: list[_Line], gone: list[bool], length: int) -> tuple[tuple[int, int], ...]:
    spans: list[tuple[int, int]] = []
    for place, (line, flag) in enumerate(zip(lines, gone, strict=True)):
        if not flag:
            continue
        start, end = line.start, min(line.end + 1, length)
        if place and all(gone[place:]) and not gone[place - 1]:
            start -= 1  # nothing follows: the break before it goes too
        if spans and spans[-1][1] >= start:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return tuple(spans)
