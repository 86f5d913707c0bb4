"""Sparse attention that skips what its mask hides: it costs what is seen, and gives what the masked dense one gives.

Queries are taken in tiles, and for a tile only the keys that one of its queries sees are gathered (Child 2019, arXiv
1904.10509, section 5.5, computes blocks so; Zaheer 2020, arXiv 2007.14062, appendix D, gathers them). Within a tile the mask
decides. Which keys a tile needs is worked out once per mask and length, and kept. A tile's queries are ``step`` tokens apart:
those of a dilated window then see the same keys. Patterns are values, see `almanac.nn.attention.patterns`.

Deviation: what a tile needs is columns, not blocks of keys, so that any rule profits without being known. While
``torch.compile`` traces, whose graphs cannot depend on a mask's content, the dense form runs.

Legend: b batch, t new tokens, l tokens so far, n query heads, m key-value heads, d head_dim, h hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.state import Context, Mixer, State
from almanac.nn.attention.heads import HeadMaps, from_heads, head_maps, require_fixed_turns, require_shared, to_heads
from almanac.nn.attention.kv import KeyValueState, stack_rows
from almanac.nn.attention.masks import BothWays, Mask, PrefixLM, visible, visible_after
from almanac.nn.attention.near import reach_of
from almanac.nn.attention.scores import Rule, attend
from almanac.nn.positions.rope import Rope

LAYOUTS = 16  # kept: of a training length or two, for each kind of layer


@dataclass(frozen=True)
class Tile:
    """Queries [t'] and the keys [l'] that they need, as places; ``mask`` bool [b or 1, 1, t', l'] says who sees which."""

    queries: Tensor
    keys: Tensor
    mask: Tensor


class SparseAttention(Mixer):
    """x [b, t, h] -> [b, t, h]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(HeadMaps):
        num_heads: int
        num_kv_heads: int
        head_dim: int
        mask: Mask
        position: Rope.Spec | None = None
        scale: float | None = None  # of the scores; None: 1 / sqrt(d)
        tile: int = 64  # queries computed together
        step: int = 1  # tokens between a tile's queries; a dilated mask's dilation

        def __post_init__(self) -> None:
            require_shared(self.num_heads, self.num_kv_heads)
            if min(self.tile, self.step) < 1:
                raise ShapeError(f"Tiles of {self.tile} queries {self.step} apart", remedy="Give one at least of each.")
            require_fixed_turns(self.position, "in sparse attention")

        def build(self) -> SparseAttention:
            return SparseAttention(self)

    def __init__(self, spec: SparseAttention.Spec) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.mask, self.tile, self.step, self.rule = spec.mask, spec.tile, spec.step, Rule(spec.scale)
        self.q, self.k, self.v, self.o = spec.q.build(), spec.k.build(), spec.v.build(), spec.o.build()
        self.position = spec.position.build() if spec.position is not None else None
        self.tiles_key = f"tiles/{spec.mask.digest()}/{spec.tile}/{spec.step}"
        self.visible_key = f"visible/{spec.mask.digest()}"

    def init_state(self, rows: int, capacity: int) -> KeyValueState:
        if isinstance(self.mask, BothWays):
            raise UnsupportedError(
                "Attention that sees both ways keeps no state", remedy="Give the whole text in one call."
            )
        return KeyValueState.empty(rows, capacity, reach=reach_of(self.mask))

    def compute(self, x: Tensor, context: Context, state: State | None = None) -> tuple[Tensor, State | None]:
        q = to_heads(self.q(x), self.num_heads, self.head_dim)  # [b, n, t, d]
        k = to_heads(self.k(x), self.num_kv_heads, self.head_dim)  # [b, m, t, d]
        v = to_heads(self.v(x), self.num_kv_heads, self.head_dim)
        if self.position is not None:
            q, k = self.position(q, k, context)
        if isinstance(state, KeyValueState):
            prefixes = context.prefix.split(1) if context.prefix is not None else [None] * len(state.rows)
            past = [row.append(k[i], v[i]) for i, row in enumerate(state.rows)]
            y = stack_rows([self._row(q[i], past[i], n, prefixes[i]) for i, n in enumerate(state.lengths)])
        elif torch.compiler.is_compiling():
            y = attend(q, k, v, self._visible(context), self.rule)
        else:
            y = attend_tiles(q, k, v, self._tiles(context), self.rule)
        return self.o(from_heads(y)), state

    def _row(self, q: Tensor, past: tuple[Tensor, Tensor], length: int, prefix: Tensor | None) -> Tensor:
        """One row, now of ``length`` tokens: q [n, t, d]; the last keys and values [m, l, d] -> [n, t, d]."""
        (k, v), time = past, q.shape[1]
        if time == length and prefix is None:
            tiles = layout(self.mask, length, self.tile, self.step, q.device)
        else:
            keys = torch.arange(length - k.shape[1], length, device=q.device)[None]
            seen = visible_after(self.mask, keys, time, prefix=prefix)
            tiles = tuple(tiles_of(seen, self.tile, self.step))
        return attend_tiles(q[None], k[None], v[None], tiles, self.rule)[0]

    def _tiles(self, context: Context) -> tuple[Tile, ...]:
        """The tiles of a call without a state."""
        if context.segments is None and (context.prefix is None or not isinstance(self.mask, PrefixLM)):
            counted = context.positions == torch.arange(context.positions.shape[1], device=context.positions.device)
            if bool(counted.all()):
                return layout(self.mask, counted.shape[1], self.tile, self.step, counted.device)
        found: tuple[Tile, ...] | None = context.memo.get(self.tiles_key)
        if found is None:
            found = tuple(tiles_of(self._visible(context)[:, 0], self.tile, self.step))
            context.memo[self.tiles_key] = found
        return found

    def _visible(self, context: Context) -> Tensor:
        """bool [b, 1, t, t], shared by layers."""
        found: Tensor | None = context.memo.get(self.visible_key)
        if found is None:
            context.memo[self.visible_key] = found = visible(self.mask, context).unsqueeze(1)
        return found


