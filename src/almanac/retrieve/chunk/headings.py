"""Chunks along headings: a chunk stays within one section, and breaks where the text breaks.

A section that is too long is cut between paragraphs, then lines, sentences, words and at last characters, into parts of
even size; each part after the first repeats the last sentences of the one before. Neighbouring sections that are tiny
and lie under the same parent share a chunk, whose heading then names them all (``Path / Operation``).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from almanac.core.errors import AlmanacError
from almanac.data.sentences import sentence_spans
from almanac.retrieve.chunk.chunk import Chunk, chunk_id
from almanac.retrieve.read.document import Document, Section

Span = tuple[int, int]
Count = Callable[[str], int]

TINY = 8  # a section below max_tokens / TINY may share a chunk
_PARAGRAPH, _LINE, _WORD = (re.compile(pattern) for pattern in (r"\n\n+", r"\n", r"\s+"))
_BLOCK_END = ("`", "|", "-")  # a last line of code, table or list is no sentence to repeat


def chunk_document(
    document: Document, *, count_tokens: Count, max_tokens: int = 220, overlap_tokens: int = 30
) -> tuple[Chunk, ...]:
    """The chunks of ``document`` in reading order. Every character that is not white space is in at least one.

    Args:
        document: what a reader returned.
        count_tokens: the length of a text in the tokens of the model that will read it.
        max_tokens: the most that a chunk counts (a single character may count more).
        overlap_tokens: the most that a chunk repeats of the one before it.

    Raises:
        AlmanacError: the overlap leaves no room for new text.
    """
    if not 0 <= overlap_tokens < max_tokens:
        raise AlmanacError(
            f"A chunk of {max_tokens} tokens cannot repeat {overlap_tokens}",
            remedy="Choose an overlap from 0 up to less than the size of a chunk.",
        )
    text = document.text
    seen: Counter[tuple[tuple[str, ...], str]] = Counter()
    chunks: list[Chunk] = []
    for heading, start, end in _merged(document.sections, count_tokens, max_tokens):
        for left, right in _cut(text, (start, end), count_tokens, max_tokens, overlap_tokens):
            piece = text[left:right]
            occurrence = seen[heading, piece]
            seen[heading, piece] += 1
            identity = chunk_id(document.path, heading, text=piece, occurrence=occurrence)
            page = document.page_at(left)
            chunks.append(Chunk(identity, document.path, document.title, heading, piece, left, right, page))
    return tuple(chunks)


def _merged(sections: tuple[Section, ...], count: Count, max_tokens: int) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Heading, start and end of each section, runs of tiny siblings taken as one."""
    run: list[Section] = []
    used = 0
    for section in sections:
        if not section.text:
            continue
        tokens = count(section.text)
        tiny = tokens * TINY < max_tokens and bool(section.heading)
        if run and tiny and run[-1].heading[:-1] == section.heading[:-1] and (used + tokens) * 2 <= max_tokens:
            run.append(section)
            used += tokens
            continue
        if run:
            yield _joined(run)
            run = []
        if tiny:
            run, used = [section], tokens
        else:
            yield section.heading, section.start, section.end
    if run:
        yield _joined(run)


def _joined(run: list[Section]) -> tuple[tuple[str, ...], int, int]:
    names = dict.fromkeys(section.heading[-1] for section in run)
    return (*run[0].heading[:-1], " / ".join(names)), run[0].start, run[-1].end


def _cut(text: str, section: Span, count: Count, max_tokens: int, overlap_tokens: int) -> list[Span]:
    if count(text[slice(*section)]) <= max_tokens:
        return [section]
    budget = max_tokens - overlap_tokens
    units = list(_units(text, section, count, budget, 0))
    costs = [count(text[start:end]) for start, end in units]
    target = sum(costs) / math.ceil(sum(costs) / budget)
    parts: list[Span] = []
    first = 0
    while first < len(units):
        last, used = first + 1, costs[first]
        while last < len(units) and used < target and used + costs[last] <= budget:
            used += costs[last]
            last += 1
        while last > first + 1 and count(text[units[first][0] : units[last - 1][1]]) > budget:
            last -= 1
        parts.append((units[first][0], units[last - 1][1]))
        first = last
    limits = (overlap_tokens, max_tokens)
    return [parts[0], *(_overlapped(text, *pair, count, limits) for pair in itertools.pairwise(parts))]


def _units(text: str, span: Span, count: Count, budget: int, level: int) -> Iterator[Span]:
    """Pieces of at most ``budget`` tokens, cut as coarsely as that allows."""
    start, end = span
    if count(text[start:end]) <= budget or end - start == 1:
        yield span
        return
    pieces = _pieces(text, span, level)
    for piece in pieces:
        yield from _units(text, piece, count, budget, level + (level < 4))


def _pieces(text: str, span: Span, level: int) -> list[Span]:
    start, end = span
    if level == 4:
        middle = (start + end) // 2
        return [(start, middle), (middle, end)]
    if level == 2:
        return [(start + left, start + right) for left, right in sentence_spans(text[start:end])]
    breaks = (_PARAGRAPH, _LINE, None, _WORD)[level]
    assert breaks is not None
    pieces: list[Span] = []
    for match in breaks.finditer(text, start, end):
        if match.start() > start:
            pieces.append((start, match.start()))
        start = match.end()
    return [*pieces, (start, end)] if start < end else pieces


def _overlapped(text: str, before: Span, part: Span, count: Count, limits: Span) -> Span:
    """``part`` begun earlier, by the last whole sentences of ``before`` that fit the limits (overlap, chunk)."""
    start, end = part
    overlap_tokens, max_tokens = limits
    previous = text[slice(*before)]
    if overlap_tokens == 0 or previous.rpartition("\n")[2].lstrip().startswith(_BLOCK_END):
        return part
    for left, _ in reversed(sentence_spans(previous)[1:]):
        earlier = before[0] + left
        if count(text[earlier : before[1]]) > overlap_tokens or count(text[earlier:end]) > max_tokens:
            break
        start = earlier
    return start, end
