"""Multi-scale attention: some heads see single tokens near by, others averages of ever longer blocks far away.

Per-head scales: Guo 2019, arXiv 1912.00544; coarse views of the far past: Subramanian 2020, arXiv 2005.00581. Both leave open
how a coarse view of an unfinished block looks; here a head of scale s sees

- the tokens of its own block of s so far, one by one (so nothing after the query is ever averaged), and
- the means of the keys and values of the ``window`` complete blocks before it,

which reaches ``window`` · s tokens back for at most ``window`` + s keys. A head of scale 1 is a sliding window of one token
more. Heads are dealt out to the scales evenly, in order. Decoding with a state touches no more of the past than that; a long
text is computed as masked products of `PIECE` queries each, and so is linear in its length.

Deviation: means, not learned pooling, so that scales share all weights and a head's scale can be changed after training.

Legend: b batch, t new tokens, l tokens so far, n query heads, m key-value heads, g heads of a scale, d head_dim, k blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.block_keys import Blocks, blocks_of
from almanac.nn.attention.heads import HeadMaps, from_heads, head_maps, require_fixed_turns, to_heads
from almanac.nn.attention.kv import KeyValueState, stack_rows
from almanac.nn.attention.scores import PLAIN, attend
from almanac.nn.positions.rope import Rope

PIECE = 512  # queries computed together


class MultiScaleAttention(Mixer):
    """x [b, t, h] -> [b, t, h]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        num_heads: int
        scales: tuple[int, ...]  # tokens of a block; heads are dealt out to them evenly
        window: int  # complete blocks seen
        position: Rope.Spec | None = None

        def __post_init__(self) -> None:
            if not self.scales or min(self.scales) < 1 or self.num_heads % len(self.scales):
                raise ShapeError(
                    f"Scales {self.scales} for {self.num_heads} heads",
                    remedy="Give scales of one token at least, as many as divide the heads.",
                )
            if self.window < 1:
                raise ShapeError(f"A window of {self.window} blocks", remedy="Give one at least.")
            if self.q.out_features % self.num_heads:
                raise ShapeError(
                    f"{self.q.out_features} features cannot be cut into {self.num_heads} heads of several scales",
                    remedy="Make the first a multiple of the second.",
                )
            require_fixed_turns(self.position, "in multi-scale attention")

        def build(self) -> MultiScaleAttention:
            return MultiScaleAttention(self)

    def __init__(self, spec: MultiScaleAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.scales, self.window = spec.num_heads, spec.scales, spec.window
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.position = spec.position.build() if spec.position is not None else None

    def init_state(self, rows: int, capacity: int) -> KeyValueState:
        return KeyValueState.empty(rows, capacity)

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q, k, v = (to_heads(part(x), self.num_heads) for part in (self.q, self.k, self.v))  # [b, n, t, d]
        if self.position is not None:
            q, k = self.position(q, k, context)
        if isinstance(state, KeyValueState):
            rows = [self._row(q[i : i + 1], *row.append(k[i], v[i]))[0] for i, row in enumerate(state.rows)]
            y = stack_rows(rows)
        else:
            groups = list(zip(*(part.chunk(len(self.scales), dim=1) for part in (q, k, v)), strict=True))
            scaled = self._scaled if q.shape[2] <= PIECE or torch.compiler.is_compiling() else self._in_pieces
            y = torch.cat([scaled(*group, scale, context) for group, scale in zip(groups, self.scales, strict=True)], 1)
        return self.o(from_heads(y)), state

    def _scaled(self, q: Tensor, k: Tensor, v: Tensor, scale: int, context: Context) -> Tensor:
        """The heads of one scale in a call without a state; all [b, g, t, d]."""
        blocks = blocks_of(context, scale)
        key = f"visible/scale {scale}/{self.window}"
        mask: Tensor | None = context.memo.get(key)
        if mask is None:
            context.memo[key] = mask = _visible(blocks, context, self.window)
        return _attend(q, k, v, blocks, mask)

    def _in_pieces(self, q: Tensor, k: Tensor, v: Tensor, scale: int, context: Context) -> Tensor:
        """The same for a long text, `PIECE` queries at a time with what their scale sees: linear in the length."""
        parts, end = [], 0
        for part in q.split(PIECE, dim=2):
            start, end = end, end + part.shape[2]
            # one block more than is seen, for texts that do not begin at a block's place
            own = slice(max(start // scale - self.window - 1, 0) * scale, end)
            segments = context.segments[:, own] if context.segments is not None else None
            near = Context(positions=context.positions[:, own], segments=segments)
            blocks = blocks_of(near, scale)
            if segments is None:
                blocks = Blocks(scale, blocks.ends, blocks.numbers + own.start // scale, blocks.real, blocks.of)
            mask = _visible(blocks, near, self.window)[:, :, start - end :]
            parts.append(_attend(part, k[:, :, own], v[:, :, own], blocks, mask))
        return torch.cat(parts, dim=2)

    def _row(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One row that continues its past, of which each scale takes no more than it sees: q [1, n, t, d]; k, v [n, l, d]."""
        time, length, share = q.shape[2], k.shape[1], q.shape[1] // len(self.scales)
        if time > PIECE:
            ends = range(length - time + PIECE, length, PIECE)
            seen = zip(q.split(PIECE, dim=2), [*ends, length], strict=True)
            return torch.cat([self._row(part, k[:, :end], v[:, :end]) for part, end in seen], dim=2)
        heads = []
        for index, scale in enumerate(self.scales):
            first = max((length - time) // scale - self.window, 0) * scale
            own = slice(index * share, (index + 1) * share)
            context = Context(positions=torch.arange(first, length, device=q.device)[None])
            blocks = blocks_of(context, scale)
            blocks = Blocks(scale, blocks.ends, blocks.numbers + first // scale, blocks.real, blocks.of)
            mask = _visible(blocks, context, self.window)[:, :, -time:]
            heads.append(_attend(q[:, own], k[None, own, first:], v[None, own, first:], blocks, mask))
        return torch.cat(heads, dim=1)


def _visible(blocks: Blocks, context: Context, window: int) -> Tensor:
    """bool [b, 1, t, t + k]: which tokens and which blocks a token sees."""
    places = torch.arange(context.positions.shape[1], device=context.positions.device)
    mine = (context.positions // blocks.size)[:, :, None]  # [b, t, 1]
    tokens = (mine == (context.positions // blocks.size)[:, None, :]) & (places[None, :] <= places[:, None])
    back = mine - blocks.numbers[:, None, :]
    means = blocks.real[:, None, :] & (back >= 1) & (back <= window)
    if context.segments is not None:
        own = context.segments[:, :, None]
        tokens = tokens & (own == context.segments[:, None, :])
        means = means & (own == context.segments[:, blocks.ends][:, None, :])
    return torch.cat([tokens, means], dim=-1).unsqueeze(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, mask: Tensor) -> Tensor:
    """q [b, g, t, d], k and v [b, g, l, d], mask [b, 1, t, l + k] -> [b, g, t, d]."""
    k, v = (torch.cat([x, blocks.gathered(x).mean(3)], dim=2) for x in (k, v))
    return attend(q, k, v, mask, PLAIN)


def multiscale(
    hidden: int, *, num_heads: int, scales: tuple[int, ...], window: int, position: Rope.Spec | None = None
) -> MultiScaleAttention.Spec:
    """The spec of a layer from its few free sizes."""
    return MultiScaleAttention.Spec(
        **head_maps(hidden), num_heads=num_heads, scales=scales, window=window, position=position
    )
