"""Queries that grow sharper with their position, for layers that have no other: q · (1 + a · ln(1 + floor((m + 1) / f))).

Llama 4's code (2025), after Nakanishi 2025, arXiv 2501.19399 (scalable softmax, whose factor is s · ln n): the softmax of a
long text is spread over many keys, and larger scores gather it again. Steps of f tokens leave the trained length as it was.
Legend: m position from 0, f ``step`` in tokens, a ``strength``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.state import Context


class Temperature(nn.Module):
    """q [batch, heads, time, head_dim], k -> q scaled by its positions, k as it is; stands where `Rope` does."""

    by_length: None = None  # as `Rope` tells it: what is done to keys does not depend on who reads them

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        step: float  # tokens
        strength: float

        def __post_init__(self) -> None:
            if not self.step > 0:
                raise ShapeError(f"A temperature in steps of {self.step} tokens", remedy="Give a positive step.")

        @property
        def rotary_dim(self) -> int:
            """None is turned."""
            return 0

        def build(self) -> Temperature:
            return Temperature(self)

    def __init__(self, spec: Temperature.Spec) -> None:
        super().__init__()
        self.step, self.strength = spec.step, spec.strength
        self.key = f"temperature/{spec.digest()}"

    def forward(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        found = context.memo.get(self.key)
        if found is None:
            steps = ((context.positions.to(torch.float32) + 1.0) / self.step).floor()
            found = (steps.log1p() * self.strength + 1.0)[:, None, :, None]  # [batch, 1, time, 1]
            context.memo[self.key] = found
        return q * found.to(q.dtype), k
