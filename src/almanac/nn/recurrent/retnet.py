"""Retention: attention without softmax whose heads forget at fixed rates of their own, so that it is a recurrence as well.

Sun 2023, arXiv 2307.08621, equations 5-8: with rotary queries and keys (xPos) and γ_n = 1 - 2^(-5-n) for head n,

    S_t = γ S_{t-1} + k_t v_tᵀ,   y_t = S_tᵀ q_t / sqrt(d),   out = W_O (silu(W_G x) · norm(y))

Three forms are one function, `fading.attend`: a chunk of all tokens is the parallel one, of one token the recurrent. The norm
is over each head (GroupNorm). We deviate in leaving out the row sums by which section 2.4 divides the scores, which the norm
cancels but for its epsilon.

Legend: b batch, t time, h hidden, n heads, d head_dim of queries and keys, e of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.linear import Linear
from almanac.nn.norm import UnitNorm
from almanac.nn.positions.rope import Rope
from almanac.nn.recurrent.fading import attend
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.shift import require
from almanac.nn.recurrent.state import RecurrentState


class Retention(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is S [n, d, e]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        q: Linear.Spec  # h -> n d
        k: Linear.Spec  # h -> n d
        v: Linear.Spec  # h -> n e
        gate: Linear.Spec  # h -> n e
        norm: spec.Spec  # over e
        o: Linear.Spec  # n e -> h
        position: Rope.Spec | None
        num_heads: int

        def __post_init__(self) -> None:
            require(self.k.out_features, self.q.out_features, "k")
            require(self.gate.out_features, self.v.out_features, "gate")
            require(self.o.in_features, self.v.out_features, "o")
            if self.q.out_features % self.num_heads or self.v.out_features % self.num_heads:
                raise ShapeError(
                    f"{self.q.out_features} and {self.v.out_features} features in {self.num_heads} heads",
                    remedy="Give widths that the number of heads divides.",
                )
            if self.position is not None and self.position.rotary_dim > self.q.out_features // self.num_heads:
                raise ShapeError("More rotary dimensions than a head has", remedy="Give no more than head_dim.")

        def build(self) -> Retention:
            return Retention(self)

    def __init__(self, spec: Retention.Spec) -> None:
        super().__init__()
        self.q, self.k, self.v = spec.q.build(), spec.k.build(), spec.v.build()
        self.gate, self.norm, self.o = spec.gate.build(), spec.norm.build(), spec.o.build()
        self.position = spec.position.build() if spec.position is not None else None
        self.num_heads = spec.num_heads
        self.sizes = (spec.q.out_features // spec.num_heads, spec.v.out_features // spec.num_heads)

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.num_heads, *self.sizes))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        q, k, v = (
            wide(part(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        if self.position is not None:
            q, k = self.position(q, k, context)
        faded = log_decays(self.num_heads, like=q).view(1, -1, 1, 1).expand(*q.shape[:3], 1)
        memory = given.parts[0].to(q)
        y, memory = attend((q * self.sizes[0] ** -0.5, k, v, faded), memory, segments=context.segments)
        y = self.norm(y).transpose(1, 2).flatten(2).to(x.dtype)
        return self.o(y * F.silu(self.gate(x))), given.after((memory,), x.shape[1]) if state is not None else None


def log_decays(num_heads: int, *, like: Tensor) -> Tensor:
    """log γ_n = log(1 - 2^(-5-n)), equation 8; [n]."""
    return torch.log1p(-torch.exp2(-5.0 - torch.arange(num_heads, dtype=like.dtype, device=like.device)))


def retention(hidden: int, *, num_heads: int, expand: int = 2) -> Retention.Spec:
    """The spec of a layer; the authors make values twice as wide as keys (section 3.1)."""
    inward = Linear.Spec(in_features=hidden, out_features=hidden, axes=("heads", "embed"))
    wider = Linear.Spec(in_features=hidden, out_features=expand * hidden, axes=("heads", "embed"))
    return Retention.Spec(
        q=inward,
        k=inward,
        v=wider,
        gate=wider,
        norm=UnitNorm.Spec(),
        o=Linear.Spec(in_features=expand * hidden, out_features=hidden, axes=("embed", "heads")),
        position=Rope.Spec(rotary_dim=hidden // num_heads, interleaved=True),
        num_heads=num_heads,
    )
