"""The causal depthwise convolution: every channel is a weighted sum of its own last few values.

    y_tc = bias_c + sum_k W_ck x_{t - width + 1 + k, c}

What came before is given (zeros at a beginning), so that a sequence fed in pieces gives what it gives whole; taps that
reach into another packed sequence read zero.

Legend: b batch, t time, c channels, w width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Leaf
from almanac.core.spec import Initialiser


@dataclass(frozen=True, kw_only=True)
class Uniform(Initialiser):
    """Uniform within ±bound."""

    bound: float

    def fill(self, tensor: Tensor, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            tensor.uniform_(-self.bound, self.bound, generator=generator)


class CausalConv(Leaf):
    """x [b, t, c], before [b, w - 1, c] -> (y [b, t, c], the last w - 1 values); ``weight`` [c, 1, w]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        channels: int
        width: int = 4
        bias: bool = True
        axes: tuple[str, str, str] = ("ffn", "none", "none")
        initialiser: Initialiser = Uniform(bound=0.5)  # 1/sqrt(width)

        def __post_init__(self) -> None:
            if self.width < 1:
                raise ShapeError(f"A convolution of width {self.width}", remedy="Give a whole number from 1.")

        def build(self) -> CausalConv:
            return CausalConv(self)

    def __init__(self, spec: CausalConv.Spec) -> None:
        super().__init__((spec.channels, 1, spec.width), axes=spec.axes, initialiser=spec.initialiser)
        self.register_parameter("bias", nn.Parameter(torch.zeros(spec.channels)) if spec.bias else None)

    def compute(self, x: Tensor, before: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
        weight, time, past = self.dense_weight()[:, 0], x.shape[1], before.shape[1]
        values = torch.cat([before.to(x.dtype), x], dim=1)  # [b, w - 1 + t, c]
        if segments is not None:
            segments = torch.cat([segments[:, :1].expand(-1, past), segments], dim=1)
        y = torch.zeros_like(x) if self.bias is None else self.bias.expand_as(x)
        for tap in range(past + 1):
            seen = _of(values[:, tap : tap + time], segments, slice(tap, tap + time), slice(past, None))
            y = torch.addcmul(y, seen, weight[:, tap])
        return y, _of(values[:, time:], segments, slice(time, None), slice(-1, None))


def _of(values: Tensor, segments: Tensor | None, own: slice, readers: slice) -> Tensor:
    """``values`` where their segment is that of who reads them, else 0."""
    if segments is None:
        return values
    return values * (segments[:, own] == segments[:, readers]).unsqueeze(-1)
