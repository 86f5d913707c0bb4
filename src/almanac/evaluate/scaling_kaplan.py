"""Kaplan's scaling law: L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D.

Kaplan 2020, arXiv 2001.08361, equation 1.5, with the values of its table 2 as `KAPLAN`. N counts no embeddings, and the law
has no floor: with enough of both the loss goes to 0, which is why Hoffmann's form, with E, is the better one far out.

Fitted in other coordinates: with x = a - alpha_N log N and y = b - alpha_D log D (a = alpha_N log N_c, b = alpha_D log D_c),
log L = alpha_D log(exp(x / alpha_D) + exp(y / alpha_D)), a soft maximum of two straight lines whose unknowns are of one
size. The exponents enter by their logarithms and so stay positive.

Legend: theta [s, 4] = (a, b, log alpha_N, log alpha_D).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from almanac.evaluate.scaling_descent import Array
from almanac.evaluate.scaling_law import FLOPS_PER_PARAMETER_TOKEN, Points, ScalingLaw

GRID = (  # a, b, alpha_N, alpha_D: every published fit lies well inside
    (0.0, 1.0, 2.0, 4.0, 6.0),
    (0.0, 1.0, 2.0, 4.0, 6.0),
    (0.03, 0.08, 0.2, 0.5),
    (0.03, 0.08, 0.2, 0.5),
)
EXPONENTS = (-12.0, 4.0)  # log of the smallest and largest exponent that a descent may try


@dataclass(frozen=True, kw_only=True)
class KaplanLaw(ScalingLaw):
    """``N_c`` parameters beside embeddings and ``D_c`` tokens: where the loss would be one nat."""

    names: ClassVar[tuple[str, ...]] = ("N_c", "D_c", "alpha_N", "alpha_D")

    N_c: float
    D_c: float
    alpha_N: float
    alpha_D: float

    def loss(self, parameters: float, tokens: float, unique: float | None = None) -> float:
        """Equation 1.5; whether tokens repeat it cannot tell."""
        return ((self.N_c / parameters) ** (self.alpha_N / self.alpha_D) + self.D_c / tokens) ** self.alpha_D

    def optimal(self, flops: float, unique: float | None = None) -> tuple[float, float]:
        """(parameters, tokens) of least loss with 6 N D = ``flops``, where the slopes of the two terms are equal.

        That is of runs trained to their end on D tokens each. Kaplan's own allocation (N in proportion to C^0.73) is
        another: its runs stop early (section 6).
        """
        power = self.alpha_N / self.alpha_D
        product = flops / FLOPS_PER_PARAMETER_TOKEN
        parameters = (power * self.N_c**power * product / self.D_c) ** (1 / (power + 1))
        return parameters, product / parameters

    def values(self) -> tuple[float, float, float, float]:
        """(N_c, D_c, alpha_N, alpha_D)."""
        return self.N_c, self.D_c, self.alpha_N, self.alpha_D

    def theta(self) -> Array:
        a, b = self.alpha_N * math.log(self.N_c), self.alpha_D * math.log(self.D_c)
        return np.array([a, b, math.log(self.alpha_N), math.log(self.alpha_D)])

    def like(self, theta: Array) -> Self:
        a, b, alpha_n, alpha_d = theta.tolist()
        alpha_n, alpha_d = np.exp(np.clip([alpha_n, alpha_d], *EXPONENTS)).tolist()
        return self.with_(N_c=_exp(a / alpha_n), D_c=_exp(b / alpha_d), alpha_N=alpha_n, alpha_D=alpha_d)

    def starts(self) -> Array:
        grid = np.array(np.meshgrid(*GRID, indexing="ij")).reshape(len(GRID), -1).T
        return np.concatenate([grid[:, :2], np.log(grid[:, 2:])], axis=1)

    def log_loss(self, theta: Array, points: Points) -> tuple[Array, list[Array]]:
        log_n, log_d = np.log(points.parameters), np.log(points.tokens)
        a, b = theta[:, :1], theta[:, 1:2]
        alpha_n, alpha_d = np.exp(np.clip(theta[:, 2:], *EXPONENTS)).T[..., None]
        lines = np.stack([a - alpha_n * log_n, b - alpha_d * log_d]) / alpha_d  # [2, s, n]
        top = lines.max(axis=0)
        shares = np.exp(lines - top)
        total = shares.sum(axis=0)
        soft = top + np.log(total)
        by_n, by_d = shares / total
        by_alpha_d = alpha_d * (soft - by_n * lines[0] - by_d * (lines[1] + log_d))
        return alpha_d * soft, [by_n, by_d, -alpha_n * by_n * log_n, by_alpha_d]


def _exp(value: float) -> float:
    return math.exp(max(-700.0, min(value, 700.0)))  # a resample without data to tell may end anywhere


KAPLAN = KaplanLaw(N_c=6.4e13, D_c=1.8e13, alpha_N=0.076, alpha_D=0.103)
"""Kaplan 2020, table 2."""
