"""Bidirectional attention: every token sees the whole of its own text, what comes after it included.

Vaswani 2017, arXiv 1706.03762, equation 1, softmax(q kᵀ / sqrt(d)) v, without a mask but for padding and packed
neighbours, and, where a ``window`` is given, for tokens further away than that (Beltagy 2020, arXiv 2004.05150; every third
layer of ModernBERT has none, Warner 2024, arXiv 2412.13663). There is nothing to cache: each token's vector depends on the
tokens that follow, so the text is needed whole.

Legend: b batch, t tokens, n heads, d head_dim, h hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.heads import HeadMaps, from_heads, head_maps, keeps_no_state, require_cut, to_heads
from almanac.nn.positions.rope import Rope
from almanac.nn.positions.score_bias import ScoreBias

VISIBLE = "visible/whole"  # where layers share the mask


class BidirectionalAttention(Mixer):
    """x [b, t, h] -> [b, t, h]; tokens see only their own segment, of which padding (-1) is one."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        num_heads: int
        position: Rope.Spec | None = None  # None: no position information but a score bias
        score_bias: ScoreBias.Spec | None = None  # added to the scores, such as T5's buckets
        window: int | None = None  # tokens seen to either side; None: the whole text
        scale: float | None = None  # of the scores; None: 1 / sqrt(d)

        def __post_init__(self) -> None:
            require_cut(self.q.out_features, self.num_heads)
            if self.position is not None and self.position.rotary_dim > self.q.out_features // self.num_heads:
                raise ShapeError(
                    f"{self.position.rotary_dim} rotary dimensions in heads of {self.q.out_features // self.num_heads}",
                    remedy="Rotate at most the whole head.",
                )
            if self.score_bias is not None and self.score_bias.num_heads != self.num_heads:
                raise ShapeError(
                    f"A bias of {self.score_bias.num_heads} heads for {self.num_heads} heads that see both ways",
                    remedy="Give it as many heads as the attention.",
                )
            if self.window is not None and self.window < 1:
                raise ShapeError(f"A window of {self.window} tokens", remedy="Give one token to either side at least.")

        def build(self) -> BidirectionalAttention:
            return BidirectionalAttention(self)

    def __init__(self, spec: BidirectionalAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.window, self.scale = spec.num_heads, spec.window, spec.scale
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.position = spec.position.build() if spec.position is not None else None
        self.score_bias = spec.score_bias.build() if spec.score_bias is not None else None
        self.bias_key = ""
        if spec.score_bias is not None and self.score_bias is not None and not list(self.score_bias.parameters()):
            self.bias_key = f"bias/{spec.window}/{spec.score_bias.digest()}"  # layers share what none of them owns

    def init_state(self, rows: int, capacity: int) -> State:
        raise keeps_no_state("Bidirectional attention")

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        if state is not None:
            self.init_state(0, 0)
        q, k, v = (to_heads(part(x), self.num_heads) for part in (self.q, self.k, self.v))  # [b, n, t, d]
        if self.position is not None:
            q, k = self.position(q, k, context)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(context, q), scale=self.scale)
        return self.o(from_heads(y)), None

    def _mask(self, context: Context, q: Tensor) -> Tensor | None:
        """bool [b, 1, t, t] or, with a bias, float [b or 1, n, t, t]; None where all see all."""
        seen = visible(context, window=self.window)
        if self.score_bias is None:
            return seen
        found = context.memo.get(self.bias_key)
        if found is None:
            found = self.score_bias(context.positions, context.positions)
            found = found if seen is None else found.masked_fill(~seen, -math.inf)
            if self.bias_key:
                context.memo[self.bias_key] = found
        return found.to(q.dtype)


def visible(context: Context, *, window: int | None = None) -> Tensor | None:
    """bool [b, 1, t, t]: same segment, and within the window; None where rows hold one text each and no padding."""
    if context.segments is None and window is None:
        return None
    key = VISIBLE if window is None else f"{VISIBLE}/{window}"
    found = context.memo.get(key)
    if found is None:
        segments, places = context.segments, context.positions
        if window is not None:
            found = (places[:, :, None] - places[:, None, :]).abs() <= window
        if segments is not None:  # positions restart per segment, so distance is judged within one only
            same = segments[:, :, None] == segments[:, None, :]
            found = same if found is None else same & found
        assert found is not None
        context.memo[key] = found = found.unsqueeze(1)
    return found


def bidirectional(
    hidden: int,
    *,
    num_heads: int,
    bias: bool = True,
    head_dim: int | None = None,
    position: Rope.Spec | ScoreBias.Spec | None = None,
    window: int | None = None,
    scale: float | None = None,
) -> BidirectionalAttention.Spec:
    """The spec of a layer from its few free sizes; ``position`` turns queries and keys, or is added to the scores."""
    return BidirectionalAttention.Spec(
        **head_maps(hidden, hidden if head_dim is None else num_heads * head_dim, bias=bias),
        num_heads=num_heads,
        position=position if isinstance(position, Rope.Spec) else None,
        score_bias=position if isinstance(position, ScoreBias.Spec) else None,
        window=window,
        scale=scale,
    )
