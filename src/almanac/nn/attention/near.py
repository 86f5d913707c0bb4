"""Attention whose tokens see a bounded way back, at a cost that grows with the length and not with its square.

Beltagy 2020, arXiv 2004.05150, section 3.2, "chunked" form: queries are taken in tiles, each with the keys of its own places
and of the ``reach`` places before, which hold all that the tile may see; within, the mask decides. All tiles are alike, so
they are one batch for the kernel, as many at a time as `AT_ONCE` allows. Time and memory are in O(t · reach), forwards and
backwards. The dense form with the same mask is the oracle, and what other backends than torch's own run.

Deviation: tiles are half as long as the reach where the paper's are as long, so that a third is computed in vain, not half.

Legend: b batch, t queries, l keys, n query heads, m key-value heads, d head_dim; r reach, c queries of a tile, g tiles,
w = c + r keys of a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.state import Context
from almanac.nn.attention.backends import Sdpa, current
from almanac.nn.attention.masks import ChunkedAttention, Mask, SlidingWindow
from almanac.nn.attention.scores import Rule, attend
from almanac.nn.positions.score_bias import ScoreBias

AT_ONCE = 1 << 25  # scores of one call: 128 MB where a rule writes them out in float32
SHORTEST, LONGEST = 16, 512  # tiles
LEAST = 128  # keys; a mask of all pairs of fewer costs next to nothing
BEFORE, AFTER = -2, -3  # segments of what is laid before the first key and after the last; padding of a text is -1


@dataclass(frozen=True)
class Near:
    """Who sees whom.

    - ``positions`` int64 [b or 1, l] of the keys, whose last t are the queries; ``segments`` int64 [b or 1, l] or None
    - ``alike``: positions count on by one and there are no segments, so that a window looks the same from every place
    """

    mask: Mask
    reach: int
    positions: Tensor
    segments: Tensor | None = None
    bias: ScoreBias | None = None
    alike: bool = False


def reach_of(mask: Mask) -> int | None:
    """How many places back a token sees at most, itself included; None where there is no such bound."""
    return mask.size if isinstance(mask, SlidingWindow | ChunkedAttention) else None


def tile_of(reach: int) -> int:
    """Queries of a tile."""
    return min(max(SHORTEST, reach // 2), LONGEST)


def pays(reach: int | None, time: int, length: int) -> bool:
    """Whether tiles compute less than ``time`` queries with all of ``length`` keys, under the backend in use."""
    if reach is None or time == 1 or not isinstance(current(), Sdpa):
        return False
    # shorter texts lose more by the copying than they gain
    return length >= LEAST and 2 * length > 3 * (reach + tile_of(reach))


def near_of(mask: Mask, reach: int, context: Context, bias: ScoreBias | None = None) -> Near | None:
    """For a call without a state; None where a text's positions do not grow from place to place.

    While ``torch.compile`` traces, whose graphs cannot ask, and without numbers they are taken to grow.
    """
    if torch.compiler.is_compiling() or context.positions.is_meta:
        return Near(mask, reach, context.positions, context.segments, bias)
    found: tuple[bool, bool] | None = context.memo.get("positions grow")
    if found is None:
        steps = context.positions.diff()
        ends = torch.zeros_like(steps, dtype=torch.bool)
        if context.segments is not None:
            ends = context.segments.diff() != 0
        grow, counted = bool(((steps > 0) | ends).all()), bool((steps == 1).all())
        context.memo["positions grow"] = found = grow, counted and context.segments is None
    return Near(mask, reach, context.positions, context.segments, bias, alike=found[1]) if found[0] else None


def attend_near(q: Tensor, k: Tensor, v: Tensor, near: Near, rule: Rule) -> Tensor:
    """q [b, n, t, d]; k, v [b, m, l, d], whose last t keys are the queries' -> [b, n, t, d]."""
    time, length, tile = q.shape[2], k.shape[2], tile_of(near.reach)
    count = -(-time // tile)
    first = length - time - near.reach  # place of the first tile's first key
    cut, before, after = max(0, first), max(0, -first), count * tile - time
    keys, values = (
        F.pad(x[:, :, cut:], (0, 0, before, after)).unfold(2, tile + near.reach, tile).permute(0, 2, 1, 4, 3)
        for x in (k, v)
    )  # [b, g, m, w, d]
    queries = F.pad(q, (0, 0, 0, after)).unflatten(2, (count, tile)).transpose(1, 2)  # [b, g, n, c, d]
    alike = near.alike and near.bias is None and isinstance(near.mask, SlidingWindow)
    if alike:  # in every row
        near = replace(near, positions=near.positions[:1])
    windows = _Windows.of(near, cut=cut, before=before, after=after, tile=tile)
    size = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * tile * (tile + near.reach)))
    head = min(count, -(-before // tile)) if alike else 0  # tiles that begin before the text
    parts: list[Tensor] = []
    for start, end in _runs(head, count, size):
        some = (x[:, start:end].flatten(0, 1) for x in (queries, keys, values))
        allowed = windows.mask(near, start, start + 1 if alike and start >= head else end, rows=q.shape[0])
        parts.append(attend(*some, allowed, rule).unflatten(0, (q.shape[0], -1)))
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return y.transpose(1, 2).flatten(2, 3)[:, :, :time]


def _runs(head: int, count: int, size: int) -> list[tuple[int, int]]:
    """Tiles 0 to ``head`` and ``head`` to ``count`` in runs of at most ``size``."""
    parts = [(start, min(start + size, head)) for start in range(0, head, size)]
    return parts + [(start, min(start + size, count)) for start in range(head, count, size)]


@dataclass(frozen=True)
class _Windows:
    """Positions and segments int64 [b or 1, g, w] of every tile's keys, the last c of which are its queries'."""

    positions: Tensor
    segments: Tensor
    tile: int

    @classmethod
    def of(cls, near: Near, *, cut: int, before: int, after: int, tile: int) -> _Windows:
        positions = near.positions[:, cut:]
        segments = torch.zeros_like(positions) if near.segments is None else near.segments[:, cut:]
        # queries after the last are of no text, but see themselves: a softmax of nothing has no gradient
        more = torch.arange(after, device=positions.device).expand(len(positions), -1)
        positions = torch.cat([F.pad(positions, (before, 0)), more], dim=1)
        segments = F.pad(F.pad(segments, (before, 0), value=BEFORE), (0, after), value=AFTER)
        width = tile + near.reach
        return cls(positions.unfold(1, width, tile), segments.unfold(1, width, tile), tile)

    def mask(self, near: Near, start: int, end: int, *, rows: int) -> Tensor:
        """What the queries of the tiles see, bool [b g or 1, 1, c, w], or with a bias float [b g, n, c, w]."""
        keys, segments = (x[:, start:end].flatten(0, 1) for x in (self.positions, self.segments))  # [b g, w]
        queries, own = keys[:, -self.tile :], segments[:, -self.tile :]
        seen = near.mask.allowed(queries[:, :, None], keys[:, None, :]) & (own[:, :, None] == segments[:, None, :])
        found = seen.unsqueeze(1)
        if near.bias is not None:
            found = near.bias(queries, keys).masked_fill(~found, -math.inf)
        if len(self.positions) == rows or len(found) == 1:
            return found
        return found.repeat(rows, 1, 1, 1)
