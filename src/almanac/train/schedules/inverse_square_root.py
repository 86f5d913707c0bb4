"""One over the square root of time: a rate that needs no end, as of the first transformer (Vaswani 2017, arXiv 1706.03762,
section 5.3, and T5, Raffel 2019, arXiv 1910.10683, section 3.1.2).

    factor = √(τ / (τ + p))

p is the share of the run after warm-up that is done, τ the time scale in the same unit. The paper's rate, proportional to
min(s / w^1.5, s^-0.5) in steps s with w of warm-up, is this one with τ = w / (steps - w): `timescale_after`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from almanac.core.errors import UnsupportedError
from almanac.train.schedules.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Schedule):
    """Falls to 1/√2 at ``timescale``, to half at three times that."""

    timescale: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.timescale < float("inf"):
            raise UnsupportedError(f"A time scale of {self.timescale:g}", remedy="Give a number above 0.")

    def factor(self, progress: float) -> float:
        return math.sqrt(self.timescale / (self.timescale + progress))


def timescale_after(warmup: float) -> float:
    """The time scale with which the fall goes on from a warm-up over this share of all steps as the paper's does."""
    return warmup / (1 - warmup)
