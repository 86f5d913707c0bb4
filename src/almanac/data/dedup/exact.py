"""Exact copies, of whole texts and of paragraphs, by a digest; the first copy stays.

Lee et al. 2021, "Deduplicating Training Data Makes Language Models Better" (arXiv 2107.06499): repeated text is what a
model recites, and removing it costs nothing. They cut every substring of 50 tokens that stands twice, with a suffix
array. Deviation: we compare whole texts and whole paragraphs, which needs one pass and leaves no torn sentences; what
differs by a word is the business of `near`.

Two texts are the same if they agree after Unicode NFC and with every run of white space read as one space. Case and
compatibility characters count (``Path`` is not ``path``, and NFKC would make ``x²`` a copy of ``x2``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

MIN_PARAGRAPH = 50  # characters: shorter paragraphs ("Example:", "Yes.") recur without being copies of anything

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Paragraph ``[start, end)`` of text ``index`` stood before, in text ``first_index`` from ``first_start`` on."""

    index: int
    start: int
    end: int
    first_index: int
    first_start: int


def normalise(text: str) -> str:
    """``text`` in Unicode NFC, white space at the ends gone and every other run of it one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def text_digest(text: str) -> str:
    """SHA-256 of the normalised text as 64 hex digits; equal for exact copies and, short of a collision, only these."""
    return hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).hexdigest()


def exact_duplicates(texts: Iterable[str]) -> dict[int, int]:
    """Index of each later copy -> index of the first; texts without any character but white space are no copies."""
    first: dict[str, int] = {}
    copies: dict[int, int] = {}
    for index, text in enumerate(texts):
        if not text.strip():
            continue
        original = first.setdefault(text_digest(text), index)
        if original != index:
            copies[index] = original
    return copies


def paragraph_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of the paragraphs of ``text``: what stands between blank lines."""
    spans: list[tuple[int, int]] = []
    start = 0
    for gap in [*_BLANK_LINES.finditer(text), None]:
        end = gap.start() if gap else len(text)
        if text[start:end].strip():
            spans.append((start, end))
        start = gap.end() if gap else end
    return spans


def repeated_paragraphs(texts: Sequence[str], *, min_characters: int = MIN_PARAGRAPH) -> tuple[Repeat, ...]:
    """Every paragraph of at least ``min_characters`` that stood before, in the same text or an earlier one."""
    first: dict[str, tuple[int, int]] = {}
    repeats: list[Repeat] = []
    for index, text in enumerate(texts):
        for start, end in paragraph_spans(text):
            if len(normalise(text[start:end])) < min_characters:
                continue
            place = first.setdefault(text_digest(text[start:end]), (index, start))
            if place != (index, start):
                repeats.append(Repeat(index, start, end, *place))
    return tuple(repeats)
