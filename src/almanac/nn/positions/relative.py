"""Relative position bias in buckets: a learned number per head for every distance; far distances share a number.

Raffel 2019, arXiv 1910.10683, section 2.1 (T5), with the authors' buckets: the nearer half hold one distance each, the others
widen by a constant factor up to ``max_distance``, and the last holds all beyond. With ``bidirectional``, half of all buckets
are for keys after the query; without, such keys (which a causal mask hides) fall into the bucket of distance 0.

T5 learns one table for a whole stack. The layer that owns it has a `RelativeBias`, the others a `SharedBias`, and the stack
calls `share` on its layers when it is built. The table then has one place in the checkpoint and all layers learn it; as a
`SharedBias` has no weight of its own, attention computes it once per context and shares it through ``context.memo``.

Legend: b batch, t queries, l keys, n heads, k buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from almanac.core.errors import SelectionError, ShapeError
from almanac.nn.embedding import Embedding
from almanac.nn.positions.score_bias import ScoreBias


class RelativeBias(ScoreBias):
    """``table.weight`` [k, n]: row by bucket of distance, column by head."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(ScoreBias.Spec):
        table: Embedding.Spec
        max_distance: int = 128  # from here on all distances share a bucket
        bidirectional: bool = False

        def __post_init__(self) -> None:
            if self.table.hidden != self.num_heads:
                raise ShapeError(
                    f"A table of {self.table.hidden} columns for {self.num_heads} heads",
                    remedy="Give it one column per head.",
                )
            sides = 2 if self.bidirectional else 1
            if self.table.vocab_size < 2 * sides or self.table.vocab_size % sides:
                raise ShapeError(
                    f"{self.table.vocab_size} buckets of distance",
                    remedy=f"Give an even number, {2 * sides} at least.",
                )
            if self.max_distance <= self.table.vocab_size // sides // 2:
                raise ShapeError(
                    f"Buckets up to distance {self.max_distance} of which {self.table.vocab_size // sides // 2} are single",
                    remedy="Raise max_distance or give fewer buckets.",
                )

        def build(self) -> RelativeBias:
            return RelativeBias(self)

    def __init__(self, spec: RelativeBias.Spec) -> None:
        super().__init__()
        self.table = spec.table.build()
        self.num_buckets, self.max_distance = spec.table.vocab_size, spec.max_distance
        self.bidirectional = spec.bidirectional

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = key_positions[:, None, :] - query_positions[:, :, None]  # [b, t, l]
        places = buckets(distance, self.num_buckets, max_distance=self.max_distance, bidirectional=self.bidirectional)
        rows = self.table(torch.arange(self.num_buckets, device=distance.device))  # [k, n]
        return rows.t()[:, places].transpose(0, 1)


class Shared(nn.Module):
    """Stands for a module of kind ``KIND`` that another layer owns; `share` says which."""

    KIND: ClassVar[type[nn.Module]]
    owner: tuple[nn.Module, ...] = ()  # in a tuple, as it is no child: it has one place in the checkpoint

    def owned(self) -> nn.Module:
        """The module that another layer owns. Raises SelectionError if nobody said which."""
        if not self.owner:
            raise SelectionError(
                "Shared positions do not know whose they are",
                remedy="Call `almanac.nn.positions.relative.share` on the stack of layers that share them.",
            )
        return self.owner[0]


class SharedBias(ScoreBias, Shared):
    """The bias of another layer's `RelativeBias`."""

    KIND = RelativeBias

    @dataclass(frozen=True, kw_only=True)
    class Spec(ScoreBias.Spec):
        def build(self) -> SharedBias:
            return SharedBias(self)

    def __init__(self, spec: SharedBias.Spec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        found: Tensor = self.owned()(query_positions, key_positions)
        assert found.shape[1] == self.num_heads
        return found


def share(stack: nn.Module) -> None:
    """Every `Shared` below ``stack`` gets the only module of its kind there. Raises SelectionError if that is not one."""
    for reader in stack.modules():
        if isinstance(reader, Shared):
            owners = [module for module in stack.modules() if isinstance(module, reader.KIND)]
            if len(owners) != 1:
                raise SelectionError(
                    f"Layers share a {reader.KIND.__name__} of which there are {len(owners)}",
                    remedy="Give it to one layer, usually the first.",
                )
            reader.owner = (owners[0],)


def buckets(distance: Tensor, count: int, *, max_distance: int, bidirectional: bool) -> Tensor:
    """Key minus query position, int64 of any shape -> bucket of ``count``, the same shape."""
    first: Tensor | int = 0
    if bidirectional:
        count //= 2
        first, distance = (distance > 0).to(torch.int64) * count, distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    single = count // 2
    # float32 and in this order, as the authors': a bucket's edge depends on how its logarithm rounds
    far = torch.log(distance.clamp(min=1).to(torch.float32) / single) / math.log(max_distance / single)
    wide = (single + (far * (count - single)).to(torch.int64)).clamp(max=count - 1)
    return first + torch.where(distance < single, distance, wide)


def relative_bias(
    num_heads: int, *, num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = False
) -> RelativeBias.Spec:
    """The spec of a bias with a table of its own."""
    table = Embedding.Spec(vocab_size=num_buckets, hidden=num_heads, axes=("none", "heads"))
    return RelativeBias.Spec(num_heads=num_heads, table=table, max_distance=max_distance, bidirectional=bidirectional)
