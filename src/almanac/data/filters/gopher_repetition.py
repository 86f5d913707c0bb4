"""The repetition rules of Gopher: text that says the same again and again goes.

Rae et al. 2021 (arXiv 2112.11446, appendix A.1.1, table A1): bounds on the share of lines and paragraphs that stood before in
the document, on the characters in them, on the characters in the most frequent 2-, 3- and 4-gram, and on those in any 5- to
10-gram that stood before, each character counted once. The paper leaves open whether the first occurrence counts; here
it does not, for lines as for n-grams. Characters are those of words, white space left out.

Runs of words get exact numbers by numbering the pairs (number of the run one shorter, word), size after size.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from almanac.data.filters.step import Removed, Rule
from almanac.data.sources.document import Document


@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherRepetition(Rule):
    """Largest shares. ``top`` is for 2-, 3- and 4-grams, ``duplicate`` for 5- to 10-grams."""

    lines: float = 0.30
    paragraphs: float = 0.30
    line_characters: float = 0.20
    paragraph_characters: float = 0.20
    top: tuple[float, ...] = (0.20, 0.18, 0.16)
    duplicate: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

    def judge(self, document: Document) -> Document | Removed:
        for parts, name, most, characters in (
            (document.text.split("\n"), "lines", self.lines, self.line_characters),
            (document.text.split("\n\n"), "paragraphs", self.paragraphs, self.paragraph_characters),
        ):
            repeated, share = repeated_shares(parts)
            if repeated > most:
                return Removed(f"repeated {name}", f"{repeated:.0%} of {name}")
            if share > characters:
                return Removed(f"characters in repeated {name}", f"{share:.0%} of characters")
        top, duplicate = ngram_shares(document.text, top=len(self.top), duplicate=len(self.duplicate))
        for size, share, most in zip(range(2, 2 + len(top)), top, self.top, strict=True):
            if share > most:
                return Removed(f"one {size}-gram again and again", f"{share:.0%} of characters")
        for size, share, most in zip(range(5, 5 + len(duplicate)), duplicate, self.duplicate, strict=True):
            if share > most:
                return Removed(f"repeated {size}-grams", f"{share:.0%} of characters")
        return document


def repeated_shares(parts: list[str]) -> tuple[float, float]:
    """Of the parts that are not blank: the share that stood before, and their share of the characters."""
    count = Counter(part.strip() for part in parts if part.strip())
    total = sum(count.values())
    characters = sum(len(part) * times for part, times in count.items())
    again = sum(len(part) * (times - 1) for part, times in count.items())
    return ((total - len(count)) / total, again / characters) if total else (0.0, 0.0)


def ngram_shares(text: str, *, top: int = 3, duplicate: int = 6) -> tuple[list[float], list[float]]:
    """Shares of characters: in the most frequent n-gram for n from 2 on, and in n-grams that stood before for n from 5 on."""
    words = text.split()
    known: dict[str, int] = {}
    ids = np.array([known.setdefault(word, len(known)) for word in words], np.int64)
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    tops, duplicates = [], []
    numbers = ids
    for size in range(2, max(2 + top, 5 + duplicate)):
        count = len(words) - size + 1
        if count < 1:
            break
        pairs = numbers[:count] * (len(known) + 1) + ids[size - 1 :]
        _, first, numbers, times = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        if size < 2 + top:
            within = ends[first + size] - ends[first]
            most = times == times.max()
            share = float((times * within)[most].max() / ends[-1]) if times.max() > 1 else 0.0
            tops.append(share)
        if 5 <= size < 5 + duplicate:
            again = np.flatnonzero(first[numbers] != np.arange(count))
            covered = np.zeros(len(words) + 1, np.int64)
            np.add.at(covered, again, 1)
            np.add.at(covered, again + size, -1)
            duplicates.append(float(lengths[np.cumsum(covered)[:-1] > 0].sum() / ends[-1]))
    return tops + [0.0] * (top - len(tops)), duplicates + [0.0] * (duplicate - len(duplicates))
