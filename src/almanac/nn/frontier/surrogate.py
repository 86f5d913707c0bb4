"""Surrogates: what stands in for the derivative of a spike, which has none where it matters.

A neuron fires by Θ(u), whose derivative is zero or infinite. While learning, the slope of a smooth curve of the same shape is
used in its place (Neftci 2019, arXiv 1901.09948); which curve, is a value. Each states its ``primitive`` too, the curve
itself, so that the slope can be checked against it.

Legend: u, how far the membrane is above its threshold.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Surrogate(Value):
    """A spike and the slope that is learned from."""

    def spike(self, u: Tensor) -> Tensor:
        """Θ(u): 1 where the threshold is reached, else 0, in u's dtype."""
        return (u >= 0).to(u.dtype)

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """What stands for dΘ/du."""

    @abstractmethod
    def primitive(self, u: Tensor) -> Tensor:
        """A curve whose derivative is ``slope``."""


@dataclass(frozen=True, kw_only=True)
class Arctan(Surrogate):
    """arctan(π/2 · α u)/π + 1/2 (Fang 2021, arXiv 2007.05785); SpikeGPT's, with α = 2."""

    alpha: float = 2.0

    def slope(self, u: Tensor) -> Tensor:
        return self.alpha / 2 / (1 + (math.pi / 2 * self.alpha * u).square())

    def primitive(self, u: Tensor) -> Tensor:
        return torch.atan(math.pi / 2 * self.alpha * u) / math.pi + 0.5


@dataclass(frozen=True, kw_only=True)
class Logistic(Surrogate):
    """1/(1 + exp(-β u)); it becomes Θ itself as β grows."""

    beta: float = 4.0

    def slope(self, u: Tensor) -> Tensor:
        y = torch.sigmoid(self.beta * u)
        return self.beta * y * (1 - y)

    def primitive(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * u)


@dataclass(frozen=True, kw_only=True)
class FastLogistic(Surrogate):
    """u/(1 + β|u|) (SuperSpike: Zenke 2018, arXiv 1705.11146, equation 5)."""

    beta: float = 10.0

    def slope(self, u: Tensor) -> Tensor:
        return (1 + self.beta * u.abs()).square().reciprocal()

    def primitive(self, u: Tensor) -> Tensor:
        return u / (1 + self.beta * u.abs())


@dataclass(frozen=True, kw_only=True)
class Triangle(Surrogate):
    """A slope that falls linearly to zero at distance 1 from the threshold (Bellec 2018, arXiv 1803.09574, equation 5)."""

    height: float = 0.3  # the authors' γ, which damps what runs back through many steps

    def slope(self, u: Tensor) -> Tensor:
        return self.height * (1 - u.abs()).clamp(min=0)

    def primitive(self, u: Tensor) -> Tensor:
        near = u.clamp(-1, 1)
        return self.height * (near - near * near.abs() / 2 + 0.5)
