"""Normalisation over the last axis: LayerNorm (Ba 2016, arXiv 1607.06450), RMSNorm (Zhang 2019, arXiv 1910.07467)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + epsilon) · g; x [..., hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int
        epsilon: float = 1e-5

        def build(self) -> RMSNorm:
            return RMSNorm(self)

    def __init__(self, spec: RMSNorm.Spec) -> None:
        super().__init__()
        self.epsilon = spec.epsilon
        self.weight = nn.Parameter(torch.ones(spec.hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) · g + b; x [..., hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int
        epsilon: float = 1e-5
        bias: bool = True

        def build(self) -> LayerNorm:
            return LayerNorm(self)

    def __init__(self, spec: LayerNorm.Spec) -> None:
        super().__init__()
        self.epsilon = spec.epsilon
        self.weight = nn.Parameter(torch.ones(spec.hidden))
        self.register_parameter("bias", nn.Parameter(torch.zeros(spec.hidden)) if spec.bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
