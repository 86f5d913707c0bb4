"""The three rules that FineWeb adds to those of C4 and Gopher: lists, menus and forms go.

Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale" (arXiv 2406.17557, section
3.4): of the lines of a document at least 12 % end with punctuation, less than 67 % are shorter than 30 characters, and
repeated lines have less than 10 % of the characters. Found by comparing good and bad crawls and trained models.
"""

from __future__ import annotations

import dataclasses

from almanac.data.filters.c4 import ENDS
from almanac.data.filters.gopher_repetition import repeated_shares
from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineWeb(Rule):
    """A document goes that has this share or a lower one of lines that end a sentence, or these or higher of the others."""

    ended_lines: float = 0.12
    short_lines: float = 0.67
    short: int = 30
    repeated_characters: float = 0.1

    def judge(self, document: Document) -> Document | Removed:
        lines = [line.strip() for line in document.text.split("\n") if line.strip()]
        if not lines:
            return Removed("empty")
        ended = sum(line.endswith(ENDS) for line in lines) / len(lines)
        if ended <= self.ended_lines:
            return Removed("lines without an end", f"{ended:.0%} of lines end a sentence")
        short = sum(len(line) < self.short for line in lines) / len(lines)
        if short >= self.short_lines:
            return Removed("short lines", f"{short:.0%} of lines under {self.short} characters")
        repeated = repeated_shares(lines)[1]
        if repeated >= self.repeated_characters:
            return Removed("characters in repeated lines", f"{repeated:.0%} of characters")
        return document
