"""What every learning-rate schedule obeys, and the warm-up before it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Schedule(Value):
    """The learning rate as a share of its peak, by how much of the run after warm-up is done."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """progress in [0, 1) -> factor in [0, 1]."""


def learning_rate(step: int, steps: int, *, peak: float, warmup: float, schedule: Schedule) -> float:
    """The learning rate of one step.

    A pure function of the step, so that nothing has to be saved or can be counted twice: the first ``warmup`` share of
    the steps rises linearly from peak / n to the peak (Goyal 2017, arXiv 1706.02677, section 2.2), never from zero,
    which would waste a step; the rest follows the schedule.

    Args:
        step: from 0. ``steps``: of the whole run. ``peak``: the highest rate. ``warmup``: share of steps in [0, 1].
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * schedule.factor((step - rising) / (steps - rising))
