"""A linear classifier of text on hashed words and pairs of words: trained in seconds, exact, of one vector of weights.

The bag of hashed n-grams of fastText (Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification",
arXiv 1607.01759; hashing: Weinberger et al. 2009, arXiv 0902.2206). Deviation: fastText factors the weights through a small
embedding and trains by SGD; with two classes the product is one vector, so that is trained directly, as logistic
regression with an L2 penalty, by L-BFGS in float64 to its one optimum. The same texts give the same weights.

    minimise  |w|^2 / 2 + C sum_i log(1 + exp(-y_i (w x_i + b))),   x_i of length 1

Legend: n texts, f buckets.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from almanac.core.errors import PreflightError

_WORD = re.compile(r"\w+")
MAX_WORDS = 2_000  # of a text, from its beginning
STEPS = 500


def features(text: str, *, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Buckets int64 rising and their weights float64 of length 1 in all; empty for a text without words."""
    words = [word.encode("utf-8", "surrogatepass") for word in _WORD.findall(text.lower())[:MAX_WORDS]]
    grams = words + [left + b" " + right for left, right in itertools.pairwise(words)]
    count = Counter(zlib.crc32(gram) % buckets for gram in grams)
    places = np.array(sorted(count), np.int64)
    weights = np.array([count[place] for place in places.tolist()], np.float64)
    return places, weights / np.linalg.norm(weights) if len(weights) else weights


@dataclass(frozen=True)
class HashedLinear:
    """Weights float64 [f] and a bias."""

    weights: np.ndarray
    bias: float

    def probability(self, text: str) -> float:
        """That ``text`` is of the positive class, in [0, 1]."""
        places, values = features(text, buckets=len(self.weights))
        score = float(self.weights[places] @ values) + self.bias
        return float(1 / (1 + np.exp(-score))) if score > -700 else 0.0


def fit(
    texts: Sequence[str], labels: Sequence[bool], *, buckets: int = 1 << 16, strength: float = 10.0
) -> HashedLinear:
    """Trains on labelled texts; ``strength`` is C, larger fits closer.

    Raises:
        PreflightError: texts of one class only.
    """
    if len(set(labels)) < 2:
        raise PreflightError("A classifier needs texts of both classes", remedy="Give positive and negative texts.")
    found = [features(text, buckets=buckets) for text in texts]
    rows = torch.tensor(np.repeat(np.arange(len(found)), [len(places) for places, _ in found]))
    places = torch.tensor(np.concatenate([places for places, _ in found]))
    values = torch.tensor(np.concatenate([weights for _, weights in found]))
    used, inverse = torch.unique(places, return_inverse=True)
    signs = torch.tensor([1.0 if label else -1.0 for label in labels], dtype=torch.float64)
    weights = torch.zeros(len(used), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scores = torch.zeros(len(found), dtype=torch.float64).index_add(0, rows, weights[inverse] * values) + bias
        loss = weights.square().sum() / 2 + strength * torch.nn.functional.softplus(-signs * scores).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    full = np.zeros(buckets)
    full[used.numpy()] = weights.detach().numpy()
    return HashedLinear(full, float(bias.detach()))
