"""Cosine with warm restarts: several half cosines, each from the peak again; the last ends where the run does.

SGDR (Loshchilov 2016, arXiv 1608.03983, equation 5 and section 3): cycles may grow by a factor, T_mult there. Lengths are
shares of the run after warm-up, so that cycles always end with the run: 1, g, g², ... over their sum. Weights just before
a restart are those of a finished run of that length.
"""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.errors import UnsupportedError
from almanac.train.schedules.cosine import Cosine
from almanac.train.schedules.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class CosineRestarts(Schedule):
    """``cycles`` of them, each ``growth`` times as long as the one before."""

    cycles: int = 3
    growth: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.cycles < 1 or not 0 < self.growth < float("inf"):
            raise UnsupportedError(
                f"{self.cycles} cycles that grow by {self.growth:g}", remedy="Give 1 cycle or more, and growth above 0."
            )

    def factor(self, progress: float) -> float:
        lengths = [self.growth**cycle for cycle in range(self.cycles)]
        left = progress * sum(lengths)  # in units of the first cycle
        while len(lengths) > 1 and left >= lengths[0]:
            left -= lengths.pop(0)
        return Cosine(floor=self.floor).factor(min(left / lengths[0], 1.0))
