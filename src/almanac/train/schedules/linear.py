"""A straight line from 1 down to a floor; with floor 1 the rate stays constant."""

from __future__ import annotations

from dataclasses import dataclass

from almanac.train.schedules.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    """1 - (1 - floor) · progress."""

    floor: float = 0.0

    def factor(self, progress: float) -> float:
        return 1 - (1 - self.floor) * progress
