"""How many steps fit into a time: a few are taken, on weights that are thrown away, and the usual one is what counts."""

from __future__ import annotations

from statistics import median

from torch import nn

from almanac.train.criterion import Criterion
from almanac.train.events.event import Event, StepDone
from almanac.train.loop import train
from almanac.train.settings import TrainSettings
from almanac.train.training import Batches

TRIED = 6  # steps; the first two, in which memory is first touched, do not count
LEAST = 10  # steps of any run


def steps_within(
    network: nn.Module, batches: Batches, *, settings: TrainSettings, criterion: Criterion, minutes: float
) -> tuple[int, float]:
    """(steps that take about ``minutes``, seconds of one), from ``batches`` of `TRIED` steps.

    Trains ``network``: give one to throw away.
    """
    seconds: list[float] = []

    def listener(event: Event) -> None:
        if isinstance(event, StepDone):
            seconds.append(event.seconds)

    chosen = settings.with_(steps=TRIED)
    train(network, batches, settings=chosen, criterion=criterion, listeners=(listener,))
    usual = median(seconds[2:])
    return max(LEAST, round(60 * minutes / usual)), usual
