"""The best of many scores, the same way every time: higher first, and equal scores in the order of their places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
Places = NDArray[np.int64]


def best(scores: Scores, k: int) -> Places:
    """The places of the at most ``k`` highest of ``scores`` [n], best first, by selection and not by a full sort."""
    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    edge = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > edge)
    chosen = np.concatenate([above, np.flatnonzero(scores == edge)[: k - len(above)]])
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def best_of_groups(scores: Scores, k: int, *, groups: NDArray[np.int32] | None, per_group: int | None) -> Places:
    """As `best`, with at most ``per_group`` places of one group; ``groups`` [n] says where each place belongs.

    Widens the selection until it holds ``k`` places that may stay, so a group that fills the top costs a little time.
    """
    if groups is None or per_group is None:
        return best(scores, k)
    wanted = k
    while True:
        found = best(scores, wanted)
        kept = found[occurrence(groups[found]) < per_group][:k]
        if len(kept) == k or wanted >= len(scores):
            return kept
        wanted *= 4


def occurrence(groups: NDArray[np.int32]) -> NDArray[np.int64]:
    """How often each of ``groups`` [n] has stood before: 7 7 9 7 -> 0 1 0 2."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(groups) else np.zeros(0, np.int64)
    seen = np.empty(len(groups), np.int64)
    seen[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    return seen
