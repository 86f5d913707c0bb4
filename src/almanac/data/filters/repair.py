"""Text that was decoded wrongly on its way here, put right: ``schÃ¶n`` is ``schön`` again.

By ftfy (Speer 2019, "ftfy: fixes text for you", doi 10.5281/zenodo.2591652): UTF-8 that was read as Latin-1 or
Windows-1252, once or twice over, is found by how improbable its characters are beside each other, and decoded again.
Only what repairs is switched on: mojibake, C1 control characters, broken surrogate pairs, terminal escapes and the
Latin ligatures that PDF files leave behind. What merely tidies is off, since answers quote their source word for word:
quotation marks stay curled, full-width characters wide, ``&amp;`` as it stands.

Code is left alone (`code`): a page on encodings shows mojibake on purpose. The repair needs the extra ``docs``; without
it the text is returned unchanged and a note says so, because an unrepaired text is still that text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from almanac.data.filters.code import code_spans

ABSENT = "broken characters were not looked for: the repair needs the extra 'docs' (pip install 'almanac-lm[docs]')"
MAX_LINE = 100_000  # characters repaired at once; longer lines are cut, at worst through one broken character


@dataclasses.dataclass(frozen=True)
class Change:
    """``text[start:end]`` is to be replaced by ``replacement``."""

    start: int
    end: int
    replacement: str


@dataclasses.dataclass(frozen=True)
class Repaired:
    """The repaired text, the changes that lead to it (in order, apart from each other), and a note if it could
    not be looked for."""

    text: str
    changes: tuple[Change, ...] = ()
    note: str = ""


def apply_changes(text: str, changes: tuple[Change, ...]) -> str:
    """``text`` with every change made; changes must be in order and must not overlap."""
    pieces: list[str] = []
    end = 0
    for change in changes:
        pieces += [text[end : change.start], change.replacement]
        end = change.end
    return "".join([*pieces, text[end:]])


def repair(text: str) -> Repaired:
    """``text`` with broken characters mended outside code; each change is as narrow as its line allows."""
    fix = _fixer()
    if fix is None:
        return Repaired(text, note=ABSENT)
    if text.isascii() and "\x1b" not in text:
        return Repaired(text)  # nothing in it can be broken
    changes: list[Change] = []
    for start, end in _pieces(text):
        piece = text[start:end]
        if not piece.isascii() or "\x1b" in piece:
            fixed = fix(piece)
            if fixed != piece:
                changes.append(_narrow(piece, fixed, start))
    return Repaired(apply_changes(text, tuple(changes)), tuple(changes))


def _fixer() -> Callable[[str], str] | None:
    try:
        import ftfy
    except ImportError:
        return None
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_character_width=False,
        fix_line_breaks=False,
        normalization=None,
        explain=False,
    )
    return lambda piece: ftfy.fix_text(piece, config)


def _pieces(text: str) -> list[tuple[int, int]]:
    """Lines outside code, cut at inline code."""
    pieces: list[tuple[int, int]] = []
    start = 0
    for code_start, code_end in [*code_spans(text), (len(text), len(text))]:
        while start < code_start:
            newline = text.find("\n", start, code_start)
            end = min(code_start if newline < 0 else newline, start + MAX_LINE)
            if end > start:
                pieces.append((start, end))
            start = end + 1 if end == newline else end
        start = max(start, code_end)
    return pieces


def _narrow(piece: str, fixed: str, offset: int) -> Change:
    """The change without the characters both share at the ends."""
    limit = min(len(piece), len(fixed))
    head = next((place for place in range(limit) if piece[place] != fixed[place]), limit)
    tail = next((place for place in range(limit - head) if piece[-1 - place] != fixed[-1 - place]), limit - head)
    return Change(offset + head, offset + len(piece) - tail, fixed[head : len(fixed) - tail])
