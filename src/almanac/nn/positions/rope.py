"""Rotary position embedding: queries and keys are rotated by an angle proportional to their position, so that their dot
product depends on the distance alone.

Su 2021, arXiv 2104.09864, equation 34; angle of pair i at position m: m · theta^(-2i/d). The two halves of a head form
the pairs (x_i, x_{i+d/2}) ("half-split", as Llama checkpoints of the hub are stored); GGUF files of the llama
architecture store rows for neighbouring pairs and are permuted when read.

Frequencies can be rescaled to reach further than trained, by s times:

- ``Linear`` divides all by s: positions are interpolated (PI; Chen 2023, arXiv 2306.15595, equation 4);
- ``Ntk`` raises theta to theta · s^(d/(d-2)), so that the slowest pair is divided by s and the fastest is kept (Peng 2023,
  arXiv 2309.00071, definition 1);
- ``Dynamic`` is that with an s that grows with the text (section 3.3);
- ``Yarn`` divides by s only pairs that turn seldom within the trained length, and sharpens the softmax by a temperature
  (definition 3; the ramp runs over the index of a pair, as in the authors' code and all checkpoints, not over its turns);
- ``Llama3`` divides only the long wavelengths (Llama 3 report, arXiv 2407.21783);
- ``LongRope`` divides each pair by a factor of its own, found by search, one table up to the trained length and one beyond
  (Ding 2024, arXiv 2402.13753).

Some checkpoints turn neighbours (x_{2i}, x_{2i+1}) instead, as the paper writes it: ``interleaved``.

Under ``Dynamic`` and ``LongRope`` a key's angle depends on the length that its reader has seen. Keys are therefore kept as
they were before they were turned, and every query turns them for its own length (as section 3.3 asks of caches), so that
decoding with a state gives what decoding without one gives. That costs a pass over the keys for every length beyond the
trained one (``LongRope``: one for all). Implementations that turn a whole text for its last token's length agree with this
up to the trained length, and for the last token.
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
    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        """frequencies theta^(-2i/d), float32 [rotary_dim / 2] -> the same shape."""

    @property
    def temperature(self) -> float:
        """What queries and keys are both multiplied by (1/sqrt(t) of the YaRN paper)."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear(Scaling):
    """Every frequency divided by ``factor``."""

    factor: float

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class Ntk(Scaling):
    """Theta raised so that the slowest frequency is divided by ``factor`` and the fastest is kept."""

    factor: float

    def __post_init__(self) -> None:
        _require_stretch(self.factor)

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        return raised(frequencies, self.factor)


@dataclass(frozen=True, kw_only=True)
class ByLength(Scaling):
    """A scaling that depends on how long a text is."""

    @abstractmethod
    def at(self, frequencies: Tensor, length: int) -> Tensor:
        """The frequencies for a text of ``length`` tokens, from those before scaling."""

    @abstractmethod
    def regime(self, lengths: Tensor) -> Tensor:
        """int64, the same shape: for each length one that has the same frequencies, as few different ones as can be."""

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies


@dataclass(frozen=True, kw_only=True)
class Dynamic(ByLength):
    """``Ntk`` by ``factor · length / original - (factor - 1)`` for a text of ``length`` tokens; none up to ``original``."""

    factor: float
    original: int  # context length before scaling, tokens

    def __post_init__(self) -> None:
        _require_stretch(self.factor)
        _require_length(self.original)

    def at(self, frequencies: Tensor, length: int) -> Tensor:
        return raised(frequencies, self.factor * max(length, self.original) / self.original - (self.factor - 1))

    def regime(self, lengths: Tensor) -> Tensor:
        return lengths.clamp(min=self.original)


