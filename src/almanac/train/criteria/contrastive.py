"""Training an encoder so that two pieces of a window lie nearer than pieces of two windows (`objectives.contrastive`).

The two are cropped at random and may overlap (Izacard 2021, arXiv 2112.09118, section 3.2); the other windows of the
micro-batch are the negatives, so that a loss depends on how steps are cut into micro-batches, unlike that of other criteria.

Legend: b rows, t tokens of a window, c tokens of a crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.errors import RequestError
from almanac.core.state import Context
from almanac.nn.pooling import Mean, Pooling
from almanac.objectives.contrastive import Contrast, Metrics, contrastive
from almanac.objectives.example_dice import draw
from almanac.train.criteria.corrupted import Corruption, Place, padded
from almanac.train.criterion import Criterion


@dataclass(frozen=True)
class Crops:
    """``tokens`` and ``segments`` int64 [2b, c]: first one crop of every window, then, in the same order, the other."""

    tokens: Tensor
    segments: Tensor


@dataclass(frozen=True, kw_only=True)
class CroppedWindows(Corruption):
    """Crops are between ``least`` and ``most`` of a window long."""

    pad_id: int
    least: float = 0.25
    most: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most <= 1:
            raise RequestError(
                f"Crops of {self.least:g} to {self.most:g} of a window", remedy="Give two shares in ascending order."
            )

    def batch(self, rows: Tokens, places: Sequence[Place]) -> Crops:
        time, all_dice = rows.tokens.shape[1], [place.dice() for place in places]
        low, high = (max(1, round(share * time)) for share in (self.least, self.most))

        def crop(row: Tensor, dice: torch.Generator) -> Tensor:
            length = low + draw(high - low + 1, dice)
            start = draw(time - length + 1, dice)
            return row[start : start + length]

        crops = [crop(row, dice) for _ in range(2) for row, dice in zip(rows.tokens, all_dice, strict=True)]
        return Crops(*padded(crops, pad_id=self.pad_id))


@dataclass(frozen=True, kw_only=True)
class Contrastive(Criterion):
    """On `Crops`; the network is an `Encoder`, whose vectors ``pooling`` makes one. Weighted by pairs."""

    contrast: Contrast = Contrast()
    pooling: Pooling = Mean()

    def weight(self, batch: Crops) -> float:
        return len(batch.tokens) / 2

    def tokens(self, batch: Crops) -> int:
        return batch.tokens.numel()

    def loss(self, network: nn.Module, batch: Crops, *, normaliser: float) -> tuple[Tensor, Metrics]:
        positions = torch.arange(batch.tokens.shape[1]).repeat(len(batch.tokens), 1)
        hidden = network(batch.tokens, Context(positions, batch.segments))
        first, second = self.pooling(hidden, batch.segments >= 0).chunk(2)
        return contrastive(first, second, contrast=self.contrast, normaliser=normaliser)
