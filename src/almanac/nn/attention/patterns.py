"""Sparse patterns: which few of the past tokens a token sees, so that their number grows slower than the past.

- `Strided` and `Fixed`: Child 2019, arXiv 1904.10509, section 4.3, the two factors merged into one rule; `Dilated` without a
  window and `SlidingWindow` are the strided factors for layers that take turns;
- `Dilated`: Longformer, Beltagy 2020, arXiv 2004.05150, section 3.1: a window of every ``dilation``-th token, global tokens;
- `BigBird`: Zaheer 2020, arXiv 2007.14062, section 2: near, global and random blocks. Random blocks are drawn by a hash of
  the query's block among those before it, with replacement, so that they depend on no length and are never redrawn;
- `BlockSparse`: blocks at given distances, global blocks (as layouts of Gray 2017, "GPU kernels for block-sparse weights");
- `Hierarchical`: near tokens one by one, further ones at every ``branch``-fold of the distance sparser (after Li 2019, arXiv
  1907.00235, LogSparse, and Ye 2019, arXiv 1911.04070, whose spans are averaged where we keep their last token).

All are causal; `BothWays` makes them symmetric, and global tokens then also see all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.nn.attention.masks import Mask, require_positive


@dataclass(frozen=True, kw_only=True)
class Strided(Mask):
    """The last ``stride`` tokens, and before them every ``stride``-th, counted back from oneself."""

    stride: int

    def __post_init__(self) -> None:
        require_positive("A stride", self.stride)

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = query_positions - key_positions
        return (distance >= 0) & ((distance < self.stride) | (distance % self.stride == 0))

    def is_plain_causal(self, length: int) -> bool:
        return length <= self.stride + 1


@dataclass(frozen=True, kw_only=True)
class Fixed(Mask):
    """One's own block of ``stride`` tokens, and the last ``summary`` tokens of every block before it."""

    stride: int
    summary: int = 1

    def __post_init__(self) -> None:
        require_positive("A stride", self.stride)
        if not 1 <= self.summary <= self.stride:
            raise ShapeError(
                f"A summary of {self.summary} in blocks of {self.stride} tokens",
                remedy="Let a block be summed up by one to all of its tokens.",
            )

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        same = query_positions // self.stride == key_positions // self.stride
        summary = key_positions % self.stride >= self.stride - self.summary
        return (key_positions <= query_positions) & (same | summary)

    def is_plain_causal(self, length: int) -> bool:
        return length <= self.stride or self.summary == self.stride


@dataclass(frozen=True, kw_only=True)
class Dilated(Mask):
    """``window`` tokens (None: any number), ``dilation`` apart, back from oneself; and the first ``anchors`` tokens."""

    window: int | None = None
    dilation: int = 1
    anchors: int = 0  # the paper's global tokens

    def __post_init__(self) -> None:
        if self.window is not None:
            require_positive("A window", self.window)
        require_positive("A dilation", self.dilation)
        if self.anchors < 0:
            raise ShapeError(f"{self.anchors} global tokens", remedy="Give none or more.")

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = query_positions - key_positions
        near = distance % self.dilation == 0
        if self.window is not None:
            near = near & (distance < self.window * self.dilation)
        return (distance >= 0) & (near | (key_positions < self.anchors))

    def is_plain_causal(self, length: int) -> bool:
        whole = self.dilation == 1 and (self.window is None or length <= self.window)
        return length <= 1 or whole or length <= self.anchors


@dataclass(frozen=True, kw_only=True)
class BigBird(Mask):
    """Blocks of ``block`` tokens: one's own and ``near`` - 1 before it, the first ``anchors``, and ``random`` others."""

    block: int
    near: int = 2
    anchors: int = 1
    random: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive("A block", self.block)
        if self.near < 1 or min(self.anchors, self.random) < 0:
            raise ShapeError(
                f"{self.near} near, {self.anchors} global and {self.random} random blocks",
                remedy="Give one near block at least, one's own, and no negative number of others.",
            )

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        mine, other = query_positions // self.block, key_positions // self.block
        found = (mine - other < self.near) | (other < self.anchors)
        for draw in range(self.random):
            found = found | (other == drawn(mine, self.seed * 1009 + draw))
        return found & (key_positions <= query_positions)

    def is_plain_causal(self, length: int) -> bool:
        return length <= self.block * max(self.near, self.anchors)


@dataclass(frozen=True, kw_only=True)
class BlockSparse(Mask):
    """Blocks of ``block`` tokens at the distances ``offsets`` (0 is one's own), and the first ``anchors`` blocks."""

    block: int
    offsets: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    anchors: int = 0

    def __post_init__(self) -> None:
        require_positive("A block", self.block)
        if 0 not in self.offsets or min(self.offsets) < 0 or self.anchors < 0:
            raise ShapeError(
                f"Blocks at distances {self.offsets}, {self.anchors} global",
                remedy="Give distances back, one's own block (0) among them.",
            )

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = query_positions // self.block - key_positions // self.block
        found = key_positions // self.block < self.anchors
        for offset in self.offsets:
            found = found | (distance == offset)
        return found & (key_positions <= query_positions)

    def is_plain_causal(self, length: int) -> bool:
        blocks = -(-length // self.block)
        return blocks <= self.anchors or set(range(blocks)) <= set(self.offsets)


@dataclass(frozen=True, kw_only=True)
class Hierarchical(Mask):
    """The last ``window`` tokens; up to ``branch`` times as far the last of every ``branch`` tokens, and so on."""

    window: int
    branch: int = 2

    def __post_init__(self) -> None:
        require_positive("A window", self.window)
        if self.branch < 2:
            raise ShapeError(f"Levels that widen {self.branch}-fold", remedy="Give a branch of 2 at least.")

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        distance = query_positions - key_positions
        found, span, step = distance < self.window, self.window, 1
        while span < 1 << 40:  # positions are never so far apart
            span, step = span * self.branch, step * self.branch
            found = found | ((distance < span) & ((key_positions + 1) % step == 0))
        return found & (distance >= 0)

    def is_plain_causal(self, length: int) -> bool:
        return length <= self.window


def drawn(block: Tensor, salt: int) -> Tensor:
    """For every block one of those before it (block 0: itself), by a hash: int64 -> int64."""
    mixed = block * 0x9E3779B1 + salt * 0x85EBCA6B + 1
    for multiplier in (0x7FEB352D, 0x846CA68B):  # a 32-bit finaliser; products stay below 2^63
        mixed = (mixed ^ (mixed >> 16)) & 0x7FFFFFFF
        mixed = (mixed * multiplier) & 0x7FFFFFFF
    mixed = mixed ^ (mixed >> 16)
    return mixed % torch.clamp(block, min=1)
