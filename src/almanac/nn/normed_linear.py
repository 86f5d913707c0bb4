"""A linear map with a norm of its own before it, to stand where a linear map stands (the "sub-norms" of BitNet, Ma 2024,
arXiv 2402.17764, after Wang 2022, arXiv 2210.06423)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.nn.linear import Linear


class NormedLinear(Site):
    """x [..., in_features] -> linear(norm(x)) [..., out_features]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        norm: spec.Spec
        linear: Linear.Spec

        @property
        def in_features(self) -> int:
            return self.linear.in_features

        @property
        def out_features(self) -> int:
            return self.linear.out_features

        @property
        def bias(self) -> bool:
            return self.linear.bias

        def build(self) -> NormedLinear:
            return NormedLinear(self)

    def __init__(self, spec: NormedLinear.Spec) -> None:
        super().__init__()
        self.norm, self.linear = spec.norm.build(), spec.linear.build()

    def compute(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))
