"""Sinusoidal positions: waves of geometrically growing length, added to the token's vector; nothing is learned.

Vaswani 2017, arXiv 1706.03762, section 3.5: PE(p, 2i) = sin(p / 10000^(2i/h)), PE(p, 2i+1) = cos of the same. For every k,
PE(p + k) is a linear function of PE(p): each pair is turned by an angle proportional to k.

Deviation: ``scale`` multiplies the waves. The paper multiplies the token's vector by sqrt(h) instead (section 3.4), which is
the same up to the norm that follows if ``scale`` is 1/sqrt(h).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError


class SinusoidalPositions(nn.Module):
    """positions int64 [batch, time] -> float [batch, time, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int
        theta: float = 10_000.0  # the longest wave is 2π times this
        scale: float = 1.0

        def __post_init__(self) -> None:
            if self.hidden < 2 or self.hidden % 2:
                raise ShapeError(
                    f"Sinusoidal positions of width {self.hidden}", remedy="Give an even width: waves come in pairs."
                )

        def build(self) -> SinusoidalPositions:
            return SinusoidalPositions(self)

    def __init__(self, spec: SinusoidalPositions.Spec) -> None:
        super().__init__()
        self.hidden, self.theta, self.scale = spec.hidden, spec.theta, spec.scale

    def forward(self, positions: Tensor) -> Tensor:
        return self.scale * waves(positions, self.hidden, theta=self.theta)


def waves(positions: Tensor, hidden: int, *, theta: float = 10_000.0) -> Tensor:
    """positions [...] -> sines and cosines, alternating, float32 [..., hidden] (float64 for float64 positions)."""
    kind = positions.dtype if positions.is_floating_point() else torch.float32
    exponents = torch.arange(0, hidden, 2, device=positions.device).to(kind) / hidden
    angles = positions.to(kind).unsqueeze(-1) * theta**-exponents  # [..., hidden / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)
