"""Blocks of neighbouring keys, counted from the beginning of each text, for attention that sees past blocks as one.

A row may hold one text from its first place, where blocks lie at multiples of their size, or several packed ones, where a
block may end anywhere: then every place stands for the block that ends there, and those that are none are ruled out.

Legend: b batch, m heads, t tokens of a row, c tokens of a block, k blocks, d head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.core.state import Context


@dataclass(frozen=True)
class Blocks:
    """The complete blocks of ``size`` tokens of a batch of rows.

    - ``ends`` int64 [k]: place of each block's last token; ``numbers`` int64 [b or 1, k]: which block of its text it is
    - ``real`` bool [b or 1, k]: whether it is a block
    - ``of`` int64 [b or 1, t]: the block of each token, as an index of the former; k where it is incomplete
    """

    size: int
    ends: Tensor
    numbers: Tensor
    real: Tensor
    of: Tensor

    def gathered(self, x: Tensor) -> Tensor:
        """x [b, m, t, d] -> the tokens of each block, [b, m, k, c, d]; what is before the row is 0."""
        count = len(self.ends)
        if count * self.size <= x.shape[2]:
            return x[:, :, : count * self.size].unflatten(2, (count, self.size))
        return F.pad(x, (0, 0, self.size - 1, 0)).unfold(2, self.size, 1).transpose(-1, -2)


def blocks_of(context: Context, size: int) -> Blocks:
    """The blocks of a call without a state; texts are counted from 0. Layers share them."""
    key = f"blocks/{size}"
    found: Blocks | None = context.memo.get(key)
    if found is None:
        context.memo[key] = found = _of_row(context, size) if context.segments is None else _of_packed(context, size)
    return found


def _of_row(context: Context, size: int) -> Blocks:
    places = torch.arange(context.positions.shape[1], device=context.positions.device)
    count = len(places) // size
    numbers = torch.arange(count, device=places.device)
    real = torch.ones(1, count, dtype=torch.bool, device=places.device)
    return Blocks(size, numbers * size + size - 1, numbers[None], real, (places // size).clamp(max=count)[None])


def _of_packed(context: Context, size: int) -> Blocks:
    """Every place is a block; a text is longer than its last incomplete one, as positions count it through."""
    assert context.segments is not None
    places = torch.arange(context.positions.shape[1], device=context.positions.device)
    within = context.positions % size
    end = places + (size - 1 - within)  # [b, t]
    last = end.clamp(max=len(places) - 1)
    complete = (end < len(places)) & (context.segments == context.segments.gather(1, last))
    return Blocks(size, places, context.positions // size, within == size - 1, end.where(complete, len(places)))
