"""Half a cosine from 1 down to a floor. Loshchilov 2016, arXiv 1608.03983, equation 5, without restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from almanac.train.schedules.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """floor + (1 - floor) · (1 + cos(pi · progress)) / 2."""

    floor: float = 0.0

    def factor(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2
