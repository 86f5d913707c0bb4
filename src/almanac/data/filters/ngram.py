"""An n-gram language model with interpolated Kneser-Ney smoothing, on sorted arrays: seconds to train, no library.

Kneser & Ney 1995, "Improved backing-off for m-gram language modeling", interpolated as in Chen & Goodman 1999, with one
discount D. At the highest order c is how often a gram stood in the text; below it is how many different words stood before
the gram (its continuation count). With c(h.) their sum and t(h) how many different words follow h:

    p(w | h) = max(c(h w) - D, 0) / c(h.) + D t(h) / c(h.) p(w | h'),   h' = h without its first word,   p_0 = 1 / V

Deviations: words seen less than ``min_count`` times are one unknown word, so a rare word is told from a common one but not
from another rare one. A perplexity takes an unknown word for one of the rare words there were, all equally likely, or else
text of unknown words alone would be the most probable of all. Grams that begin a line have continuation counts like all
others. Grams are known by 64-bit numbers (`fingerprint`), not by their words.

Legend: n order, V different words that can be predicted (the unknown one and the end of a line among them).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from almanac.data.fingerprint import fold

UNKNOWN, BEGIN, END, FIRST = 0, 1, 2, 3
DISCOUNT = 0.75
_WORD = re.compile(r"\w+|[^\w\s]")


def words(line: str) -> list[str]:
    """Words in lower case and marks, each a token."""
    return _WORD.findall(line.lower())


@dataclass(frozen=True)
class Level:
    """The grams of one order: ``keys`` uint64 rising with ``counts``; their contexts with sums and different followers."""

    keys: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    followers: np.ndarray

    def mixed(self, gram: np.ndarray, context: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities at this order, given those of the order below; a context never seen leaves it to these."""
        count = _looked_up(self.keys, self.counts, gram)
        total = _looked_up(self.contexts, self.totals, context)
        held = DISCOUNT * _looked_up(self.contexts, self.followers, context)
        safe = np.maximum(total, 1.0)
        return np.where(total > 0, np.maximum(count - DISCOUNT, 0.0) / safe + held / safe * lower, lower)


@dataclass(frozen=True)
class NgramModel:
    """A model that was trained; ``levels[k - 1]`` is order k, ``rare`` how many different words are the unknown one."""

    vocabulary: dict[str, int]
    levels: tuple[Level, ...]
    rare: int = 1

    @property
    def order(self) -> int:
        """n."""
        return len(self.levels)

    def log_probabilities(self, text: str) -> np.ndarray:
        """Natural logarithms, float64 [tokens]: of every word and of the end of every line that is not blank, in order."""
        ids = _ids([words(line) for line in text.split("\n")], self.vocabulary, self.order)
        grams, contexts = _grams(ids, self.order)
        p = np.full(len(grams[0]), 1.0 / (len(self.vocabulary) + 2))
        for level, gram, context in zip(self.levels, grams, contexts, strict=True):
            p = level.mixed(gram, context, p)
        return np.log(p)

    def perplexity(self, text: str) -> float:
        """exp of the mean negative logarithm over the tokens of ``text``, an unknown word being one of the rare ones.

        Infinite for a text without any.
        """
        found = self.log_probabilities(text)
        unknown = sum(word not in self.vocabulary for line in text.split("\n") for word in words(line))
        return math.exp((unknown * math.log(self.rare) - float(found.sum())) / len(found)) if len(found) else math.inf


def train(texts: Iterable[str], *, order: int = 3, min_count: int = 2) -> NgramModel:
    """A model of all lines of ``texts``; about 100 bytes of memory a word."""
    lines = [words(line) for text in texts for line in text.split("\n")]
    seen = Counter(word for line in lines for word in line)
    kept = sorted(word for word, count in seen.items() if count >= min_count)
    vocabulary = {word: number for number, word in enumerate(kept, FIRST)}
    grams, contexts = _grams(_ids(lines, vocabulary, order), order)
    levels: list[Level] = []
    places: np.ndarray = np.arange(len(grams[0]))  # of the highest order every occurrence counts
    for gram, context in zip(reversed(grams), reversed(contexts), strict=True):
        keys, first, counts = np.unique(gram[places], return_index=True, return_counts=True)
        places = places[first]  # one for each different gram: its suffix is counted once below
        names, inverse = np.unique(context[places], return_inverse=True)
        totals = np.bincount(inverse, weights=counts, minlength=len(names))
        followers = np.bincount(inverse, minlength=len(names)).astype(np.float64)
        levels.append(Level(keys, counts.astype(np.float64), names, totals, followers))
    return NgramModel(vocabulary, tuple(reversed(levels)), max(1, len(seen) - len(kept)))


def _ids(lines: list[list[str]], vocabulary: dict[str, int], order: int) -> np.ndarray:
    flat: list[int] = []
    for line in lines:
        if line:
            flat += [BEGIN] * (order - 1)
            flat += [vocabulary.get(word, UNKNOWN) for word in line]
            flat.append(END)
    return np.array(flat, np.uint64)


def _grams(ids: np.ndarray, order: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Numbers of the grams of each order that end at each token, and of their contexts."""
    ends = np.flatnonzero(ids != BEGIN)
    grams, contexts = [], []
    for size in range(1, order + 1):
        state = np.full(len(ends), size, np.uint64)
        for back in range(size - 1, 0, -1):
            state = fold(state, ids[ends - back])
        contexts.append(state)
        grams.append(fold(state, ids[ends]))
    return grams, contexts


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0.0)
