"""Gated linear attention: linear attention whose memory forgets, every dimension of the key at a pace that the token sets.

Yang 2023, arXiv 2312.06635, equations 3 and 4, section 4.4:

    S_t = diag(α_t) S_{t-1} + k_tᵀ v_t,   o_t = q_t S_t / sqrt(d),   α_t = sigmoid(W_α2 W_α1 x + b)^(1/16)
    y = W_o (norm(o) · silu(W_g x + b_g)),  norm within each head

Computed in chunks (section 4.3) by `almanac.nn.recurrent.fading`.

Legend: b batch, t time, n heads, d key dims of a head, e value dims of a head, h hidden.
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
from almanac.nn.low_rank import LowRank
from almanac.nn.norm import RMSNorm
from almanac.nn.recurrent.fading import attend
from almanac.nn.recurrent.state import RecurrentState

TEMPERATURE = 16.0  # section 4.4: slows forgetting at the start


class GatedLinearAttention(Mixer):
    """x [b, t, h] -> [b, t, h]; the state of a row is S [n, d, e]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        q: Linear.Spec
        k: Linear.Spec
        v: Linear.Spec
        decay: spec.Spec  # h -> n d, before the sigmoid
        gate: Linear.Spec  # h -> n e
        norm: spec.Spec  # of e
        o: Linear.Spec
        num_heads: int

        def __post_init__(self) -> None:
            key = {self.q.out_features, self.k.out_features}
            value = {self.v.out_features, self.gate.out_features, self.o.in_features}
            if len(key) != 1 or len(value) != 1 or self.num_heads < 1 or any(n % self.num_heads for n in key | value):
                raise ShapeError(
                    f"Keys of {sorted(key)} and values of {sorted(value)} features for {self.num_heads} heads",
                    remedy="Give q and k one width, v, gate and o another, each a multiple of the number of heads.",
                )

        def build(self) -> GatedLinearAttention:
            return GatedLinearAttention(self)

    def __init__(self, spec: GatedLinearAttention.Spec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.dims = spec.q.out_features // spec.num_heads, spec.v.out_features // spec.num_heads
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.decay, self.gate, self.norm = spec.decay.build(), spec.gate.build(), spec.norm.build()

    def init_state(self, rows: int, capacity: int) -> RecurrentState:
        return RecurrentState.empty(rows, (self.num_heads, *self.dims))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        given = state if isinstance(state, RecurrentState) else self.init_state(x.shape[0], 0)
        kind = torch.promote_types(x.dtype, torch.float32)
        q, k, v, forget = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).to(kind)
            for projection in (self.q, self.k, self.v, self.decay)
        )  # [b, n, t, d or e]
        logs = F.logsigmoid(forget) / TEMPERATURE
        memory = given.parts[0].to(x.device, kind)
        y, memory = attend((q * self.dims[0] ** -0.5, k, v, logs), memory, segments=context.segments)
        y = self.norm(y.to(x.dtype)).transpose(1, 2).flatten(2) * F.silu(self.gate(x))
        return self.o(y), given.after((memory,), x.shape[1]) if state is not None else None


def gated_linear(
    hidden: int, *, num_heads: int, key_width: int | None = None, rank: int = 16, epsilon: float = 1e-5
) -> GatedLinearAttention.Spec:
    """The spec of a layer; keys have half the width of values, as in section 4.4, unless ``key_width`` says otherwise."""
    key = key_width or hidden // 2
    inward = Linear.Spec(in_features=hidden, out_features=key, axes=("heads", "embed"))
    up = Linear.Spec(in_features=rank, out_features=key, bias=True, axes=("heads", "none"))
    value = inward.with_(out_features=hidden)
    return GatedLinearAttention.Spec(
        q=inward,
        k=inward,
        v=value,
        decay=LowRank.Spec(down=Linear.Spec(in_features=hidden, out_features=rank), up=up),
        gate=value.with_(bias=True),
        norm=RMSNorm.Spec(hidden=hidden // num_heads, epsilon=epsilon),
        o=Linear.Spec(in_features=hidden, out_features=hidden, axes=("embed", "heads")),
        num_heads=num_heads,
    )
