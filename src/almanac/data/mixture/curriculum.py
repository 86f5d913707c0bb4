"""The order of documents by how hard they are, and how much of them is open at a step.

Bengio et al. 2009, "Curriculum Learning", order examples from easy to hard. Platanios et al. 2019, "Competence-based
Curriculum Learning for Neural Machine Translation" (arXiv 1903.09848, equation 8): at step t of T a learner draws from
the easiest part c(t) of the corpus, c(t) = min(1, sqrt(t (1 - c0^2) / T + c0^2)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def by_score(scores: Sequence[float], *, hardest_first: bool = False, bands: int = 0, seed: int = 0) -> np.ndarray:
    """Places of the documents in the order of their scores, int64 [n]; equal scores stay in the order they had.

    With ``bands`` the order is kept between that many equal parts only, and shuffled within each, so that a batch is not all
    of one kind.
    """
    values = np.asarray(scores, np.float64)
    order = np.argsort(-values if hardest_first else values, kind="stable")
    if bands:
        dice = np.random.default_rng(seed)
        order = np.concatenate([dice.permutation(part) for part in np.array_split(order, bands)])
    return order


def competence(step: int, *, steps: int, initial: float = 0.01) -> float:
    """The share of the corpus, easiest first, that is open at ``step``; 1 from ``steps`` on."""
    if step >= steps:
        return 1.0
    return math.sqrt(step * (1 - initial**2) / steps + initial**2)
