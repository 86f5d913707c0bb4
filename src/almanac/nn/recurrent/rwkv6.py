"""RWKV-6 (Finch): a matrix of memory per head whose every row fades at a rate that the token chooses.

Peng 2024, arXiv 2404.05892, section 4.2. With x̃ = x_{t-1} - x_t, what each of r, k, v, g and the decay d reads is

    x_t + x̃ · (λ + tanh((x_t + x̃ μ) A) B)      (ddlerp; λ, A, B its own)
    w = exp(-exp(d)),   S_t = diag(w_t) S_{t-1} + k_t v_tᵀ,   y_t = (S_{t-1} + diag(u) k_t v_tᵀ)ᵀ r_t
    out = W_o (silu(g) · norm(y)),   d = λ_d + tanh(x_d A_d) B_d

The norm is over each head. We deviate in nothing but the initial values, which the paper does not give.

Legend: b batch, t time, h hidden, n heads, d head_dim, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.spec import Constant
from almanac.core.state import Context, Mixer, State
from almanac.nn.activation import Tanh
from almanac.nn.linear import Linear
from almanac.nn.recurrent.fading import attend
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.shift import LowRank, Spread, require, shifted
from almanac.nn.recurrent.state import RecurrentState


class GroupedLayerNorm(nn.Module):
    """LayerNorm within each of ``groups`` equal parts of the last axis, gain and bias per channel; x [..., hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        hidden: int
        groups: int
        epsilon: float = 64e-5

        def __post_init__(self) -> None:
            if self.groups < 1 or self.hidden % self.groups:
                raise ShapeError(
                    f"{self.hidden} channels in {self.groups} groups", remedy="Give a number that divides the channels."
                )

        def build(self) -> GroupedLayerNorm:
            return GroupedLayerNorm(self)

    def __init__(self, spec: GroupedLayerNorm.Spec) -> None:
        super().__init__()
        self.groups, self.epsilon = spec.groups, spec.epsilon
        self.weight = nn.Parameter(torch.ones(spec.hidden))
        self.bias = nn.Parameter(torch.zeros(spec.hidden))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.groups, -1))
        y = F.layer_norm(parts, parts.shape[-1:], None, None, self.epsilon).flatten(-2)
        return y * self.weight + self.bias


class Rwkv6(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is the last token [h] and S [n, d, d]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        share: Learned.Spec  # μ [h]
        share_r: LowRank.Spec  # λ + tanh(. A) B
        share_k: LowRank.Spec
        share_v: LowRank.Spec
        share_g: LowRank.Spec
        share_decay: LowRank.Spec
        r: Linear.Spec
        k: Linear.Spec
        v: Linear.Spec
        g: Linear.Spec
        decay: LowRank.Spec
        bonus: Learned.Spec  # u [n d]
        norm: GroupedLayerNorm.Spec
        o: Linear.Spec
        num_heads: int

        def __post_init__(self) -> None:
            inner = self.o.in_features
            require_heads(inner, self.num_heads)
            for name, part in (("r", self.r), ("k", self.k), ("v", self.v), ("g", self.g)):
                require(part.out_features, inner, name)
            require(self.decay.up.out_features, inner, "decay")
            require(self.bonus.size[0], inner, "bonus")
            require(self.norm.groups, self.num_heads, "norm")
            require(self.share.size[0], self.r.in_features, "share")

        def build(self) -> Rwkv6:
            return Rwkv6(self)

    def __init__(self, spec: Rwkv6.Spec) -> None:
        super().__init__()
        self.hidden, self.num_heads = spec.r.in_features, spec.num_heads
        self.head_dim = spec.o.in_features // spec.num_heads
        self.share = spec.share.build()
        self.share_r, self.share_k, self.share_v = spec.share_r.build(), spec.share_k.build(), spec.share_v.build()
        self.share_g, self.share_decay = spec.share_g.build(), spec.share_decay.build()
        self.r, self.k, self.v, self.g = spec.r.build(), spec.k.build(), spec.v.build(), spec.g.build()
        self.decay, self.bonus = spec.decay.build(), spec.bonus.build()
        self.norm, self.o = spec.norm.build(), spec.o.build()

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.hidden,), (self.num_heads, self.head_dim, self.head_dim))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        change, last, memory = recalled(x, given, context.segments)
        seen = x + change * self.share()
        shares = (self.share_r, self.share_k, self.share_v, self.share_g, self.share_decay)
        parts = (self.r, self.k, self.v, self.g, self.decay)
        r, k, v, g, faded = (part(x + change * share(seen)) for part, share in zip(parts, shares, strict=True))
        r, k, v, w = (
            item.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for item in (wide(r), wide(k), wide(v), -torch.exp(wide(faded)))
        )
        bonus = wide(self.bonus()).view(self.num_heads, self.head_dim)
        y, memory = attend((r, k, v, w), memory.to(r.dtype), bonus=bonus, segments=context.segments)
        y = self.norm(y.transpose(1, 2).flatten(2)).to(x.dtype)
        return self.o(F.silu(g) * y), given.after((wide(last), memory), x.shape[1]) if state is not None else None


def require_heads(channels: int, num_heads: int) -> None:
    """Raises ShapeError where heads do not divide the channels."""
    if channels % num_heads:
        raise ShapeError(f"{channels} channels in {num_heads} heads", remedy="Heads must divide the channels.")


def recalled(x: Tensor, given: RecurrentState, segments: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """x̃ = x_{t-1} - x_t [b, t, h] as a state goes on, the last token [b, h], and the S [b, n, d, d] of the state."""
    last, memory = (part.to(x.device) for part in given.parts)
    earlier, last = shifted(x, last, segments)
    return earlier - x, last, memory


def low_rank(inputs: int, outputs: int, rank: int, *, base: Learned.Spec | None, tanh: bool = True) -> LowRank.Spec:
    """The spec of base + (tanh of) down, then up."""
    return LowRank.Spec(
        down=Linear.Spec(in_features=inputs, out_features=rank, axes=("none", "embed")),
        up=Linear.Spec(in_features=rank, out_features=outputs, axes=("embed", "none")),
        base=base,
        activation=Tanh() if tanh else None,
    )


def rwkv6(hidden: int, *, num_heads: int, share_rank: int = 32, decay_rank: int = 64) -> Rwkv6.Spec:
    """The spec of a time mix; ranks as in section 4.2."""
    square = Linear.Spec(in_features=hidden, out_features=hidden, axes=("heads", "embed"))
    share = Learned.Spec(size=(hidden,), axes=("embed",), initialiser=Spread())
    chosen = low_rank(hidden, hidden, share_rank, base=share)
    start = Learned.Spec(size=(hidden,), axes=("heads",), initialiser=Spread(low=-6.0, high=-1.0))
    return Rwkv6.Spec(
        share=share,
        share_r=chosen,
        share_k=chosen,
        share_v=chosen,
        share_g=chosen,
        share_decay=chosen,
        r=square,
        k=square,
        v=square,
        g=square,
        decay=low_rank(hidden, hidden, decay_rank, base=start),
        bonus=Learned.Spec(size=(hidden,), axes=("heads",), initialiser=Constant(value=0.5)),
        norm=GroupedLayerNorm.Spec(hidden=hidden, groups=num_heads),
        o=Linear.Spec(in_features=hidden, out_features=hidden, axes=("embed", "heads")),
        num_heads=num_heads,
    )
