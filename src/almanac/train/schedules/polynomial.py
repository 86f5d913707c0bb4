"""A power of what is left of the run, down to a floor: 1 is a line, 2 a parabola that comes to rest at its end.

Chen 2016, arXiv 1606.00915 ("poly", power 0.9), found it better than steps at equal length; BERT and T5 train with power 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from almanac.core.errors import UnsupportedError
from almanac.train.schedules.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Polynomial(Schedule):
    """floor + (1 - floor) · (1 - progress)^power."""

    power: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.power < float("inf"):
            raise UnsupportedError(f"A power of {self.power:g}", remedy="Give a number above 0.")

    def factor(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 - progress) ** self.power
