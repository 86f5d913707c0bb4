"""RWKV-7 (Goose): the memory is rewritten by a generalised delta rule, with a rate of its own for every channel.

Peng 2025, arXiv 2503.14456, section 4, equations 3-25. Each of the six inputs is x_t + (x_{t-1} - x_t) μ with its own μ;

    w = exp(-e^{-1/2} sigmoid(d)),   κ = k ξ,   κ̂ = κ/|κ| per head,   k̃ = k (1 + (a - 1) α),   v = v' + (v_first - v') ν
    S_t = diag(w_t) S_{t-1} - (κ̂_t a_t) (κ̂_tᵀ S_{t-1}) + k̃_t v_tᵀ,   y_t = S_tᵀ r_t
    out = W_o (g · (norm(y) + (sum over the head of r ρ k̃) v))

where d, a = sigmoid, ν = sigmoid and g are low-rank maps. v_first is the value of the first layer, which layers without
``renew`` of their own put into the context's memo for those above. The channel is RWKV-4's without receptance
(`rwkv4_channel(..., receptance=False)`). Our S is the paper's transposed.

Legend: b batch, t time, h hidden, n heads, d head_dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.spec import Constant
from almanac.core.state import Context, Mixer, State
from almanac.nn.activation import Activation
from almanac.nn.linear import Linear
from almanac.nn.recurrent.fading import attend
from almanac.nn.recurrent.learned import Learned
from almanac.nn.recurrent.mamba import wide
from almanac.nn.recurrent.rwkv6 import GroupedLayerNorm, low_rank, recalled, require_heads
from almanac.nn.recurrent.shift import LowRank, Spread, require
from almanac.nn.recurrent.state import RecurrentState

FASTEST = -math.exp(-0.5)  # log of the strongest decay, equation 12
FIRST_VALUE = "rwkv7/first value"  # in the context's memo


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Activation):
    """1 / (1 + exp(-x))."""

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


class Rwkv7(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is the last token [h] and S [n, d, d]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        share_r: Learned.Spec  # μ [h], six of them
        share_w: Learned.Spec
        share_k: Learned.Spec
        share_v: Learned.Spec
        share_a: Learned.Spec
        share_g: Learned.Spec
        r: Linear.Spec
        k: Linear.Spec
        v: Linear.Spec
        o: Linear.Spec
        decay: LowRank.Spec  # d
        rate: LowRank.Spec  # a before its sigmoid
        renew: LowRank.Spec | None  # ν before its sigmoid; None: the first layer
        gate: LowRank.Spec  # g
        removal: Learned.Spec  # ξ [h]
        replacement: Learned.Spec  # α [h]
        bonus: Learned.Spec  # ρ [h]
        norm: GroupedLayerNorm.Spec
        num_heads: int

        def __post_init__(self) -> None:
            inner = self.o.in_features
            require_heads(inner, self.num_heads)
            widths = {"r": self.r, "k": self.k, "v": self.v, "decay": self.decay.up, "rate": self.rate.up}
            widths |= {"gate": self.gate.up} | ({"renew": self.renew.up} if self.renew is not None else {})
            for name, part in widths.items():
                require(part.out_features, inner, name)
            for name, item in (("removal", self.removal), ("replacement", self.replacement), ("bonus", self.bonus)):
                require(item.size[0], inner, name)
            require(self.norm.groups, self.num_heads, "norm")

        def build(self) -> Rwkv7:
            return Rwkv7(self)

    def __init__(self, spec: Rwkv7.Spec) -> None:
        super().__init__()
        self.hidden, self.num_heads = spec.r.in_features, spec.num_heads
        self.head_dim = spec.o.in_features // spec.num_heads
        self.share_r, self.share_w, self.share_k = spec.share_r.build(), spec.share_w.build(), spec.share_k.build()
        self.share_v, self.share_a, self.share_g = spec.share_v.build(), spec.share_a.build(), spec.share_g.build()
        self.r, self.k, self.v, self.o = spec.r.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.decay, self.rate, self.gate = spec.decay.build(), spec.rate.build(), spec.gate.build()
        self.renew = spec.renew.build() if spec.renew is not None else None
        self.removal, self.replacement = spec.removal.build(), spec.replacement.build()
        self.bonus, self.norm = spec.bonus.build(), spec.norm.build()

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.hidden,), (self.num_heads, self.head_dim, self.head_dim))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        change, last, memory = recalled(x, given, context.segments)
        r, k = self.r(x + change * self.share_r()), self.k(x + change * self.share_k())
        v = self._value(x + change * self.share_v(), context)
        faded = self.decay(x + change * self.share_w())
        a = torch.sigmoid(wide(self.rate(x + change * self.share_a())))
        gate = self.gate(x + change * self.share_g())
        r, k, v = wide(r), wide(k), wide(v)
        removed = F.normalize((k * self.removal()).unflatten(-1, (self.num_heads, -1)), dim=-1).flatten(2)  # κ̂
        k = k * (1 + (a - 1) * self.replacement())
        w = FASTEST * torch.sigmoid(wide(faded))
        r_, k_, v_, w_, out_, in_ = (self._heads(item) for item in (r, k, v, w, -removed, removed * a))
        y, memory = attend((r_, k_, v_, w_), memory.to(r.dtype), rewrite=(out_, in_), segments=context.segments)
        counted = (r * k * self.bonus()).unflatten(-1, (self.num_heads, -1)).sum(-1, keepdim=True)
        y = self.norm(y.transpose(1, 2).flatten(2)) + (counted * v.unflatten(-1, (self.num_heads, -1))).flatten(2)
        y = self.o(gate * y.to(x.dtype))
        return y, given.after((wide(last), memory), x.shape[1]) if state is not None else None

    def _value(self, x: Tensor, context: Context) -> Tensor:
        """v of equation 17."""
        v = self.v(x)
        if self.renew is None:
            context.memo[FIRST_VALUE] = v
            return v
        if FIRST_VALUE not in context.memo:
            raise ShapeError("No layer below gives a first value", remedy="Make the stack's first layer without renew.")
        return torch.lerp(v, context.memo[FIRST_VALUE], torch.sigmoid(self.renew(x)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def rwkv7(hidden: int, *, num_heads: int, rank: int = 64, first: bool) -> Rwkv7.Spec:
    """The spec of a time mix; ``first`` for the first layer of a stack."""
    square = Linear.Spec(in_features=hidden, out_features=hidden, axes=("heads", "embed"))

    def vector(low: float, high: float) -> Learned.Spec:
        return Learned.Spec(size=(hidden,), axes=("heads",), initialiser=Spread(low=low, high=high))

    share, zero = vector(0.0, 1.0), Learned.Spec(size=(hidden,), axes=("heads",), initialiser=Constant())
    gate = low_rank(hidden, hidden, rank, base=None)
    return Rwkv7.Spec(
        share_r=share,
        share_w=share,
        share_k=share,
        share_v=share,
        share_a=share,
        share_g=share,
        r=square,
        k=square,
        v=square,
        o=Linear.Spec(in_features=hidden, out_features=hidden, axes=("embed", "heads")),
        decay=low_rank(hidden, hidden, rank, base=vector(-6.0, -1.0)),
        rate=low_rank(hidden, hidden, rank, base=zero, tanh=False),
        renew=None if first else low_rank(hidden, hidden, rank, base=zero, tanh=False),
        gate=gate.with_(activation=Sigmoid()),
        removal=vector(0.85, 0.85),
        replacement=vector(1.0, 1.0),
        bonus=zero,
        norm=GroupedLayerNorm.Spec(hidden=hidden, groups=num_heads),
        num_heads=num_heads,
    )
