"""What a corpus says more about one group than about another, evened out: swapped copies, and equal numbers.

Counterfactual data augmentation (Lu et al. 2018, "Gender Bias in Neural Natural Language Processing", arXiv 1807.11714;
Zhao et al. 2018, arXiv 1804.06876): a copy of each text in which the terms of a pair stand for each other. The pairs are the
user's: which words mark a group is not ours to say, and a language may need several forms of one. Balance by label
repeats texts of the smaller classes, or leaves some of the larger out.

Deviation: no parsing, so one word that is two in the other direction (*her*: *him*, *his*) goes to the first pair given.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from almanac.core.errors import RequestError


def swapped(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """``text`` with the terms of each pair in each other's place, as whole words; case is kept (*He*, *HE*)."""
    table: dict[str, str] = {}
    for left, right in pairs:
        table.setdefault(left.casefold(), right)
        table.setdefault(right.casefold(), left)
    if not table:
        return text
    longest_first = sorted(table, key=lambda term: (-len(term), term))
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)", re.IGNORECASE)

    def replacement(match: re.Match[str]) -> str:
        found = match[0]
        other = table.get(found.casefold(), found)
        if len(found) > 1 and found.isupper():
            return other.upper()
        return other[:1].upper() + other[1:] if found[:1].isupper() else other

    return pattern.sub(replacement, text)


def augmented(texts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Every text, each that has a term of a pair followed by its swapped copy."""
    found = []
    for text in texts:
        copy = swapped(text, pairs)
        found += [text] if copy == text else [text, copy]
    return found


def balanced(labels: Sequence[Hashable], *, repeat: bool = True, seed: int = 0) -> np.ndarray:
    """Places of the texts of a balanced corpus, int64, rising: as many of each label.

    With ``repeat`` as many as the largest class has, each text of a smaller one about as often as the others; without, as
    many as the smallest has, chosen by ``seed``.

    Raises:
        RequestError: no labels.
    """
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[label].append(place)
    if not places:
        raise RequestError("There are no labels", remedy="Give one for each text.")
    size = max(map(len, places.values())) if repeat else min(map(len, places.values()))
    dice = np.random.default_rng(seed)
    chosen = []
    for members in places.values():
        rest = size % len(members)
        extra = dice.choice(members, rest, replace=False) if rest else np.zeros(0, np.int64)
        chosen += [np.repeat(members, size // len(members)), extra]
    return np.sort(np.concatenate(chosen).astype(np.int64))
