"""Pointwise activations as values: SiLU and GELU (Hendrycks 2016, arXiv 1606.08415) with its approximations, ReLU and its
square (So 2021, arXiv 2109.08668), Mish (Misra 2019, arXiv 1908.08681), tanh."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Activation(Value):
    """A pointwise function that has no weights."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Silu(Activation):
    """x · sigmoid(x)."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(x)


@dataclass(frozen=True, kw_only=True)
class Gelu(Activation):
    """x · Phi(x), exact."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(x)


@dataclass(frozen=True, kw_only=True)
class GeluTanh(Activation):
    """The tanh approximation of GELU that GPT-2 and Gemma were trained with."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


@dataclass(frozen=True, kw_only=True)
class Relu(Activation):
    """max(x, 0)."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.relu(x)


@dataclass(frozen=True, kw_only=True)
class Tanh(Activation):
    """The hyperbolic tangent, of BERT's pooler."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.tanh()


@dataclass(frozen=True, kw_only=True)
class QuickGelu(Activation):
    """x · sigmoid(1.702 x), the coarser approximation of GELU."""

    def __call__(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


@dataclass(frozen=True, kw_only=True)
class ReluSquared(Activation):
    """max(x, 0)²."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@dataclass(frozen=True, kw_only=True)
class Mish(Activation):
    """x · tanh(ln(1 + eˣ))."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.mish(x)
