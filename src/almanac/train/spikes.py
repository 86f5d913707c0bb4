"""Which losses are too bad to learn from, and how often a run may go back before it gives up.

The ladder, whatever is wrong: the update is left out -> after several such steps in a row the run goes back to its last good
checkpoint and leaves out the data since (Chowdhery 2022, arXiv 2204.02311, section 5.1: PaLM's spikes did not come again with
other data; nor did they when the same data met weights of another time, so that it takes both) -> after several returns it
stops and tells. Losses and gradients that are not finite always go this way; finite losses do if judged by :class:`Spikes`.

A loss l is a spike where l - m > deviations · s and l - m > rise · m: m, s running mean and deviation over good steps.

All that decides is in the checkpoint, so that a run that was killed climbs the ladder as one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from almanac.core.errors import UnsupportedError
from almanac.core.value import Value

SMOOTHING = 0.95  # of the running mean and variance of the loss


@dataclass
class LossStatistics:
    """Running mean and variance of the losses of good steps; nothing that is not finite ever goes in."""

    mean: float | None = None
    variance: float = 0.0
    steps: int = 0

    def take(self, loss: float) -> None:
        """Takes in the loss of a step that updated the weights."""
        before = loss if self.mean is None else self.mean
        self.variance = SMOOTHING * (self.variance + (1 - SMOOTHING) * (loss - before) ** 2)
        self.mean = SMOOTHING * before + (1 - SMOOTHING) * loss
        self.steps += 1


@dataclass(frozen=True, kw_only=True)
class Spikes(Value):
    """What counts as a spike.

    - ``deviations``: standard deviations above the running mean; ``rise``: and at least this share of the mean
    - ``patience``: good steps before any loss is judged
    """

    deviations: float = 8.0
    rise: float = 0.1
    patience: int = 50

    def __post_init__(self) -> None:
        if self.deviations <= 0 or self.rise < 0 or self.patience < 1:
            raise UnsupportedError(
                f"Spikes of {self.deviations:g} deviations and a rise of {self.rise:g} after {self.patience} steps",
                remedy="Give deviations above 0, a rise of 0 or more, and a patience of 1 or more.",
            )

    def found_in(self, loss: float, statistics: LossStatistics) -> bool:
        """Whether ``loss`` is one."""
        if statistics.mean is None or statistics.steps < self.patience:
            return False
        above = loss - statistics.mean
        return above > self.deviations * math.sqrt(statistics.variance) and above > self.rise * abs(statistics.mean)
