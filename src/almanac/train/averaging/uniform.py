"""Uniform average of the last part of a run: every so many steps the weights count alike.

Stochastic weight averaging (Izmailov 2018, arXiv 1803.05407, algorithm 1), made for a constant or cyclical rate:

    a ← (n a + θ) / (n + 1)     after each ``every``-th step, from the share ``start`` of the run on
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.train.averaging.average import AverageRule, State, Weights
from almanac.train.averaging.ema import COUNT, MEAN, means


@dataclass(frozen=True, kw_only=True)
class Uniform(AverageRule):
    """``start``: share of the run before the average begins; ``every``: steps between two that count."""

    start: float = 0.75
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1 or self.every < 1:
            raise UnsupportedError(
                f"An average from {self.start:g} of the run on, every {self.every} steps",
                remedy="Give a share below 1, and 1 step or more.",
            )

    def take(self, state: State, weights: Weights, progress: tuple[int, int]) -> None:
        step, steps = progress
        if step <= self.start * steps or step % self.every:
            return
        count = int(state[COUNT]) if state else 0
        state[COUNT] = torch.tensor(count + 1)
        for name, weight in weights.items():
            if count == 0:
                state[MEAN + name] = weight.float().clone()
            else:
                state[MEAN + name].lerp_(weight.float(), 1 / (count + 1))

    def mean(self, state: State) -> dict[str, Tensor]:
        return means(state)
