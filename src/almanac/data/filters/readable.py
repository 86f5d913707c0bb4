"""What is no text: nothing in it, or hardly a letter (base64, tables of numbers, bytes read as text)."""

from __future__ import annotations

import dataclasses

from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readable(Rule):
    """At least ``min_characters``, of which at least ``min_letters`` are letters, and no word beyond ``max_word``."""

    min_characters: int = 1
    min_letters: float = 0.25
    max_word: int = 1_000

    def judge(self, document: Document) -> Document | Removed:
        text = document.text.strip()
        if len(text) < self.min_characters:
            return Removed("empty" if not text else "too short", f"{len(text)} characters")
        dense = "".join(text.split())
        letters = sum(map(str.isalpha, dense)) / len(dense)
        if letters < self.min_letters:
            return Removed("hardly a letter", f"{letters:.0%} letters")
        longest = max(map(len, text.split()))
        if longest > self.max_word:
            return Removed("a word without end", f"{longest:,} characters without white space")
        return document
