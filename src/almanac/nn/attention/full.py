"""Full attention: every token sees all that its mask allows; any number of key-value heads.

Vaswani 2017, arXiv 1706.03762, equation 1: softmax(q kᵀ / sqrt(d)) v. Fewer key-value than query heads is grouped-query
attention (Ainslie 2023, arXiv 2305.13245), one is multi-query (Shazeer 2019, arXiv 1911.02150).

Legend: b batch, t new tokens, l tokens so far, n query heads, m key-value heads, d head_dim, h hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.spec import Initialiser, Normal
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.kv import KeyValueState, stack_rows
from almanac.nn.attention.masks import Causal, Mask
from almanac.nn.linear import Linear
from almanac.nn.positions.rope import Rope


class Attention(Mixer):
    """x [b, t, h] -> [b, t, h]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        q: Linear.Spec
        k: Linear.Spec
        v: Linear.Spec
        o: Linear.Spec
        num_heads: int
        num_kv_heads: int
        head_dim: int
        position: Rope.Spec | None = None  # None: no position information (NoPE)
        mask: Mask = Causal()

        def __post_init__(self) -> None:
            if self.num_heads % self.num_kv_heads:
                raise ShapeError(
                    f"{self.num_heads} query heads cannot share {self.num_kv_heads} key-value heads",
                    remedy="Make the first a multiple of the second.",
                )
            if self.position is not None and self.position.rotary_dim > self.head_dim:
                raise ShapeError(
                    f"{self.position.rotary_dim} rotary dimensions in heads of {self.head_dim}",
                    remedy="Rotate at most the whole head.",
                )

        def build(self) -> Attention:
            return Attention(self)

    def __init__(self, spec: Attention.Spec) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.mask = spec.mask
        self.visible_key = f"visible/{spec.mask.digest()}"  # here, since hashing does not compile
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.position = spec.position.build() if spec.position else None

    def init_state(self, rows: int, capacity: int) -> KeyValueState:
        return KeyValueState.empty(rows, capacity)

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # [b, n, t, d]
        k = self.k(x).unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)  # [b, m, t, d]
        v = self.v(x).unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        if self.position is not None:
            q, k = self.position(q, k, context)
        if isinstance(state, KeyValueState):
            y = stack_rows([self._row(q[i], *row.append(k[i], v[i])) for i, row in enumerate(state.rows)])
        else:
            y = attend(q, k, v, self._visible(context))
        return self.o(y.transpose(1, 2).flatten(2)), state

    def _row(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One row that continues its past: q [n, t, d]; k, v [m, l, d] -> [n, t, d]."""
        time, length = q.shape[1], k.shape[1]
        plain = self.mask.is_plain_causal(length)
        if time == 1 and plain:  # nothing to mask: let the heads of a group be the queries of one key-value head
            grouped = q.view(self.num_kv_heads, -1, self.head_dim)
            return F.scaled_dot_product_attention(grouped[None], k[None], v[None])[0].view(self.num_heads, 1, -1)
        if time == length and plain:
            return attend(q[None], k[None], v[None], None)[0]
        positions = torch.arange(length, device=q.device)
        visible = self.mask.allowed(positions[length - time :, None], positions)
        return attend(q[None], k[None], v[None], visible[None, None])[0]

    def _visible(self, context: Context) -> Tensor | None:
        """bool [b, 1, t, t], or None for the plain causal rule."""
        if context.segments is None and self.mask.is_plain_causal(context.positions.shape[1]):
            return None
        found = context.memo.get(self.visible_key)
        if found is None:
            found = self.mask.allowed(context.positions[:, :, None], context.positions[:, None, :])
            if context.segments is not None:  # positions restart per segment, so order is judged within one only
                found = found & (context.segments[:, :, None] == context.segments[:, None, :])
            context.memo[self.visible_key] = found = found.unsqueeze(1)
        return found


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """softmax(q kᵀ/sqrt(d) + mask) v; q [b, n, t, d]; k, v [b, m, l, d]; None means causal with t = l."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None, enable_gqa=grouped)


def attention(
    hidden: int,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    bias: bool | tuple[bool, bool] = False,
    position: Rope.Spec | None = None,
    mask: Mask | None = None,
) -> Attention.Spec:
    """The spec of an attention layer from its few free sizes; ``bias`` is (q, k and v; o) or one for all."""
    head_dim = head_dim or hidden // num_heads
    num_kv_heads = num_kv_heads or num_heads
    bias_in, bias_out = bias if isinstance(bias, tuple) else (bias, bias)
    narrow: Initialiser = Normal()

    def inward(heads: int, axis: str) -> Linear.Spec:
        return Linear.Spec(
            in_features=hidden, out_features=heads * head_dim, bias=bias_in, axes=(axis, "embed"), initialiser=narrow
        )

    return Attention.Spec(
        q=inward(num_heads, "heads"),
        k=inward(num_kv_heads, "kv_heads"),
        v=inward(num_kv_heads, "kv_heads"),
        o=Linear.Spec(in_features=num_heads * head_dim, out_features=hidden, bias=bias_out, axes=("embed", "heads")),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        position=position,
        mask=mask or Causal(),
    )
