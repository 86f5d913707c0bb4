"""Where code stands in a text: fenced blocks and inline spans, which filters must leave as they are.

The marks are those of CommonMark 0.31 (sections 4.5 and 6.1): a fence is a line of at least three backticks, closed by
a line of at least as many, or by the end of the text; an inline span stands between two runs of equally many backticks.
Deviation: an inline span does not run over a line break, since `retrieve.read.document` never writes one.

One pass with a table of run lengths: linear in the text, whatever it holds.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"[ \t]*(`{3,})([^`\n]*)$")
_RUN = re.compile("`+")


def fenced_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of the fenced blocks, with both fence lines and without the line break after the last."""
    return _scan(text)[0]


def code_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of fenced blocks and inline spans in order, backticks included."""
    fenced, inline = _scan(text)
    return sorted([*fenced, *inline])


def _scan(text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    fenced: list[tuple[int, int]] = []
    inline: list[tuple[int, int]] = []
    opened, ticks, offset = -1, 0, 0
    for line in text.split("\n"):
        mark = _FENCE.match(line) if "```" in line else None
        if opened >= 0:
            if mark and len(mark[1]) >= ticks and not mark[2].strip():
                fenced.append((opened, offset + len(line)))
                opened = -1
        elif mark:
            opened, ticks = offset, len(mark[1])
        elif "`" in line:
            inline += [(offset + start, offset + end) for start, end in _inline(line)]
        offset += len(line) + 1
    if opened >= 0:
        fenced.append((opened, len(text)))
    return fenced, inline


def _inline(line: str) -> list[tuple[int, int]]:
    runs = [(match.start(), match.end()) for match in _RUN.finditer(line)]
    following: dict[int, int] = {}  # run length -> number of the nearest later run of that length
    closing = [0] * len(runs)
    for number in range(len(runs) - 1, -1, -1):
        length = runs[number][1] - runs[number][0]
        closing[number] = following.get(length, -1)
        following[length] = number
    spans: list[tuple[int, int]] = []
    number = 0
    while number < len(runs):
        close = closing[number]
        if close >= 0:
            spans.append((runs[number][0], runs[close][1]))
        number = max(close, number) + 1
    return spans
