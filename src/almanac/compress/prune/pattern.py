"""Which weights compete with which to be kept: all of a map, those of one output's row, or every few neighbours of a row.

A pattern turns scores into a mask. The count of what it keeps follows from the shape alone, so that a stored weight's size is
known before its values are; of equal scores the earlier one stays.

Legend: scores float [out, in]; mask bool [out, in], True is kept.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Pattern(Value):
    """What is kept of scores [out, in]."""

    @abstractmethod
    def groups(self, scores: Tensor) -> Tensor:
        """The scores as [groups, members]: members compete with each other only. Raises UnsupportedError if unfit."""

    @abstractmethod
    def keep(self, members: int) -> int:
        """How many of a group's members are kept."""

    def mask(self, scores: Tensor) -> Tensor:
        """True for the highest scores of every group. Raises ShapeError for scores that are not finite."""
        if not bool(torch.isfinite(scores).all()):
            raise ShapeError("Weights or inputs are not finite", remedy="Find the step that produced them.")
        grouped = self.groups(scores)
        order = grouped.argsort(dim=1, descending=True, stable=True)[:, : self.keep(grouped.shape[1])]
        return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, order, True).view(scores.shape)

    def masks(self, scores: Tensor) -> Tensor:
        """`mask` of a matrix, or of each of many [experts, out, in]."""
        return self.mask(scores) if scores.dim() == 2 else torch.stack([self.mask(matrix) for matrix in scores])

    def kept(self, rows: int, width: int) -> int:
        """How many of a weight [rows, width] are kept."""
        groups = self.groups(torch.empty(rows, width, device="meta"))
        return groups.shape[0] * self.keep(groups.shape[1])

    def step(self, block: int) -> int:
        """How many columns are decided at a time by what goes through a weight in blocks of columns."""
        return block


@dataclass(frozen=True, kw_only=True)
class PerRow(Pattern):
    """The given share of every row (output) is removed."""

    sparsity: float = 0.5

    def __post_init__(self) -> None:
        _require_share(self.sparsity)

    def groups(self, scores: Tensor) -> Tensor:
        return scores

    def keep(self, members: int) -> int:
        return members - int(members * self.sparsity)


@dataclass(frozen=True, kw_only=True)
class PerLayer(Pattern):
    """The given share of a whole map is removed, wherever it falls."""

    sparsity: float = 0.5

    def __post_init__(self) -> None:
        _require_share(self.sparsity)

    def groups(self, scores: Tensor) -> Tensor:
        return scores.reshape(1, -1)

    def keep(self, members: int) -> int:
        return members - int(members * self.sparsity)


@dataclass(frozen=True, kw_only=True)
class Semi(Pattern):
    """``kept_of`` of every ``run`` neighbours of a row stay: 2:4 by default (Mishra 2021, arXiv 2104.08378)."""

    kept_of: int = 2
    run: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.kept_of <= self.run:
            raise UnsupportedError(f"{self.kept_of} of {self.run}", remedy="Keep at least one, and at most all.")

    def groups(self, scores: Tensor) -> Tensor:
        if scores.shape[1] % self.run:
            raise UnsupportedError(
                f"Rows of {scores.shape[1]} weights do not divide into runs of {self.run}",
                remedy="Choose a run that divides them, or another pattern.",
            )
        return scores.reshape(-1, self.run)

    def keep(self, members: int) -> int:
        return self.kept_of

    def step(self, block: int) -> int:
        return self.run


def _require_share(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise UnsupportedError(f"A sparsity of {sparsity}", remedy="Give a number from 0 to below 1.")
