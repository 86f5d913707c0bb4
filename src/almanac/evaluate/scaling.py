"""Scaling law: the loss of a model from its size and its data, fitted to finished runs, and the best split of a budget.

Hoffmann 2022, arXiv 2203.15556, approach 3 (equations 2-4): L = E + A / N^alpha + B / D^beta, fitted by the Huber loss
(delta 1e-3) on log L, the right side written as a log-sum-exp of a - alpha log N, b - beta log D and e (a, b, e the logs of
A, B, E), from a grid of starts. Besiroglu 2024, arXiv 2404.10102, found that the published fit had stopped too early: its
loss was a mean, far below the optimiser's tolerance. Here the loss is a sum over the points in units of delta, and the
tolerance is on the gradient of that.

Deviations: BFGS instead of L-BFGS, all starts beside each other; only the starts of lowest loss of the published grid are
followed down.

Legend: n points, s starts or resamples; theta [s, 5] = (a, b, e, alpha, beta).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import numpy as np

from almanac.evaluate.scaling_descent import Array, Descent, Objective
from almanac.evaluate.scaling_law import (
    FLOPS_PER_PARAMETER_TOKEN,
    Points,
    ScalingLaw,
    bootstrap_law,
    fit_law,
    intervals_of,
    objective_of,
)
from almanac.evaluate.scaling_loss import FitLoss, Huber

DELTA = 1e-3  # where the Huber loss turns from square to straight, in log L
GRID = (  # the starts of approach 3: a, b, e, alpha, beta
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
)


@dataclass(frozen=True, kw_only=True)
class Law(ScalingLaw):
    """L = E + A / N^alpha + B / D^beta, loss in nats per token, N parameters, D training tokens."""

    names: ClassVar[tuple[str, ...]] = ("E", "A", "B", "alpha", "beta")
    levels: ClassVar[int] = 3

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float, unique: float | None = None) -> float:
        """The loss that the law gives a model of ``parameters`` trained on ``tokens``; whether they repeat it cannot tell."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimal(self, flops: float, unique: float | None = None) -> tuple[float, float]:
        """(parameters, tokens) of least loss among those with 6 N D = ``flops`` (Hoffmann 2022, equation 4)."""
        product = flops / FLOPS_PER_PARAMETER_TOKEN
        parameters = self.ratio * product ** (self.beta / (self.alpha + self.beta))
        return parameters, product / parameters

    @property
    def ratio(self) -> float:
        """Hoffmann's G: (alpha A / beta B)^(1 / (alpha + beta))."""
        return (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))

    def parameters_for(self, tokens: float) -> float:
        """The size for which ``tokens`` are the best amount of data."""
        return self.ratio * (self.ratio * tokens) ** (self.beta / self.alpha)

    def values(self) -> tuple[float, float, float, float, float]:
        """(E, A, B, alpha, beta)."""
        return self.E, self.A, self.B, self.alpha, self.beta

    def theta(self) -> Array:
        """(a, b, e, alpha, beta)."""
        return np.array([math.log(self.A), math.log(self.B), math.log(self.E), self.alpha, self.beta])

    def like(self, theta: Array) -> Self:
        e, a, b, alpha, beta = (float(value) for value in laws(theta[None])[0])
        return self.with_(E=e, A=a, B=b, alpha=alpha, beta=beta)

    def starts(self) -> Array:
        return np.array(np.meshgrid(*GRID, indexing="ij")).reshape(len(GRID), -1).T

    def log_loss(self, theta: Array, points: Points) -> tuple[Array, list[Array]]:
        log_n, log_d = np.log(points.parameters), np.log(points.tokens)
        a, b, e, alpha, beta = (column[:, None] for column in theta.T)
        terms = np.stack(np.broadcast_arrays(a - alpha * log_n, b - beta * log_d, e))  # [3, s, n]
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        by_n, by_d, by_e = shares / total
        return top + np.log(total), [by_n, by_d, by_e, -by_n * log_n, -by_d * log_d]


REFIT = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
"""Besiroglu 2024, table 1: fitted to Hoffmann's own points; N counts all parameters."""
PUBLISHED = Law(E=1.6934, A=406.4, B=410.7, alpha=0.3392, beta=0.2849)
"""Hoffmann 2022, with the digits of the paper's source; printed as 1.69, 406.4, 410.7, 0.34, 0.28."""


def objective(points: Points, weights: Array | None = None) -> Objective:
    """The Huber loss in units of delta, summed over the points; ``weights`` [n] or [s, n] counts each point so often."""
    return objective_of(REFIT, points, Huber(delta=DELTA), weights)


def fit(points: Points, descent: Descent | None = None, *, loss: FitLoss | None = None) -> Law:
    """The law of least loss over the starts. Raises as `scaling_law.fit_law`."""
    return cast(Law, fit_law(REFIT, points, loss=loss or Huber(delta=DELTA), descent=descent))


def bootstrap(points: Points, law: Law, *, resamples: int = 200, seed: int = 0) -> Array:
    """theta [resamples, 5] refitted to points drawn with replacement, each from ``law``, the fit to all of them."""
    return bootstrap_law(law, points, loss=Huber(delta=DELTA), resamples=resamples, seed=seed)


def intervals(thetas: Array, *, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """The percentile interval of each of E, A, B, alpha, beta from `bootstrap`."""
    return intervals_of(REFIT, thetas, level=level)


def laws(thetas: Array) -> Array:
    """theta [s, 5] as (E, A, B, alpha, beta), [s, 5]."""
    a, b, e, alpha, beta = thetas.T
    return np.stack([*np.exp(np.clip([e, a, b], -700.0, 700.0)), alpha, beta], axis=1)  # a refit may end anywhere


def rejection(thetas: Array, law: Law, other: Law) -> float:
    """How far ``other`` lies from ``law``: the squared Mahalanobis distance of theta by the covariance of the resamples.

    If ``other`` were true it would follow a chi-square law with five degrees of freedom: 20.5 is its 99.9 % point.
    """
    difference = other.theta() - law.theta()
    return float(difference @ np.linalg.solve(np.cov(thetas.T), difference))


def law_of(theta: Array) -> Law:
    """The law of theta [5]."""
    return REFIT.like(theta)
