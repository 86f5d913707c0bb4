"""The dense channel: down(act(up(x))), the feed-forward layer of Vaswani 2017, arXiv 1706.03762, equation 2."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.nn.activation import Activation, Gelu
from almanac.nn.linear import Linear


class Dense(Site):
    """x [..., hidden] -> [..., hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        up: Linear.Spec
        down: Linear.Spec
        activation: Activation = Gelu()

        def build(self) -> Dense:
            return Dense(self)

    def __init__(self, spec: Dense.Spec) -> None:
        super().__init__()
        self.up, self.down = spec.up.build(), spec.down.build()
        self.activation = spec.activation

    def compute(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


def dense(hidden: int, intermediate: int, *, bias: bool = True, activation: Activation | None = None) -> Dense.Spec:
    """The spec of a dense channel from its two widths."""
    return Dense.Spec(
        up=Linear.Spec(in_features=hidden, out_features=intermediate, bias=bias, axes=("ffn", "embed")),
        down=Linear.Spec(in_features=intermediate, out_features=hidden, bias=bias, axes=("embed", "ffn")),
        activation=activation or Gelu(),
    )