@lru_cache(maxsize=LAYOUTS)
def layout(mask: Mask, length: int, tile: int, step: int, device: torch.device) -> tuple[Tile, ...]:
    """The tiles of ``length`` tokens counted from 0; never more than a tile's part of the mask is held at once."""
    keys = torch.arange(length, device=device)
    found = []
    for queries in groups(length, tile, step, device):
        seen = mask.allowed(queries[:, None], keys[None, :])
        needed = seen.any(0).nonzero().flatten()
        found.append(Tile(queries, needed, seen[:, needed][None, None]))
    return tuple(found)


def tiles_of(seen: Tensor, tile: int, step: int) -> Iterator[Tile]:
    """The tiles of a mask given as bool [b, t, l]."""
    for queries in groups(seen.shape[1], tile, step, seen.device):
        part = seen[:, queries]
        needed = part.flatten(0, 1).any(0).nonzero().flatten()
        yield Tile(queries, needed, part[:, :, needed].unsqueeze(1))


def groups(length: int, tile: int, step: int, device: torch.device) -> Iterator[Tensor]:
    """Places 0 to ``length`` - 1 in groups of at most ``tile``, ``step`` apart."""
    for first in range(min(step, length)):
        yield from torch.arange(first, length, step, device=device).split(tile)


def attend_tiles(q: Tensor, k: Tensor, v: Tensor, tiles: tuple[Tile, ...], rule: Rule) -> Tensor:
    """q [b, n, t, d]; k, v [b, m, l, d] -> [b, n, t, d]; every query must be in one tile."""
    outputs = [attend(_taken(q, t.queries), _taken(k, t.keys), _taken(v, t.keys), t.mask, rule) for t in tiles]
    y = torch.cat(outputs, dim=2)
    order = torch.cat([tile.queries for tile in tiles])
    return y if len(tiles) == 1 or bool((order.diff() == 1).all()) else y[:, :, order.argsort()]


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """x [b, n, l, d] at ``places``; neighbours are not copied."""
    first, count = int(places[0]), len(places)
    if int(places[-1]) - first + 1 == count:
        return x[:, :, first : first + count]
    return x.index_select(2, places)


def sparse_attention(
    hidden: int,
    *,
    num_heads: int,
    mask: Mask,
    num_kv_heads: int | None = None,
    position: Rope.Spec | None = None,
    tile: int = 64,
    step: int = 1,
) -> SparseAttention.Spec:
    """The spec of a layer from its few free sizes."""
    head_dim, num_kv_heads = hidden // num_heads, num_kv_heads or num_heads
    return SparseAttention.Spec(
        **head_maps(hidden, num_heads * head_dim, kv_width=num_kv_heads * head_dim),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        mask=mask,
        position=position,
        tile=tile,
        step=step,
    )
