"""Cross-attention: the tokens of one text look at what an encoder made of another.

Vaswani 2017, arXiv 1706.03762, section 3.2.3: softmax(q kᵀ / sqrt(d)) v with q from the decoder and k, v from the encoder's
output. Keys and values do not change while the decoder writes, so the state holds them and they are computed once.

Without a state, ``context.encoder`` is read in every call, and packed or padded rows are told apart by
``context.encoder_segments``. With one, a row is a single text: what the encoder made of it is read by the first call that
brings it (or before, by `CrossAttention.read`), its padding is dropped, and later calls need not bring it again.

Legend: b batch, t tokens, s source tokens, n query heads, m key-value heads, d head_dim, h hidden, w encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.errors import RequestError, ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.heads import HeadMaps, from_heads, head_maps, require_bias_heads, require_shared, to_heads
from almanac.nn.linear import Linear
from almanac.nn.positions.score_bias import ScoreBias
from almanac.nn.rows import require_shorter

VISIBLE = "visible/encoder"  # where layers share the mask


@dataclass(frozen=True)
class Source:
    """Keys and values [m, s, d] of what one row looks at; never overwritten."""

    keys: Tensor
    values: Tensor


class CrossState(State):
    """A `Source` per row, None until it is read, and how many tokens the row has seen."""

    def __init__(self, sources: Sequence[Source | None], lengths: Sequence[int]) -> None:
        self.sources = list(sources)
        self._lengths = list(lengths)

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def after(self, time: int) -> CrossState:
        """The state ``time`` tokens later."""
        return CrossState(self.sources, [length + time for length in self._lengths])

    def fork(self) -> CrossState:
        return CrossState(self.sources, self._lengths)

    def trim(self, lengths: Sequence[int]) -> None:
        """Forgets tokens; the source stays, even where none are left."""
        require_shorter(lengths, self._lengths)
        self._lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> CrossState:
        return CrossState([self.sources[row] for row in rows], [self._lengths[row] for row in rows])

    def join(self, others: Sequence[CrossState]) -> CrossState:
        states = (self, *others)
        return CrossState([item for state in states for item in state.sources], [n for s in states for n in s.lengths])

    @property
    def nbytes(self) -> int:
        return sum(source.keys.nbytes + source.values.nbytes for source in self.sources if source is not None)


class CrossAttention(Mixer):
    """x [b, t, h], context.encoder [b, s, w] -> [b, t, h]; k and v map w to m d."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        num_heads: int
        num_kv_heads: int
        head_dim: int
        scale: float | None = None  # of the scores; None: 1 / sqrt(d)
        score_bias: ScoreBias.Spec | None = None  # of token and source positions, the latter counted from 0

        def __post_init__(self) -> None:
            require_shared(self.num_heads, self.num_kv_heads)
            wanted = {"q": self.num_heads, "k": self.num_kv_heads, "v": self.num_kv_heads}
            for name, heads in wanted.items():
                leaf: Linear.Spec = getattr(self, name)
                if leaf.out_features != heads * self.head_dim:
                    raise ShapeError(
                        f"{name} gives {leaf.out_features} features for {heads} heads of {self.head_dim}",
                        remedy=f"Let it give {heads * self.head_dim}.",
                    )
            require_bias_heads(self.score_bias, self.num_heads)

        def build(self) -> CrossAttention:
            return CrossAttention(self)

    def __init__(self, spec: CrossAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.scale = spec.scale
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.score_bias = spec.score_bias.build() if spec.score_bias else None

    def init_state(self, rows: int, capacity: int) -> CrossState:
        return CrossState([None] * rows, [0] * rows)

    def read(self, encoder: Tensor, segments: Tensor | None = None) -> CrossState:
        """A state whose rows look at ``encoder`` [b, s, w]; ``segments`` int64 [b, s] is -1 where there is padding."""
        keys, values = self._projected(encoder)
        sources: list[Source | None] = []
        for row in range(len(encoder)):
            k, v = keys[row], values[row]
            if segments is not None:
                own = segments[row] >= 0
                k, v = k[:, own], v[:, own]
            sources.append(Source(k, v))
        return CrossState(sources, [0] * len(sources))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q = to_heads(self.q(x), self.num_heads, self.head_dim)  # [b, n, t, d]
        if isinstance(state, CrossState):
            state = self._filled(state, context)
            rows = [
                self._attend(q[i : i + 1], source.keys[None], source.values[None], context.positions[i : i + 1])
                for i, source in enumerate(state.sources)
                if source is not None
            ]
            y, state = torch.cat(rows), state.after(x.shape[1])
        else:
            keys, values = self._projected(_given(context))
            y = self._attend(q, keys, values, context.positions, visible(context))
        return self.o(from_heads(y)), state

    def _projected(self, encoder: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [b, m, s, d] of ``encoder`` [b, s, w]."""
        heads = (self.num_kv_heads, self.head_dim)
        return to_heads(self.k(encoder), *heads), to_heads(self.v(encoder), *heads)

    def _filled(self, state: CrossState, context: Context) -> CrossState:
        """``state`` with what its empty rows look at."""
        if all(source is not None for source in state.sources):
            return state
        found = self.read(_given(context), context.encoder_segments).sources
        return CrossState([old or new for old, new in zip(state.sources, found, strict=True)], state.lengths)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """q [b, n, t, d]; k, v [b, m, s, d]; positions [b, t]; mask bool [b, 1, t, s] -> [b, n, t, d]."""
        if self.score_bias is not None:
            bias = self.score_bias(positions, torch.arange(k.shape[2], device=k.device)[None]).to(q.dtype)
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=grouped)


def visible(context: Context) -> Tensor | None:
    """bool [b, 1, t, s]: the source of the token's own segment; padding tokens see all, as one must not see nothing."""
    source = context.encoder_segments
    if source is None:
        return None
    found: Tensor | None = context.memo.get(VISIBLE)
    if found is None:
        if context.segments is None:
            found = (source >= 0)[:, None, :]
        else:
            own = context.segments[:, :, None]
            found = (own == source[:, None, :]) | (own < 0)
        context.memo[VISIBLE] = found = found.unsqueeze(1)
    return found


def _given(context: Context) -> Tensor:
    if context.encoder is None:
        raise RequestError(
            "Cross-attention has nothing to look at",
            remedy="Give the context what the encoder made of the source, or a state that has read it.",
        )
    return context.encoder


def cross_attention(
    hidden: int,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    width: int | None = None,
    bias: bool = False,
    scale: float | None = None,
) -> CrossAttention.Spec:
    """The spec of a layer from its few free sizes; ``width`` is the encoder's, if it is not ``hidden``."""
    head_dim, num_kv_heads = head_dim or hidden // num_heads, num_kv_heads or num_heads
    return CrossAttention.Spec(
        **head_maps(hidden, num_heads * head_dim, kv_width=num_kv_heads * head_dim, source=width, bias=bias),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=scale,
    )
