"""Scaling law: the loss of a model from its size and its data, fitted to finished runs, and the best split of a budget.

Hoffmann 2022, arXiv 2203.15556, approach 3 (equations 2-4): L = E + A / N^alpha + B / D^beta, fitted by the Huber loss
(delta 1e-3) on log L, the right side written as a log-sum-exp of a - alpha log N, b - beta log D and e (a, b, e the logs of
A, B, E), from a grid of starts. Besiroglu 2024, arXiv 2404.10102, found that the published fit had stopped too early: its
loss was a mean, far below the optimiser's tolerance. Here the loss is a sum over the points in units of delta, and the
tolerance is on the gradient of that.

Deviations: BFGS instead of L-BFGS (the matrix of five unknowns is 25 numbers), all starts beside each other; only the
starts of lowest loss of the published grid are followed down.

Legend: n points, s starts or resamples; theta [s, 5] = (a, b, e, alpha, beta).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from almanac.core.errors import ShapeError, TrainingError
from almanac.core.value import Value

Array = NDArray[np.float64]
Objective = Callable[[Array], tuple[Array, Array]]
"""theta [s, 5] -> (loss [s], gradient [s, 5])."""

DELTA = 1e-3  # where the Huber loss turns from square to straight, in log L
GRID = (  # the starts of approach 3: a, b, e, alpha, beta
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (0.0, 5.0, 10.0, 15.0, 20.0, 25.0),
    (-1.0, -0.5, 0.0, 0.5, 1.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
    (0.0, 0.5, 1.0, 1.5, 2.0),
)
FLOPS_PER_PARAMETER_TOKEN = 6.0
"""C = 6 N D (Kaplan 2020, arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True, kw_only=True)
class Law(Value):
    """L = E + A / N^alpha + B / D^beta, loss in nats per token, N parameters, D training tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss that the law gives a model of ``parameters`` trained on ``tokens``."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimal(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of least loss among those with 6 N D = ``flops`` (Hoffmann 2022, equation 4)."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        product = flops / FLOPS_PER_PARAMETER_TOKEN
        parameters = ratio * product ** (self.beta / (self.alpha + self.beta))
        return parameters, product / parameters

    def values(self) -> tuple[float, float, float, float, float]:
        """(E, A, B, alpha, beta)."""
        return self.E, self.A, self.B, self.alpha, self.beta

    def theta(self) -> Array:
        """(a, b, e, alpha, beta)."""
        return np.array([math.log(self.A), math.log(self.B), math.log(self.E), self.alpha, self.beta])


@dataclass(frozen=True, kw_only=True)
class Descent(Value):
    """How the loss is brought down.

    ``starts``: how many of the grid's points are followed; ``tolerance``: largest component of the gradient of the summed
    Huber loss in units of delta at which one stops; ``iterations``: at most so many steps.
    """

    starts: int = 64
    tolerance: float = 1e-3
    iterations: int = 300


@dataclass(frozen=True)
class Points:
    """Finished runs: parameters, training tokens and final loss, float64 [n] each.

    Raises ShapeError for unequal lengths, fewer than six points, or a number that is not positive and finite.
    """

    parameters: Array
    tokens: Array
    losses: Array

    def __post_init__(self) -> None:
        columns = (self.parameters, self.tokens, self.losses)
        if len({column.shape for column in columns}) > 1 or self.losses.ndim != 1 or len(self.losses) < 6:
            raise ShapeError(
                f"{', '.join(str(column.shape) for column in columns)} do not make points of a law with five unknowns",
                remedy="Give parameters, tokens and loss of at least six runs, one of each per run.",
            )
        if not all(np.isfinite(column).all() and (column > 0).all() for column in columns):
            raise ShapeError(
                "A run has a parameter count, token count or loss that is not positive and finite",
                remedy="Leave out runs that diverged; give the loss itself, not its logarithm.",
            )

    @classmethod
    def of(cls, parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> Points:
        """Points from plain sequences."""
        return cls(*(np.asarray(column, dtype=np.float64) for column in (parameters, tokens, losses)))


def objective(points: Points, weights: Array | None = None) -> Objective:
    """The Huber loss in units of delta, summed over the points; ``weights`` [n] or [s, n] counts each point so often."""
    log_n, log_d, target = np.log(points.parameters), np.log(points.tokens), np.log(points.losses)

    def evaluate(theta: Array) -> tuple[Array, Array]:
        a, b, e, alpha, beta = (column[:, None] for column in theta.T)
        terms = np.stack(np.broadcast_arrays(a - alpha * log_n, b - beta * log_d, e))  # [3, s, n]
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        residual = (top + np.log(total) - target) / DELTA
        size = np.abs(residual)
        huber = np.where(size <= 1, residual**2 / 2, size - 0.5)
        slope = np.clip(residual, -1, 1) / DELTA
        if weights is not None:
            huber, slope = huber * weights, slope * weights
        pull = slope * shares / total  # [3, s, n]
        gradient = [*pull.sum(axis=2), -(pull[0] * log_n).sum(axis=1), -(pull[1] * log_d).sum(axis=1)]
        return DELTA * huber.sum(axis=1), DELTA * np.stack(gradient, axis=1)

    return evaluate


def minimise(function: Objective, starts: Array, descent: Descent) -> tuple[Array, Array]:
    """BFGS from every start at once: ``starts`` [s, k] -> (theta [s, k], loss [s]).

    Steps are halved until the loss falls enough (Armijo); the matrix is updated where the curvature is positive.
    """
    theta = starts.copy()
    count, size = theta.shape
    value, gradient = function(theta)
    inverse = (
        np.broadcast_to(np.eye(size), (count, size, size)) / np.linalg.norm(gradient, axis=1).clip(1)[:, None, None]
    )
    live = np.abs(gradient).max(axis=1) > descent.tolerance
    for _ in range(descent.iterations):
        if not live.any():
            break
        direction = -np.einsum("sij,sj->si", inverse, gradient)
        slope = (direction * gradient).sum(axis=1)
        step = live.astype(np.float64)
        searching = live.copy()
        moved, new_value, new_gradient = theta, value, gradient
        for _ in range(40):
            moved = theta + step[:, None] * direction
            new_value, new_gradient = function(moved)
            enough = new_value <= value + 1e-4 * step * slope
            searching &= ~enough
            if not searching.any():
                break
            step = np.where(searching, step / 2, step)
        accepted = live & ~searching
        moved = np.where(accepted[:, None], moved, theta)
        inverse = _updated(inverse, moved - theta, np.where(accepted[:, None], new_gradient - gradient, 0.0))
        value, gradient = np.where(accepted, new_value, value), np.where(accepted[:, None], new_gradient, gradient)
        theta = moved
        live = accepted & (np.abs(gradient).max(axis=1) > descent.tolerance)
    return theta, value


def _updated(inverse: Array, step: Array, change: Array) -> Array:
    """The BFGS update of inverse Hessians [s, k, k] from steps and changes of gradient [s, k]."""
    curvature = (step * change).sum(axis=1)
    good = curvature > 1e-14
    rho = 1 / np.where(good, curvature, 1.0)
    left = np.eye(step.shape[1]) - rho[:, None, None] * step[:, :, None] * change[:, None, :]
    new = left @ inverse @ left.transpose(0, 2, 1) + rho[:, None, None] * step[:, :, None] * step[:, None, :]
    return np.where(good[:, None, None], new, inverse)


def fit(points: Points, descent: Descent | None = None) -> Law:
    """The law of least loss over the starts. Raises TrainingError if none of them ends anywhere finite."""
    descent = descent or Descent()
    function = objective(points)
    grid = np.array(np.meshgrid(*GRID, indexing="ij")).reshape(len(GRID), -1).T
    chosen = grid[np.argsort(function(grid)[0], kind="stable")[: descent.starts]]
    theta, loss = minimise(function, chosen, descent)
    if not np.isfinite(loss).any():
        raise TrainingError("No start led to a finite loss", remedy="Check the units: parameters, tokens, nats.")
    return law_of(theta[int(np.nanargmin(loss))])


def bootstrap(points: Points, law: Law, *, resamples: int = 200, seed: int = 0) -> Array:
    """theta [resamples, 5] refitted to points drawn with replacement, each from ``law``, the fit to all of them."""
    rng = np.random.default_rng(seed)
    count = len(points.losses)
    weights = np.stack([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(resamples)])
    starts = np.tile(law.theta(), (resamples, 1))
    return minimise(objective(points, weights.astype(np.float64)), starts, Descent())[0]


def intervals(thetas: Array, *, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """The percentile interval of each of E, A, B, alpha, beta from `bootstrap`."""
    values = laws(thetas)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("E", "A", "B", "alpha", "beta"))}


def laws(thetas: Array) -> Array:
    """theta [s, 5] as (E, A, B, alpha, beta), [s, 5]."""
    a, b, e, alpha, beta = thetas.T
    return np.stack([np.exp(e), np.exp(a), np.exp(b), alpha, beta], axis=1)


def rejection(thetas: Array, law: Law, other: Law) -> float:
    """How far ``other`` lies from ``law``: the squared Mahalanobis distance of theta by the covariance of the resamples.

    If ``other`` were true it would follow a chi-square law with five degrees of freedom: 20.5 is its 99.9 % point.
    """
    difference = other.theta() - law.theta()
    return float(difference @ np.linalg.solve(np.cov(thetas.T), difference))


def law_of(theta: Array) -> Law:
    """The law of theta [5]."""
    e, a, b, alpha, beta = (float(value) for value in laws(theta[None])[0])
    return Law(E=e, A=a, B=b, alpha=alpha, beta=beta)
