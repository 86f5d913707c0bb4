"""Bidirectional attention: every token sees the whole of its own text, what comes after it included.

Vaswani 2017, arXiv 1706.03762, equation 1, softmax(q kᵀ / sqrt(d)) v, without a mask but for padding and packed
neighbours. There is nothing to cache: each token's vector depends on the tokens that follow, so the text is needed whole.

Legend: b batch, t tokens, n heads, d head_dim, h hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.state import Context, Mixer, State
from almanac.nn.linear import Linear

VISIBLE = "visible/whole"  # where layers share the mask


class BidirectionalAttention(Mixer):
    """x [b, t, h] -> [b, t, h]; tokens see only their own segment, of which padding (-1) is one."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        q: Linear.Spec
        k: Linear.Spec
        v: Linear.Spec
        o: Linear.Spec
        num_heads: int

        def __post_init__(self) -> None:
            if self.q.out_features % self.num_heads:
                raise ShapeError(
                    f"{self.q.out_features} features cannot be cut into {self.num_heads} heads",
                    remedy="Make the first a multiple of the second.",
                )

        def build(self) -> BidirectionalAttention:
            return BidirectionalAttention(self)

    def __init__(self, spec: BidirectionalAttention.Spec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()

    def init_state(self, rows: int, capacity: int) -> State:
        raise UnsupportedError(
            "Bidirectional attention keeps no state: every token depends on those after it",
            remedy="Give the whole text in one call, without a state.",
        )

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        if state is not None:
            self.init_state(0, 0)
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for projection in (self.q, self.k, self.v)
        )  # [b, n, t, d]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible(context))
        return self.o(y.transpose(1, 2).flatten(2)), None


def visible(context: Context) -> Tensor | None:
    """bool [b, 1, t, t]: same segment; None where rows hold one text each and no padding."""
    if context.segments is None:
        return None
    found = context.memo.get(VISIBLE)
    if found is None:
        found = (context.segments[:, :, None] == context.segments[:, None, :]).unsqueeze(1)
        context.memo[VISIBLE] = found
    return found


def bidirectional(hidden: int, *, num_heads: int, bias: bool = True) -> BidirectionalAttention.Spec:
    """The spec of a layer from its two sizes."""
    inward = Linear.Spec(in_features=hidden, out_features=hidden, bias=bias, axes=("heads", "embed"))
    outward = Linear.Spec(in_features=hidden, out_features=hidden, bias=bias, axes=("embed", "heads"))
    return BidirectionalAttention.Spec(q=inward, k=inward, v=inward, o=outward, num_heads=num_heads)
