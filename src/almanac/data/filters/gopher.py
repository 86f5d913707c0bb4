"""The quality rules of Gopher: what is shaped like prose stays.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (arXiv 2112.11446, appendix
A.1.1). A *word* is what stands between white space. The stop words are English, so the rule that asks for them can be left
out. A document goes for the first rule that it breaks, in the order of the paper.
"""

from __future__ import annotations

import dataclasses
import re

from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "-", "*", "‣", "◦", "▪", "●")
ELLIPSES = ("...", "…")
_PLAIN = re.compile(r"[^\w']+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherQuality(Rule):
    """Bounds of the paper; ``stop_words`` is how many of `STOP_WORDS` must occur, 0 for other languages than English."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_length: float = 3.0
    max_mean_length: float = 10.0
    max_symbols_per_word: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    stop_words: int = 2

    def judge(self, document: Document) -> Document | Removed:
        words = document.text.split()
        if not self.min_words <= len(words) <= self.max_words:
            return Removed(
                "too few words" if len(words) < self.min_words else "too many words", f"{len(words):,} words"
            )
        mean = sum(map(len, words)) / len(words)
        if not self.min_mean_length <= mean <= self.max_mean_length:
            return Removed("words of unusual length", f"{mean:.1f} characters a word")
        for symbol, count in (("#", document.text.count("#")), ("...", ellipses(document.text))):
            if count / len(words) > self.max_symbols_per_word:
                return Removed("too many symbols", f"{count:,} {symbol} in {len(words):,} words")
        lines = [line.strip() for line in document.text.splitlines() if line.strip()]
        bullets = sum(line.startswith(BULLETS) for line in lines) / len(lines)
        if bullets > self.max_bullet_lines:
            return Removed("nothing but bullet points", f"{bullets:.0%} of lines")
        cut = sum(line.endswith(ELLIPSES) for line in lines) / len(lines)
        if cut > self.max_ellipsis_lines:
            return Removed("lines that are cut off", f"{cut:.0%} of lines")
        alphabetic = sum(any(map(str.isalpha, word)) for word in words) / len(words)
        if alphabetic < self.min_alphabetic_words:
            return Removed("too few words with a letter", f"{alphabetic:.0%} of words")
        if self.stop_words and len(STOP_WORDS.intersection(_PLAIN.split(document.text.lower()))) < self.stop_words:
            return Removed("too few stop words")
        return document


def ellipses(text: str) -> int:
    """How many there are, as three dots or as one character."""
    return text.count("...") + text.count("…")
