"""Normalisation over the last axis: LayerNorm (Ba 2016, arXiv 1607.06450), RMSNorm (Zhang 2019, arXiv 1910.07467)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + epsilon) · (offset + g); x [..., hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int
        epsilon: float = 1e-5
        offset: float = 0.0  # 1 where gains are stored as what they add to 1 (Gemma)

        def build(self) -> RMSNorm:
            return RMSNorm(self)

    def __init__(self, spec: RMSNorm.Spec) -> None:
        super().__init__()
        self.epsilon, self.offset = spec.epsilon, spec.offset
        self.weight = nn.Parameter(torch.full((spec.hidden,), 1.0 - spec.offset))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight + self.offset if self.offset else self.weight
        return F.rms_norm(x, self.weight.shape, gain, self.epsilon)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) · g + b; x [..., hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int
        epsilon: float = 1e-5
        bias: bool = True
        gain: bool = True

        def build(self) -> LayerNorm:
            return LayerNorm(self)

    def __init__(self, spec: LayerNorm.Spec) -> None:
        super().__init__()
        self.epsilon = spec.epsilon
        self.hidden = spec.hidden
        self.register_parameter("weight", nn.Parameter(torch.ones(spec.hidden)) if spec.gain else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(spec.hidden)) if spec.bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.hidden,), self.weight, self.bias, self.epsilon)


class HeadNorm(nn.Module):
    """LayerNorm within each head, with gains of its own for every head: x [batch, heads, time, head_dim].

    ``weight`` [heads, head_dim]. Queries and keys of StableLM 2 and Cohere are normalised so.
    """

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        num_heads: int
        head_dim: int
        epsilon: float = 1e-5

        def build(self) -> HeadNorm:
            return HeadNorm(self)

    def __init__(self, spec: HeadNorm.Spec) -> None:
        super().__init__()
        self.epsilon = spec.epsilon
        self.weight = nn.Parameter(torch.ones(spec.num_heads, spec.head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape[-1:], None, None, self.epsilon) * self.weight.unsqueeze(1)


class UnitNorm(nn.Module):
    """x / sqrt(mean(x²) + epsilon), without gains; x [..., hidden]. Llama 4 normalises turned queries and keys so."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        epsilon: float = 1e-5

        def build(self) -> UnitNorm:
            return UnitNorm(self)

    def __init__(self, spec: UnitNorm.Spec) -> None:
        super().__init__()
        self.epsilon = spec.epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.epsilon)


class NoNorm(nn.Module):
    """x as it is, where a stack has no norm (OPT 350M has none at its end)."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        def build(self) -> NoNorm:
            return NoNorm()

    def forward(self, x: Tensor) -> Tensor:
        return x
