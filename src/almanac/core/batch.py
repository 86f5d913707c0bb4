"""Typed batches: shapes are documented here once, and objectives take nothing else.

Legend: b rows, t tokens of a row. Masks are aligned to the token they *score*, not shifted: ``loss_mask[b, t]`` says
whether predicting ``tokens[b, t]`` from the tokens before it counts.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from almanac.core.errors import ShapeError


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Rows of tokens for next-token prediction.

    - ``tokens`` int64 [b, t]
    - ``loss_mask`` bool [b, t]: this token is a target; column 0 never is
    - ``positions`` int64 [b, t]: position within its own sequence
    - ``segments`` int64 [b, t]: which packed sequence; -1 is padding
    """

    tokens: Tensor
    loss_mask: Tensor
    positions: Tensor
    segments: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(item.shape) for item in (self.tokens, self.loss_mask, self.positions, self.segments)}
        if len(shapes) != 1 or self.tokens.dim() != 2:
            raise ShapeError(f"A Tokens batch with shapes {sorted(shapes)}", remedy="All four must be [rows, time].")

    @property
    def num_targets(self) -> int:
        """How many tokens the loss counts."""
        return int(self.loss_mask.sum())

    def to(self, device: torch.device | str) -> Tokens:
        """The batch on another device."""
        return Tokens(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Preference:
    """Pairs of answers to one prompt each, for preference tuning.

    - ``rows``: 2n rows, the n preferred answers and then, in the same order, the n rejected ones, each after its prompt;
      the targets are the answers
    - ``reference`` float [2n]: log-probability of each answer under the model that the policy began as
    """

    rows: Tokens
    reference: Tensor

    def __post_init__(self) -> None:
        count = self.rows.tokens.shape[0]
        if count % 2 or self.reference.shape != (count,):
            raise ShapeError(
                f"A Preference batch of {count} rows with a reference of shape {tuple(self.reference.shape)}",
                remedy="Give two rows for every pair and one number per row.",
            )

    @property
    def num_pairs(self) -> int:
        """How many pairs."""
        return self.rows.tokens.shape[0] // 2


def pad_rows(rows: list[list[int]], masks: list[list[bool]], *, pad_id: int) -> Tokens:
    """One row per sequence, padded on the right to the longest; padding is its own segment (-1) and never a target."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    loss_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    segments = torch.full((len(rows), width), -1, dtype=torch.int64)
    for index, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        tokens[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        loss_mask[index, : len(row)] = torch.tensor(mask, dtype=torch.bool)
        segments[index, : len(row)] = 0
    loss_mask[:, 0] = False
    positions = torch.arange(width).repeat(len(rows), 1)
    return Tokens(tokens, loss_mask, positions, segments)
