"""Attention with linear biases (ALiBi): a score is lowered in proportion to the distance between query and key, by a slope
of each head's own; nothing is added to the tokens, and nothing is learned.

Press 2021, arXiv 2108.12409, section 3: softmax(q_i kᵀ / sqrt(d) + m · [-(i-1), ..., -2, -1, 0]). The slopes m of n heads
are 2^(-8h/n), h = 1..n, where n is a power of two; otherwise those of the power of two below n, followed by every other one
of twice as many heads, as in the authors' code. ``gentlest`` stands for the 8, which is 16 in MPT-7B-StoryWriter.

Deviation: the bias is made of positions, not of places in the row, so that it holds within packed texts and for queries
that continue a kept past.

Legend: b batch, t queries, l keys, n heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.technique import Derived
from almanac.nn.positions.score_bias import ScoreBias


def slopes(num_heads: int, gentlest: float = 8.0) -> list[float]:
    """The slope of each head, all positive; the last of a power of two is 2^-``gentlest``."""
    below = 1 << (num_heads.bit_length() - 1)  # the largest power of two that is not more
    first = [2.0 ** (-gentlest * head / below) for head in range(1, below + 1)]
    between = [2.0 ** (-gentlest * head / (2 * below)) for head in range(1, 2 * below + 1, 2)]
    return first + between[: num_heads - below]


class Alibi(ScoreBias, Derived):
    """-slope · (query position - key position); for keys that come after the query, which a causal mask hides, above 0."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(ScoreBias.Spec):
        gentlest: float = 8.0  # the gentlest slope is 2 to minus this

        def __post_init__(self) -> None:
            if self.num_heads < 1:
                raise ShapeError(f"ALiBi for {self.num_heads} heads", remedy="Give one head at least.")
            if not self.gentlest > 0:
                raise ShapeError(f"ALiBi slopes up to 2^-{self.gentlest}", remedy="Give a number above 0, usually 8.")

        def build(self) -> Alibi:
            return Alibi(self)

    def __init__(self, spec: Alibi.Spec) -> None:
        super().__init__()
        self.num_heads, self.gentlest = spec.num_heads, spec.gentlest
        self.register_buffer("slopes", torch.empty(spec.num_heads), persistent=False)
        if not self.slopes.is_meta:
            self.derive()

    def derive(self) -> None:
        self.slopes = torch.tensor(slopes(self.num_heads, self.gentlest), dtype=torch.float32)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Alibi:
        """Moves with the model but stays float32: slopes that are no powers of two would be rounded."""
        super()._apply(fn, recurse)
        if self.slopes.dtype != torch.float32:
            found = slopes(self.num_heads, self.gentlest)
            self.slopes = torch.tensor(found, dtype=torch.float32, device=self.slopes.device)
        return self

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = (query_positions[:, :, None] - key_positions[:, None, :]).to(torch.float32)  # [b, t, l]
        return -self.slopes[:, None, None] * distance[:, None]
