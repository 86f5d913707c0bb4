"""The linear map, y = x Wᵀ + b."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.site import Leaf
from almanac.core.spec import Initialiser, Normal
from almanac.core.weight import StoredWeight
from almanac.nn.product import linear


class Linear(Leaf):
    """x [..., in_features] -> [..., out_features]; ``weight`` [out_features, in_features]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        in_features: int
        out_features: int
        bias: bool = False
        axes: tuple[str, str] = ("none", "embed")  # logical names of [out, in]
        initialiser: Initialiser = Normal()

        def build(self) -> Linear:
            return Linear(self)

    def __init__(self, spec: Linear.Spec) -> None:
        super().__init__((spec.out_features, spec.in_features), axes=spec.axes, initialiser=spec.initialiser)
        self.register_parameter("bias", nn.Parameter(torch.zeros(spec.out_features)) if spec.bias else None)

    def compute(self, x: Tensor) -> Tensor:
        if isinstance(self.weight, StoredWeight):
            y = self.weight.apply_linear(x)
            return y if self.bias is None else y + self.bias
        return linear(x, self.weight, self.bias)
