"""Warm-up, stable, decay: the peak is held for most of the run and falls only in the last part of it.

WSD (Hu 2024, arXiv 2404.06395, section 4): since the stable part does not know how long the run will be, a run can be
prolonged from any of its checkpoints, and a short decay from there gives a model as good as a cosine of that length. The
decay is another schedule, over the last ``decay`` share: MiniCPM's own is exponential, a line and 1 - √ progress are common
(Hägele 2024, arXiv 2405.18392, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from almanac.core.errors import UnsupportedError
from almanac.train.schedules.linear import Linear
from almanac.train.schedules.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Stable(Schedule):
    """1, then ``tail`` over the last ``decay`` share of the steps after warm-up."""

    decay: float = 0.1
    tail: Schedule = Linear()

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise UnsupportedError(f"A decay over {self.decay:g} of the run", remedy="Give a share from 0 to 1.")

    def factor(self, progress: float) -> float:
        held = 1 - self.decay
        return 1.0 if progress < held or not self.decay else self.tail.factor((progress - held) / self.decay)


@dataclass(frozen=True, kw_only=True)
class SquareRootFall(Schedule):
    """1 - (1 - floor) · √ progress: fast at first, slow at the end."""

    floor: float = 0.0

    def factor(self, progress: float) -> float:
        return 1 - (1 - self.floor) * math.sqrt(progress)


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """floor to the power of progress: the same share is lost in the same time."""

    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise UnsupportedError(f"An exponential down to {self.floor:g}", remedy="Give a floor above 0, 1 at most.")

    def factor(self, progress: float) -> float:
        return self.floor**progress
