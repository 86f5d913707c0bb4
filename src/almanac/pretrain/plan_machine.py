"""How fast this machine trains and what it draws, found out by training small models for a moment.

A product of large matrices would tell what the machine could do; what a run gets of it depends on the model's size, tiny
ones being mostly overhead. So a few sizes are tried, and what lies between them is read off a line through their logarithms.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.technique import initialise
from almanac.data.windows import WindowBatches
from almanac.evaluate.scaling_law import FLOPS_PER_PARAMETER_TOKEN
from almanac.pretrain.plan_shape import Shape, shape_of
from almanac.train.events.event import Event, StepDone
from almanac.train.loop import train
from almanac.train.settings import TrainSettings
from almanac.verify.energy import JOULES_PER_WATT_HOUR, EnergyMeter

WARM_UP, TIMED = 1, 4  # steps
TRIED = (16, 64, 192, 384)  # widths; what is larger than the last is expected to be as fast as that
USUAL = TrainSettings(step_tokens=1024, micro_tokens=1024)


@dataclass(frozen=True)
class Machine:
    """What training gets of a machine, and how that is known.

    ``speeds``: (parameters, operations a second as 6 N D counts them), smallest first; ``watts``: what it draws meanwhile.
    """

    speeds: tuple[tuple[float, float], ...]
    watts: float
    how: str

    def __post_init__(self) -> None:
        if not self.speeds or min(map(min, self.speeds)) <= 0 or self.watts < 0:
            raise RequestError(
                f"A machine of speeds {self.speeds} and {self.watts:g} W",
                remedy="Give positive numbers.",
            )

    def flops_per_second(self, parameters: float) -> float:
        """What a model of that size gets; the nearest that was tried, outside of those."""
        sizes, speeds = np.log(np.array(self.speeds)).T
        return float(np.exp(np.interp(math.log(parameters), sizes, speeds)))

    def watt_hours(self, seconds: float) -> float:
        """The energy of so many seconds of training."""
        return seconds * self.watts / JOULES_PER_WATT_HOUR


@dataclass(frozen=True)
class Noise:
    """Random tokens in one document, as a `data.windows.TokenSource`."""

    tokens: Tensor

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def ends(self) -> Tensor:
        return torch.tensor([len(self.tokens)])

    @property
    def digest(self) -> str:
        return hashlib.sha256(bytes(self.tokens.to(torch.int64).numpy())).hexdigest()

    def read(self, start: int, length: int) -> Tensor:
        return self.tokens[start : start + length]


def probe(
    vocab_size: int,
    *,
    window: int = 128,
    settings: TrainSettings = USUAL,
    tell: Callable[[Shape, float], object] = lambda shape, speed: None,
) -> Machine:
    """Trains models of a few sizes for a few steps each, on noise, and reads the clock and the energy meter.

    ``tell`` is told each shape and its operations a second.
    """
    speeds, seconds, watt_hours = [], 0.0, 0.0
    watch = _Watch()
    for width in TRIED:
        shape = shape_of(width, vocab_size)
        speed, watch = _tried(shape, window, settings)
        tell(shape, speed)
        speeds.append((float(shape.parameters), speed))
        seconds, watt_hours = seconds + watch.seconds, watt_hours + watch.energy.watt_hours
    watts = watt_hours * JOULES_PER_WATT_HOUR / seconds
    return Machine(tuple(speeds), watts, f"{TIMED} steps of {len(TRIED)} sizes; energy {watch.energy.method}")


def _tried(shape: Shape, window: int, settings: TrainSettings) -> tuple[float, _Watch]:
    chosen = settings.with_(steps=WARM_UP + TIMED)
    rows = max(1, chosen.step_tokens // window)
    micro = max(1, min(rows, chosen.micro_tokens // window))
    generator = torch.Generator().manual_seed(0)
    source = Noise(torch.randint(shape.vocab_size, (rows * (window - 1) + 1,), generator=generator))
    batches = WindowBatches(source, time=window, rows=rows, micro_rows=micro, steps=WARM_UP + TIMED)
    watch = _Watch()
    train(initialise(shape.spec(window).build(), seed=0), batches, settings=chosen, listeners=[watch])
    return FLOPS_PER_PARAMETER_TOKEN * shape.parameters * rows * (window - 1) * TIMED / watch.seconds, watch


class _Watch:
    """Listener that starts clock and meter when the first steps are over."""

    def __init__(self) -> None:
        self._meter, self._began = EnergyMeter(), 0.0
        self.seconds, self.energy = 0.0, self._meter.read()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone):
            if event.step == WARM_UP:
                self._meter, self._began = EnergyMeter(), time.perf_counter()
            self.seconds, self.energy = time.perf_counter() - self._began, self._meter.read()
