"""Reciprocal rank fusion: one ranking out of several whose scores cannot be compared.

    score(d) = sum over rankings r that hold d of:  weight(r) / (k + rank of d in r),   ranks from 1

Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods"
(SIGIR 2009), with their k = 60. Deviation: rankings may be weighted; all weights are 1 unless given. Equal scores rank
in the order in which the items are first met, reading the rankings one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TypeVar

from almanac.core.errors import RequestError

Item = TypeVar("Item", bound=Hashable)

RANK_CONSTANT = 60


def fuse(
    rankings: Sequence[Sequence[Item]], *, k: float = RANK_CONSTANT, weights: Sequence[float] | None = None
) -> list[tuple[Item, float]]:
    """Every item of ``rankings`` (each best first) with its fused score, best first.

    An item that a ranking names twice counts there at its first place.

    Raises:
        RequestError: ``k`` is below 0, or the weights are not one finite number of at least 0 per ranking.
    """
    weights = [1.0] * len(rankings) if weights is None else weights
    if k < 0 or len(weights) != len(rankings) or not all(math.isfinite(one) and one >= 0 for one in weights):
        raise RequestError(
            f"Fusing {len(rankings)} rankings with k={k} and weights {list(weights)}",
            remedy="Give k of 0 or more and one weight of 0 or more per ranking.",
        )
    scores: dict[Item, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, item in enumerate(dict.fromkeys(ranking), start=1):
            scores[item] = scores.get(item, 0.0) + weight / (k + rank)
    return sorted(scores.items(), key=lambda pair: -pair[1])
