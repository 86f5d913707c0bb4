"""Repetition penalty: tokens already seen lose (Keskar 2019, arXiv 1909.05858, equation 4): positive logits are divided
by the penalty, negative ones multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.generate.processors.processor import Processor, require


@dataclass(frozen=True, kw_only=True)
class Repetition(Processor):
    """``penalty`` 1 is none; ``window`` the number of last tokens looked at (prompt included), 0 for all."""

    penalty: float
    window: int = 0

    def __post_init__(self) -> None:
        require(0 < self.penalty <= 100, "repetition_penalty", self.penalty, "a number above 0 and at most 100")
        require(self.window >= 0, "window", self.window, "a whole number from 0")

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        seen = torch.tensor(sorted(set(tokens[-self.window :])), dtype=torch.int64)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / self.penalty, values * self.penalty)
        return logits
