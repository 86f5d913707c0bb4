"""Attention that chooses what it reads: a glance at learned summaries of all past blocks picks the few that are read in full.

Yuan 2025, arXiv 2502.11089 (native sparse attention), equations 5 to 12. Three views of the past are computed for each query
and added with gates σ(W_g x) of each head:

- summaries: every complete block of c tokens is compressed to one key and value by a learned map of its tokens (equation 7);
- selection: the weights that the summaries got, added up over the heads that share keys (equations 8 and 10), rank the blocks
  before the query's own; the first ``chosen`` are read token by token, with one's own block so far (equations 9, 11, 12);
- window: the last ``window`` tokens.

Deviations: the three views share keys and values, where the paper gives each its own, so that a state is no larger than that
of full attention plus the summaries; the map is linear; compressed blocks are those that are selected from, without overlap.
A query looks at no summary of a block it belongs to, and at zero where there is none. Decoding one token gathers what was
chosen and the window; a longer call computes masked products.

Legend: b batch, t new tokens, l tokens so far, n query heads, m key-value heads, g n / m, d head_dim, c block, k blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.block_keys import Blocks, blocks_of
from almanac.nn.attention.heads import HeadMaps, from_heads, head_maps, require_fixed_turns, require_shared, to_heads
from almanac.nn.attention.kv import KeyValueState, Row, stack_rows
from almanac.nn.attention.masks import SlidingWindow
from almanac.nn.attention.scores import PLAIN, attend
from almanac.nn.linear import Linear
from almanac.nn.positions.rope import Rope


class ChoosingState(State):
    """Keys and values of tokens, and of the complete blocks of ``size`` of them."""

    def __init__(self, tokens: KeyValueState, blocks: KeyValueState, size: int) -> None:
        self.tokens, self.blocks, self.size = tokens, blocks, size

    @property
    def lengths(self) -> list[int]:
        return self.tokens.lengths

    def fork(self) -> ChoosingState:
        return ChoosingState(self.tokens.fork(), self.blocks.fork(), self.size)

    def trim(self, lengths: Sequence[int]) -> None:
        self.tokens.trim(lengths)
        self.blocks.trim([length // self.size for length in lengths])

    def select(self, rows: Sequence[int]) -> ChoosingState:
        return ChoosingState(self.tokens.select(rows), self.blocks.select(rows), self.size)

    def join(self, others: Sequence[ChoosingState]) -> ChoosingState:
        tokens = self.tokens.join([other.tokens for other in others])
        return ChoosingState(tokens, self.blocks.join([other.blocks for other in others]), self.size)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.blocks.nbytes


class ChoosingAttention(Mixer):
    """x [b, t, h] -> [b, t, h]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        summary_k: Linear.Spec  # c d -> d
        summary_v: Linear.Spec  # c d -> d
        gate: Linear.Spec  # h -> 3 n
        num_heads: int
        num_kv_heads: int
        head_dim: int
        block: int  # c
        chosen: int  # blocks read in full, beside one's own
        window: int  # tokens, oneself included
        position: Rope.Spec | None = None

        def __post_init__(self) -> None:
            require_shared(self.num_heads, self.num_kv_heads)
            if min(self.block, self.chosen, self.window) < 1:
                raise ShapeError(
                    f"{self.chosen} chosen blocks of {self.block} tokens, a window of {self.window}",
                    remedy="Give one at least of each.",
                )
            sizes = (self.summary_k.in_features, self.summary_v.in_features, self.gate.out_features)
            wanted = (self.block * self.head_dim, self.block * self.head_dim, 3 * self.num_heads)
            if sizes != wanted:
                raise ShapeError(
                    f"Summaries of {sizes[0]} and {sizes[1]} numbers, {sizes[2]} gates",
                    remedy=f"Make them {wanted}: a block's keys, its values, three gates a head.",
                )
            require_fixed_turns(self.position, "where blocks are summed up")

        def build(self) -> ChoosingAttention:
            return ChoosingAttention(self)

    def __init__(self, spec: ChoosingAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.block, self.chosen, self.window = spec.block, spec.chosen, spec.window
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.summary_k, self.summary_v = spec.summary_k.build(), spec.summary_v.build()
        self.gate = spec.gate.build()
        self.position = spec.position.build() if spec.position is not None else None

    def init_state(self, rows: int, capacity: int) -> ChoosingState:
        blocks = KeyValueState.empty(rows, capacity // self.block + 1)
        return ChoosingState(KeyValueState.empty(rows, capacity), blocks, self.block)

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q, k, v = (to_heads(part(x), -1, self.head_dim) for part in (self.q, self.k, self.v))  # [b, n or m, t, d]
        if self.position is not None:
            q, k = self.position(q, k, context)
        gates = self.gate(x).sigmoid().unflatten(-1, (3, self.num_heads)).permute(2, 0, 3, 1).unsqueeze(-1)
        if isinstance(state, ChoosingState):
            pairs = zip(state.tokens.rows, state.blocks.rows, strict=True)
            rows = [self._row(q[i : i + 1], (k[i], v[i]), pair, gates[:, i : i + 1]) for i, pair in enumerate(pairs)]
            y = stack_rows(rows)
        else:
            blocks = blocks_of(context, self.block)
            summaries = self._summaries(k, v, blocks)
            y = self._read(q, (k, v), summaries, gates, self._places(blocks, context))
        return self.o(from_heads(y)), state

    def _summaries(self, k: Tensor, v: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """The key and value of every block, [b, m, k, d]."""
        return self.summary_k(blocks.gathered(k).flatten(3)), self.summary_v(blocks.gathered(v).flatten(3))

    def _row(self, q: Tensor, new: tuple[Tensor, Tensor], rows: tuple[Row, Row], gates: Tensor) -> Tensor:
        """One row that continues its past: q [1, n, t, d], new [m, t, d] -> [n, t, d]."""
        tokens, summed = rows
        k, v = tokens.append(*new)
        done, complete, size = summed.length, k.shape[1] // self.block, self.block
        keys, values = k[:, :0], v[:, :0]
        if complete > done:
            fresh = slice(done * size, complete * size)
            own = [x[None, :, fresh].unflatten(2, (complete - done, size)).flatten(3) for x in (k, v)]
            keys, values = self.summary_k(own[0])[0], self.summary_v(own[1])[0]
        summaries = summed.append(keys, values)
        time, length = q.shape[2], k.shape[1]
        if time == 1:
            return self._token(q, (k[None], v[None]), (summaries[0][None], summaries[1][None]), gates)[0]
        context = Context(positions=torch.arange(length, device=q.device)[None])
        masks = tuple(mask[:, -time:] for mask in self._places(blocks_of(context, size), context)[:3])
        index = blocks_of(context, size).of
        return self._read(q, (k[None], v[None]), (summaries[0][None], summaries[1][None]), gates, (*masks, index))[0]

    def _places(self, blocks: Blocks, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """bool: the summaries [b, t, k], own tokens [b, t, t] and window [b, t, t] that a token sees; block by token."""
        positions = context.positions
        places = torch.arange(positions.shape[1], device=positions.device)
        mine = (positions // self.block)[:, :, None]
        past = blocks.real[:, None, :] & (blocks.numbers[:, None, :] < mine)
        order = (places[None, :] <= places[:, None])[None]
        own = (mine == (positions // self.block)[:, None, :]) & order
        near = SlidingWindow(size=self.window).allowed(positions[:, :, None], positions[:, None, :])
        if context.segments is not None:
            same = context.segments[:, :, None] == context.segments[:, None, :]
            past = past & (context.segments[:, :, None] == context.segments[:, blocks.ends][:, None, :])
            own, near = own & same, near & same
        return past, own, near, blocks.of

    def _read(
        self,
        q: Tensor,
        kv: tuple[Tensor, Tensor],
        summaries: tuple[Tensor, Tensor],
        gates: Tensor,
        places: tuple[Tensor, ...],
    ) -> Tensor:
        """The three views of any number of tokens, as masked products: q [b, n, t, d] -> [b, n, t, d]."""
        (k, v), (past, own, near, of) = kv, places
        glance, weights = self._glance(q, summaries, past[:, None])
        picked = self.pick(weights, past[:, None])  # [b, m, t, k]
        picked = torch.cat([picked, picked.new_zeros(*picked.shape[:3], 1)], dim=-1)  # of no complete block
        index = of[:, None, None, :].expand(*picked.shape[:3], -1)
        seen = picked.gather(-1, index) | own[:, None]  # [b, m, t, l]
        share = self.num_heads // self.num_kv_heads
        read = attend(q, k, v, seen.repeat_interleave(share, dim=1), PLAIN)
        return gates[0] * glance + gates[1] * read + gates[2] * attend(q, k, v, near[:, None], PLAIN)

    def _token(self, q: Tensor, kv: tuple[Tensor, Tensor], summaries: tuple[Tensor, Tensor], gates: Tensor) -> Tensor:
        """The three views of one token, which touch the chosen blocks, one's own and the window alone: q [1, n, 1, d]."""
        (k, v), length = kv, kv[0].shape[2]
        own = (length - 1) // self.block * self.block
        past = torch.ones(1, 1, 1, summaries[0].shape[2], dtype=torch.bool, device=q.device)
        past[..., own // self.block :] = False  # a block that this token completes
        glance, weights = self._glance(q, summaries, past)
        picked = self.pick(weights, past)[0, :, 0]  # [m, k]
        asked = q[0].unflatten(0, (self.num_kv_heads, -1))[:, :, 0]  # [m, g, d]
        heads = []
        for head in range(self.num_kv_heads):
            chosen = picked[head].nonzero()[:, 0, None] * self.block + torch.arange(self.block, device=q.device)
            tokens = torch.cat([chosen.flatten(), torch.arange(own, length, device=q.device)])
            heads.append(attend(asked[head][None, None], k[:, head : head + 1, tokens], v[:, head : head + 1, tokens],
                                torch.ones(1, 1, 1, len(tokens), dtype=torch.bool, device=q.device), PLAIN)[0])  # fmt: skip
        read = torch.cat(heads).flatten(0, 1)[None, :, None]
        first = max(length - self.window, 0)
        every = torch.ones(1, 1, 1, length - first, dtype=torch.bool, device=q.device)
        near = attend(q, k[:, :, first:], v[:, :, first:], every, PLAIN)
        return gates[0] * glance + gates[1] * read + gates[2] * near

    def _glance(self, q: Tensor, summaries: tuple[Tensor, Tensor], past: Tensor) -> tuple[Tensor, Tensor]:
        """What the summaries say [b, n, t, d], and their weights added up over heads, [b, m, t, k]; 0 where none is past."""
        grouped = q.unflatten(1, (self.num_kv_heads, -1))  # [b, m, g, t, d]
        keys, values = (x.unsqueeze(2) for x in summaries)  # [b, m, 1, k, d]
        scores = grouped @ keys.transpose(-1, -2) * self.head_dim**-0.5
        scores = scores.masked_fill(~past.unsqueeze(2), torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1) * past.unsqueeze(2) if scores.shape[-1] else scores
        return (weights @ values).flatten(1, 2), weights.sum(2)

    def pick(self, weights: Tensor, past: Tensor) -> Tensor:
        """The ``chosen`` heaviest past blocks of each token, bool, as weights [b, m, t, k]."""
        found = torch.zeros_like(weights, dtype=torch.bool)
        ranked = weights.detach().masked_fill(~past, -1.0)
        best = ranked.topk(min(self.chosen, weights.shape[-1]), dim=-1).indices
        return found.scatter(-1, best, True) & past


def choosing(
    hidden: int,
    *,
    num_heads: int,
    block: int,
    chosen: int,
    window: int,
    num_kv_heads: int | None = None,
    position: Rope.Spec | None = None,
) -> ChoosingAttention.Spec:
    """The spec of a layer from its few free sizes."""
    head_dim, num_kv_heads = hidden // num_heads, num_kv_heads or num_heads
    summary = Linear.Spec(in_features=block * head_dim, out_features=head_dim, axes=("none", "none"))
    return ChoosingAttention.Spec(
        **head_maps(hidden, num_heads * head_dim, kv_width=num_kv_heads * head_dim),
        summary_k=summary,
        summary_v=summary,
        gate=Linear.Spec(in_features=hidden, out_features=3 * num_heads, bias=True, axes=("none", "embed")),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block=block,
        chosen=chosen,
        window=window,
        position=position,
    )
