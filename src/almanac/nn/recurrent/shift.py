"""The token shift of RWKV: each token sees a share of the one before it.

Peng 2023, arXiv 2305.13048, section 3.1: x'_t = μ x_t + (1 - μ) x_{t-1}, channel by channel; the first of a sequence has
zeros before it.

Legend: b batch, t time, h hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.core.spec import Initialiser
from almanac.nn.activation import Activation
from almanac.nn.linear import Linear
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.scan import starts


def shifted(x: Tensor, before: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [b, t, h], the token before the first [b, h] -> (the token before each [b, t, h], the last token [b, h])."""
    earlier = torch.cat([before.to(x.dtype).unsqueeze(1), x[:, :-1]], dim=1)
    begins = starts(segments)
    return (earlier if begins is None else earlier.masked_fill(begins.unsqueeze(-1), 0.0)), x[:, -1]


@dataclass(frozen=True, kw_only=True)
class Spread(Initialiser):
    """From ``low`` to ``high`` evenly along the last dimension."""

    low: float = 0.0
    high: float = 1.0

    def fill(self, tensor: Tensor, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            line = torch.linspace(self.low, self.high, tensor.shape[-1], dtype=tensor.dtype, device=tensor.device)
            tensor.copy_(line.expand_as(tensor))


class LowRank(Site):
    """x [..., in] -> base + up(activation(down(x))) [..., out]: what a token adds to a learned vector (or to nothing)."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        down: Linear.Spec  # in -> rank
        up: Linear.Spec  # rank -> out
        base: Learned.Spec | None = None  # [out]
        activation: Activation | None = None

        def __post_init__(self) -> None:
            require(self.up.in_features, self.down.out_features, "up")
            if self.base is not None:
                require(self.base.size[-1], self.up.out_features, "base")

        def build(self) -> LowRank:
            return LowRank(self)

    def __init__(self, spec: LowRank.Spec) -> None:
        super().__init__()
        self.down, self.up = spec.down.build(), spec.up.build()
        self.base = spec.base.build() if spec.base is not None else None
        self.activation = spec.activation

    def compute(self, x: Tensor) -> Tensor:
        inner = self.down(x)
        y = self.up(inner if self.activation is None else self.activation(inner))
        return y if self.base is None else y + self.base()


def require(found: int, expected: int, name: str) -> None:
    """Raises ShapeError where two sizes that must be one differ."""
    if found != expected:
        raise ShapeError(
            f"{name!r} has {found} where {expected} are needed", remedy="Make the sizes of the layer's parts agree."
        )
