"""What a fit of a scaling law is punished for: three losses of the distance between a run's loss and the law's.

Huber 1964 on log L is Hoffmann's choice (2022, arXiv 2203.15556, equation 3): a run that diverged moves the law little.
Squares of log L weigh every run by its relative error, squares of L by its absolute one; both give a wild run much say.
All are in units of ``delta``, so that one tolerance of the descent suits all three.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from almanac.core.value import Value
from almanac.evaluate.scaling_descent import Array

DELTA = 1e-3  # where Hoffmann's Huber loss turns from square to straight, in log L


@dataclass(frozen=True, kw_only=True)
class FitLoss(Value):
    """A loss of predicted log L against found log L."""

    @abstractmethod
    def of(self, predicted: Array, found: Array) -> tuple[Array, Array]:
        """log L [s, n] and [n] -> (loss, its slope by the predicted log L), [s, n] each."""


@dataclass(frozen=True, kw_only=True)
class Huber(FitLoss):
    """Square up to a residual of ``delta`` in log L, straight beyond it."""

    delta: float = DELTA

    def of(self, predicted: Array, found: Array) -> tuple[Array, Array]:
        residual = (predicted - found) / self.delta
        size = np.abs(residual)
        return self.delta * np.where(size <= 1, residual**2 / 2, size - 0.5), np.clip(residual, -1, 1)


@dataclass(frozen=True, kw_only=True)
class LogSquared(FitLoss):
    """The square of the residual in log L."""

    delta: float = DELTA

    def of(self, predicted: Array, found: Array) -> tuple[Array, Array]:
        residual = predicted - found
        return residual**2 / (2 * self.delta), residual / self.delta


@dataclass(frozen=True, kw_only=True)
class Squared(FitLoss):
    """The square of the residual in L itself, nats."""

    delta: float = DELTA

    def of(self, predicted: Array, found: Array) -> tuple[Array, Array]:
        loss = np.exp(np.minimum(predicted, 50.0))  # a start far away must not overflow
        residual = loss - np.exp(found)
        return residual**2 / (2 * self.delta), residual * loss / self.delta


LOSSES: dict[str, FitLoss] = {"huber": Huber(), "log-squared": LogSquared(), "squared": Squared()}
"""By the names that a command line knows."""
