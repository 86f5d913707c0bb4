"""Exponential moving average: every step the average goes a small part of the way to the weights.

Tarvainen 2017, arXiv 1703.01780, section 2 (the mean teacher):  a ← d a + (1 - d) θ.

Weights n steps ago count d^n; the average spans about 1 / (1 - d) steps. After n steps d is min(decay, (1 + n) / (10 + n)),
so that a young average is not one of where the run began.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.train.averaging.average import AverageRule, State, Weights

COUNT, MEAN = "count", "mean/"


@dataclass(frozen=True, kw_only=True)
class Ema(AverageRule):
    """``decay`` d in [0, 1)."""

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UnsupportedError(f"A decay of {self.decay:g}", remedy="Give a number from 0 up to, not including, 1.")

    def take(self, state: State, weights: Weights, progress: tuple[int, int]) -> None:
        count = int(state[COUNT]) if state else 0
        state[COUNT] = torch.tensor(count + 1)
        decay = min(self.decay, (1 + count) / (10 + count))
        for name, weight in weights.items():
            if count == 0:
                state[MEAN + name] = weight.float().clone()
            else:
                state[MEAN + name].lerp_(weight.float(), 1 - decay)

    def mean(self, state: State) -> dict[str, Tensor]:
        return means(state)


def means(state: State) -> dict[str, Tensor]:
    """The running means of a state, by parameter name."""
    return {key.removeprefix(MEAN): tensor for key, tensor in state.items() if key.startswith(MEAN)}
