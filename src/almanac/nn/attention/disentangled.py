"""Disentangled attention: what two contents, content and distance, and distance and content have to say is added up.

He 2020, arXiv 2006.03654, equation 4 (DeBERTa; v2 and v3 with the buckets of He 2021, arXiv 2111.09543):

    s_ij = (q_i · k_j + q_i · K_δ(i,j) + k_j · Q_δ(j,i)) / sqrt(3 d),   K = W_k P,   Q = W_q P

with P a vector for every distance δ. Either of the last two terms may be left out, and the divisor counts those that are
there. Distances are mapped by maps of their own, or, where ``distance_k`` and ``distance_q`` are None (share_att_key of v2),
by those of the contents. A text is seen whole: there is nothing to cache.

Deviation: δ(j,i) is looked up as -δ(i,j), its equal, where the authors look it up for the keys and transpose.

Legend: b batch, t tokens, n heads, d head_dim, h hidden, k rows of distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.bidirectional import visible
from almanac.nn.attention.heads import HeadMaps, from_heads, head_maps, keeps_no_state, require_cut, to_heads
from almanac.nn.linear import Linear
from almanac.nn.positions.disentangled import Distances, require_buckets, rows_of


class DisentangledAttention(Mixer):
    """x [b, t, h] -> [b, t, h]; tokens see only their own segment, of which padding (-1) is one."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        num_heads: int
        distances: spec.Spec  # Distances, or SharedDistances of another layer's
        span: int  # rows for distances to either side
        max_distance: int | None = None  # up to which buckets of distances grow; None: one row each, far ones clamped
        content_to_position: bool = True
        position_to_content: bool = True
        distance_k: Linear.Spec | None = None  # None: k
        distance_q: Linear.Spec | None = None  # None: q

        def __post_init__(self) -> None:
            require_cut(self.q.out_features, self.num_heads)
            if isinstance(self.distances, Distances.Spec) and self.distances.table.vocab_size != 2 * self.span:
                raise ShapeError(
                    f"A table of {self.distances.table.vocab_size} distances for {self.span} to either side",
                    remedy=f"Give it {2 * self.span} rows.",
                )
            if self.span < 1:
                raise ShapeError(f"{self.span} distances to either side", remedy="Give one at least.")
            require_buckets(self.span, self.max_distance)

        def build(self) -> DisentangledAttention:
            return DisentangledAttention(self)

    def __init__(self, spec: DisentangledAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.span, self.max_distance = spec.num_heads, spec.span, spec.max_distance
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.distances = spec.distances.build()
        self.distance_k = spec.distance_k.build() if spec.distance_k is not None else None
        self.distance_q = spec.distance_q.build() if spec.distance_q is not None else None
        self.content_to_position = spec.content_to_position
        self.position_to_content = spec.position_to_content
        self.terms = 1 + spec.content_to_position + spec.position_to_content
        self.rows_key = f"distances/{spec.span}/{spec.max_distance}"

    def init_state(self, rows: int, capacity: int) -> State:
        raise keeps_no_state("Disentangled attention")

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        if state is not None:
            self.init_state(0, 0)
        q, k, v = (to_heads(part(x), self.num_heads) for part in (self.q, self.k, self.v))  # [b, n, t, d]
        scale = 1 / math.sqrt(q.shape[-1] * self.terms)
        bias = self._bias(q, k, context)
        seen = visible(context)
        if seen is not None:
            bias = (q.new_zeros(()) if bias is None else bias).masked_fill(~seen, -math.inf)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias * scale, scale=scale)
        return self.o(from_heads(y)), None

    def _bias(self, q: Tensor, k: Tensor, context: Context) -> Tensor | None:
        """What distances have to say, before it is scaled: [b, n, t, t]."""
        if not (self.content_to_position or self.position_to_content):
            return None
        vectors = self.distances(torch.arange(2 * self.span, device=q.device)).to(q.dtype)[None]  # [1, k, h]
        rows = self._rows(context).expand(q.shape[0], self.num_heads, -1, -1)  # [b, n, t (query), t (key)]
        found: Tensor | None = None
        if self.content_to_position:
            keys = to_heads((self.distance_k or self.k)(vectors), self.num_heads)  # [1, n, k, d]
            found = (q @ keys.transpose(-1, -2)).gather(-1, rows)
        if self.position_to_content:
            queries = to_heads((self.distance_q or self.q)(vectors), self.num_heads)
            asked = (k @ queries.transpose(-1, -2)).gather(-1, rows.transpose(-1, -2)).transpose(-1, -2)
            found = asked if found is None else found + asked
        return found

    def _rows(self, context: Context) -> Tensor:
        """Row of distances by query and key, int64 [b, 1, t, t]; layers share it."""
        found: Tensor | None = context.memo.get(self.rows_key)
        if found is None:
            distance = context.positions[:, :, None] - context.positions[:, None, :]
            found = rows_of(distance, self.span, max_distance=self.max_distance).unsqueeze(1)
            context.memo[self.rows_key] = found
        return found


def disentangled(
    hidden: int,
    *,
    num_heads: int,
    distances: spec.Spec,
    span: int,
    max_distance: int | None = None,
    shared_maps: bool = True,
) -> DisentangledAttention.Spec:
    """The spec of a layer of DeBERTa-v2 or -v3; without ``shared_maps`` distances have maps of their own."""
    maps = head_maps(hidden, bias=True)
    return DisentangledAttention.Spec(
        **maps,
        num_heads=num_heads,
        distances=distances,
        span=span,
        max_distance=max_distance,
        distance_k=None if shared_maps else maps["k"],
        distance_q=None if shared_maps else maps["q"],
    )
