"""The data-constrained law: tokens seen again are worth less than new ones, and so are parameters beyond what they need.

Muennighoff 2023, arXiv 2305.16264, equations 5 and 6: in Hoffmann's law D becomes D' = U + U R*_D (1 - exp(-R_D / R*_D)),
with U the different tokens and R_D = D / U - 1 how often they were repeated; N becomes N' = U_N + U_N R*_N (1 - exp(-R_N /
R*_N)), with U_N the size for which U tokens are the best amount (or N, if less) and R_N = N / U_N - 1. Where nothing is
repeated and nothing is in excess, it is Hoffmann's law.

As there, Hoffmann's law is fitted first, to runs without repetition, and R*_D and R*_N then to all.

Legend: theta [s, 2] = (log R*_D, log R*_N).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from almanac.evaluate.scaling import Law
from almanac.evaluate.scaling_descent import Array
from almanac.evaluate.scaling_law import Points, ScalingLaw

GRID = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # of either constant


@dataclass(frozen=True, kw_only=True)
class RepeatedLaw(ScalingLaw):
    """``base`` for data that never repeat; ``R_D`` and ``R_N`` (starred in the paper): repetitions and excess that pay."""

    names: ClassVar[tuple[str, ...]] = ("R_D", "R_N")
    levels: ClassVar[int] = 1

    base: Law
    R_D: float
    R_N: float

    def loss(self, parameters: float, tokens: float, unique: float | None = None) -> float:
        """The loss of ``tokens`` of which ``unique`` are different; None: all of them."""
        fresh = tokens if unique is None else min(unique, tokens)
        return self.base.loss(self.effective_parameters(parameters, fresh), self.effective_tokens(tokens, fresh))

    def effective_tokens(self, tokens: float, unique: float) -> float:
        """D': how many new tokens would have been worth as much."""
        return _effective(tokens, min(unique, tokens), self.R_D)

    def effective_parameters(self, parameters: float, unique: float) -> float:
        """N': the size that as many parameters amount to with ``unique`` different tokens."""
        return _effective(parameters, min(parameters, self.base.parameters_for(unique)), self.R_N)

    def values(self) -> tuple[float, float]:
        """(R*_D, R*_N)."""
        return self.R_D, self.R_N

    def theta(self) -> Array:
        return np.log([self.R_D, self.R_N])

    def like(self, theta: Array) -> Self:
        repeats, excess = np.exp(np.clip(theta, -20, 20))
        return self.with_(R_D=float(repeats), R_N=float(excess))

    def starts(self) -> Array:
        grid = np.array(np.meshgrid(GRID, GRID, indexing="ij")).reshape(2, -1).T
        return np.concatenate([self.theta()[None], np.log(grid)])

    def log_loss(self, theta: Array, points: Points) -> tuple[Array, list[Array]]:
        base, fresh = self.base, points.fresh()
        needed = np.minimum(points.parameters, base.ratio * (base.ratio * fresh) ** (base.beta / base.alpha))
        data, by_repeats = _worth(points.tokens, fresh, theta[:, :1])
        size, by_excess = _worth(points.parameters, needed, theta[:, 1:])
        of_n, of_d = base.A * size**-base.alpha, base.B * data**-base.beta
        total = base.E + of_n + of_d
        return np.log(total), [
            -base.beta * of_d / data * by_repeats / total,
            -base.alpha * of_n / size * by_excess / total,
        ]


def _effective(amount: float, unique: float, constant: float) -> float:
    repeats = amount / unique - 1
    return unique + unique * constant * -math.expm1(-repeats / constant)


def _worth(amount: Array, unique: Array, log_constant: Array) -> tuple[Array, Array]:
    """(effective amount, its derivative by the constant's logarithm), [s, n] each."""
    constant = np.exp(np.clip(log_constant, -20, 20))
    ratio = (amount / unique - 1) / constant
    left = np.exp(-ratio)
    return unique * (1 + constant * (1 - left)), unique * constant * (1 - left - ratio * left)


MUENNIGHOFF = RepeatedLaw(
    base=Law(
        E=math.exp(0.6254804), A=math.exp(6.255414), B=math.exp(7.3049974), alpha=0.3526596, beta=0.3526596
    ),  # 1.87, 521, 1488
    R_D=15.387756,
    R_N=5.309743,
)
"""Muennighoff 2023, appendix A, on C4."""
