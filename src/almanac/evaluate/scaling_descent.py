"""BFGS from many starts at once, for the small smooth fits of scaling laws.

Deviation from the L-BFGS of Hoffmann 2022, arXiv 2203.15556: the matrix of a handful of unknowns is a handful of numbers,
so it is kept whole, and all starts (or all resamples of a bootstrap) walk beside each other.

Legend: s starts, k unknowns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from almanac.core.value import Value

Array = NDArray[np.float64]
Objective = Callable[[Array], tuple[Array, Array]]
"""theta [s, k] -> (loss [s], gradient [s, k])."""


@dataclass(frozen=True, kw_only=True)
class Descent(Value):
    """How the loss is brought down.

    ``starts``: how many of the grid's points are followed; ``tolerance``: largest component of the gradient of the summed
    loss at which one stops; ``iterations``: at most so many steps.
    """

    starts: int = 64
    tolerance: float = 1e-3
    iterations: int = 300


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
