"""The gated channel: down(act(gate(x)) · up(x)). Shazeer 2020, arXiv 2002.05202 (SwiGLU with SiLU, GEGLU with GELU)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.nn.activation import Activation, Silu
from almanac.nn.linear import Linear


class Gated(Site):
    """x [..., hidden] -> [..., hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        gate: Linear.Spec
        up: Linear.Spec
        down: Linear.Spec
        activation: Activation = Silu()

        def build(self) -> Gated:
            return Gated(self)

    def __init__(self, spec: Gated.Spec) -> None:
        super().__init__()
        self.gate, self.up, self.down = spec.gate.build(), spec.up.build(), spec.down.build()
        self.activation = spec.activation

    def compute(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x)) * self.up(x))


def gated(hidden: int, intermediate: int, *, bias: bool = False, activation: Activation | None = None) -> Gated.Spec:
    """The spec of a gated channel from its two widths."""
    inward = Linear.Spec(in_features=hidden, out_features=intermediate, bias=bias, axes=("ffn", "embed"))
    outward = Linear.Spec(in_features=intermediate, out_features=hidden, bias=bias, axes=("embed", "ffn"))
    return Gated.Spec(gate=inward, up=inward, down=outward, activation=activation or Silu())
