"""Rotary position embedding: queries and keys are rotated by an angle proportional to their position, so that their dot
product depends on the distance alone.

Su 2021, arXiv 2104.09864, equation 34; angle of pair i at position m: m · theta^(-2i/d). The two halves of a head form
the pairs (x_i, x_{i+d/2}) ("half-split", as Llama checkpoints of the hub are stored); GGUF files of the llama
architecture store rows for neighbouring pairs and are permuted when read.

Frequencies can be rescaled to reach further than trained: ``Linear`` divides all positions (Chen 2023, arXiv
2306.15595), ``Llama3`` divides only the long wavelengths (Llama 3 report, arXiv 2407.21783).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.core.technique import Derived
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Scaling(Value):
    """How the rotation frequencies are changed."""

    @abstractmethod
    def scale(self, frequencies: Tensor) -> Tensor:
        """frequencies float32 [rotary_dim / 2] -> the same shape."""


@dataclass(frozen=True, kw_only=True)
class Linear(Scaling):
    """Every frequency divided by ``factor``."""

    factor: float

    def scale(self, frequencies: Tensor) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3(Scaling):
    """Wavelengths over ``original / low`` divided by ``factor``, under ``original / high`` kept, blended between."""

    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192  # context length before scaling, tokens

    def scale(self, frequencies: Tensor) -> Tensor:
        wavelengths = 2 * math.pi / frequencies
        blend = ((self.original / wavelengths - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - blend) * frequencies / self.factor + blend * frequencies


@dataclass(frozen=True, kw_only=True)
class Factors(Scaling):
    """Each frequency divided by its own factor, as GGUF files tell it (``rope_freqs``)."""

    factors: tuple[float, ...]

    def scale(self, frequencies: Tensor) -> Tensor:
        return frequencies / torch.tensor(self.factors)


class Rope(nn.Module, Derived):
    """q [batch, heads, time, head_dim], k [batch, kv_heads, time, head_dim] -> the same, rotated."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        rotary_dim: int
        theta: float = 10_000.0
        scaling: Scaling | None = None

        def __post_init__(self) -> None:
            if self.rotary_dim < 2 or self.rotary_dim % 2:
                raise ShapeError(
                    f"Rotary positions over {self.rotary_dim} dimensions",
                    remedy="Give an even number: they are turned in pairs.",
                )

        def build(self) -> Rope:
            return Rope(self)

    def __init__(self, spec: Rope.Spec) -> None:
        super().__init__()
        self.spec = spec
        self.key = f"rope/{spec.digest()}"
        self.register_buffer("frequencies", torch.empty(spec.rotary_dim // 2), persistent=False)
        if not self.frequencies.is_meta:
            self.derive()

    def derive(self) -> None:
        self.frequencies = frequencies(self.spec)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rope:
        """Moves with the model but stays float32: angles of far positions do not survive half precision."""
        super()._apply(fn, recurse)
        if self.frequencies.dtype != torch.float32:
            self.frequencies = frequencies(self.spec).to(self.frequencies.device)
        return self

    def forward(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        found = context.memo.get(self.key)
        if found is None:
            angles = context.positions.to(torch.float32).unsqueeze(-1) * self.frequencies  # [batch, time, rotary/2]
            found = (angles.cos().unsqueeze(1), angles.sin().unsqueeze(1))
            context.memo[self.key] = found
        cos, sin = found
        return rotate(q, cos, sin), rotate(k, cos, sin)


def frequencies(spec: Rope.Spec) -> Tensor:
    """theta^(-2i/d), scaled; float32 [rotary_dim / 2]."""
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).to(torch.float32) / spec.rotary_dim
    base = 1.0 / (spec.theta**exponents)
    return spec.scaling.scale(base) if spec.scaling else base


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [batch, heads, time, head_dim]; cos, sin [batch, 1, time, rotary/2]; the dims past the rotary ones pass."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    parts = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*parts, rest] if rest.shape[-1] else parts, dim=-1)