@dataclass(frozen=True, kw_only=True)
class LongRope(ByLength):
    """Each frequency divided by its factor in ``short`` up to ``original`` tokens, in ``long`` beyond."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int  # context length before scaling, tokens
    attention: float = 1.0  # the temperature

    def __post_init__(self) -> None:
        _require_length(self.original)
        if len(self.short) != len(self.long) or not all(factor > 0 for factor in (*self.short, *self.long)):
            raise ShapeError(
                f"{len(self.short)} short and {len(self.long)} long factors", remedy="Give one above 0 for each pair."
            )

    @property
    def temperature(self) -> float:
        return self.attention

    def at(self, frequencies: Tensor, length: int) -> Tensor:
        return frequencies / torch.tensor(self.long if length > self.original else self.short)

    def regime(self, lengths: Tensor) -> Tensor:
        return self.original + (lengths > self.original).to(lengths.dtype)


@dataclass(frozen=True, kw_only=True)
class Yarn(Scaling):
    """Pairs that turn over ``fast`` times within ``original`` kept, under ``slow`` divided by ``factor``, blended between."""

    factor: float
    original: int  # context length before scaling, tokens
    fast: float = 32.0  # beta of the paper
    slow: float = 1.0  # alpha
    attention: float | None = None  # the temperature; None: 0.1 ln(factor) + 1, equation 22
    whole: bool = True  # the blend begins and ends at whole indices

    def __post_init__(self) -> None:
        _require_stretch(self.factor)
        _require_length(self.original)
        if not 0 < self.slow < self.fast:
            raise ShapeError(
                f"YaRN between {self.slow} and {self.fast} turns", remedy="Give 0 < slow < fast, usually 1 and 32."
            )

    @property
    def temperature(self) -> float:
        return 0.1 * math.log(self.factor) + 1 if self.attention is None else self.attention

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        rotary_dim = 2 * len(frequencies)
        low, high = self._index(self.fast, rotary_dim, theta), self._index(self.slow, rotary_dim, theta)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary_dim - 1)
        width = high - low if high != low else 0.001  # the authors' way around a blend of no width
        kept = 1 - ((torch.arange(len(frequencies), dtype=torch.float32) - low) / width).clamp(0, 1)
        turns = theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.int64).to(torch.float32) / rotary_dim)
        return 1.0 / (self.factor * turns) * (1 - kept) + 1.0 / turns * kept  # in this order checkpoints were trained

    def _index(self, turns: float, rotary_dim: int, theta: float) -> float:
        """Which pair, counted in fractions, turns ``turns`` times within the original length."""
        return rotary_dim * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))


@dataclass(frozen=True, kw_only=True)
class Llama3(Scaling):
    """Wavelengths over ``original / low`` divided by ``factor``, under ``original / high`` kept, blended between."""

    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192  # context length before scaling, tokens

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        wavelengths = 2 * math.pi / frequencies
        blend = ((self.original / wavelengths - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - blend) * frequencies / self.factor + blend * frequencies


@dataclass(frozen=True, kw_only=True)
class Factors(Scaling):
    """Each frequency divided by its own factor, as GGUF files tell it (``rope_freqs``)."""

    factors: tuple[float, ...]

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / torch.tensor(self.factors)


def raised(frequencies: Tensor, stretch: float) -> Tensor:
    """theta^(-2i/d) -> (theta · stretch^(d/(d-2)))^(-2i/d); frequencies [d / 2]."""
    rotary_dim = 2 * len(frequencies)
    if rotary_dim == 2:  # the one pair is the fastest
        return frequencies
    return frequencies * stretch ** (-2 * torch.arange(len(frequencies), dtype=torch.float32) / (rotary_dim - 2))


def _require_stretch(factor: float) -> None:
    if not factor >= 1:
        raise ShapeError(f"Rotary positions stretched by {factor}", remedy="Give a factor of at least 1.")


def _require_length(original: int) -> None:
    if original < 1:
        raise ShapeError(
            f"An original context of {original} tokens", remedy="Give the length the model was trained at."
        )


class Rope(nn.Module, Derived):
    """q [batch, heads, time, head_dim], k [batch, kv_heads, time, head_dim] -> the same, rotated."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        rotary_dim: int
        theta: float = 10_000.0
        scaling: Scaling | None = None
        interleaved: bool = False  # pairs are neighbours, not halves

        def __post_init__(self) -> None:
            if self.rotary_dim < 2 or self.rotary_dim % 2:
                raise ShapeError(
                    f"Rotary positions over {self.rotary_dim} dimensions",
                    remedy="Give an even number: they are turned in pairs.",
                )
            if isinstance(self.scaling, LongRope) and len(self.scaling.short) != self.rotary_dim // 2:
                raise ShapeError(
                    f"{len(self.scaling.short)} factors for {self.rotary_dim} rotary dimensions",
                    remedy="Give one for each pair.",
                )

        def build(self) -> Rope:
            return Rope(self)

    def __init__(self, spec: Rope.Spec) -> None:
        super().__init__()
        self.spec = spec
        self.key = f"rope/{spec.digest()}"
        self.temperature = spec.scaling.temperature if spec.scaling else 1.0
        self.by_length = spec.scaling if isinstance(spec.scaling, ByLength) else None
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
            found = self.turns(context.positions, self.frequencies)
            context.memo[self.key] = found
        cos, sin = found
        return self.rotate(q, cos, sin), self.rotate(k, cos, sin)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [batch, heads, time, head_dim], turned by the angles that `turns` gave."""
        return rotate_neighbours(x, cos, sin) if self.spec.interleaved else rotate(x, cos, sin)

    def turns(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """positions [batch, time], frequencies [rotary/2] -> cos and sin [batch, 1, time, rotary/2], times temperature."""
        angles = positions.to(torch.float32).unsqueeze(-1) * frequencies  # [batch, time, rotary/2]
        cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
        return (cos, sin) if self.temperature == 1.0 else (cos * self.temperature, sin * self.temperature)

    def at(self, length: int) -> Tensor:
        """The frequencies for a text of ``length`` tokens, float32 [rotary/2]; the same for all unless it matters."""
        if self.by_length is None:
            return self.frequencies
        return self.by_length.at(self.frequencies.cpu(), length).to(self.frequencies.device)


def frequencies(spec: Rope.Spec) -> Tensor:
    """theta^(-2i/d), scaled; float32 [rotary_dim / 2]."""
    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).to(torch.float32) / spec.rotary_dim
    base = 1.0 / (spec.theta**exponents)
    return spec.scaling.scale(base, spec.theta) if spec.scaling else base


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [batch, heads, time, head_dim]; cos, sin [batch, 1, time, rotary/2]; the dims past the rotary ones pass."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    parts = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*parts, rest] if rest.shape[-1] else parts, dim=-1)


def rotate_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `rotate`, for pairs (x_{2i}, x_{2i+1})."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    turned, rest = x[..., : 2 * half].unflatten(-1, (half, 2)), x[..., 2 * half :]
    first, second = turned.unbind(-1)
    parts = [torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)]
    return torch.cat([*parts, rest] if rest.shape[-1] else parts, dim=-1)
