"""Shares of a step: the rows of a batch that one rank takes, so that no sample is lost or seen twice.

The order of samples is that of one process; only who computes them differs. Every rank takes part in every micro-batch, for
otherwise some would wait in a collective that others never reach: where there are fewer rows than ranks, the rest compute a
row that counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from almanac.core.batch import Tokens
from almanac.core.errors import UnsupportedError
from almanac.data.pack import is_packed
from almanac.data.windows import Share, WindowBatches
from almanac.train.parallel.context import part_of


class Shares:
    """The steps of ``whole`` with this rank's rows (``share``) and of these its tokens (``slices``)."""

    def __init__(self, whole: Any, share: Share, slices: Share) -> None:
        self.whole, self.share, self.slices = whole, share, slices
        if isinstance(whole, WindowBatches) and whole.share.ranks == 1:  # which reads no more than its share
            self.whole, self.share = _shared_windows(whole, share), Share()

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __next__(self) -> list[Any]:
        return [self._mine(batch) for batch in next(self.whole)]

    def state(self) -> dict[str, int]:
        """Where the run stands; the same for every rank."""
        return dict(self.whole.state())

    def load(self, state: dict[str, int]) -> None:
        """Goes to where ``state`` was taken."""
        self.whole.load(state)

    def digest(self) -> str:
        """Of all that decides what the steps hold, over all ranks."""
        return str(self.whole.digest())

    def _mine(self, batch: Any) -> Any:
        if self.share.ranks == self.slices.ranks == 1:
            return batch
        if not isinstance(batch, Tokens):
            raise UnsupportedError(
                f"A batch of {type(batch).__qualname__} cannot be shared by ranks",
                remedy="Train it on one process, or with the tensor and pipeline axes alone.",
            )
        packed = is_packed(batch)
        batch = rows_of(batch, self.share)
        return batch if self.slices.ranks == 1 else part_of(batch, self.slices.rank, self.slices.ranks, packed=packed)


def rows_of(batch: Tokens, share: Share) -> Tokens:
    """Rows ``rank``, ``rank + ranks``, ... of a batch; its first row without a target where there is none."""
    if share.ranks == 1:
        return batch
    rows = list(range(share.rank, batch.tokens.shape[0], share.ranks))
    if not rows:
        return Tokens(batch.tokens[:1], torch.zeros_like(batch.loss_mask[:1]), batch.positions[:1], batch.segments[:1])
    return Tokens(batch.tokens[rows], batch.loss_mask[rows], batch.positions[rows], batch.segments[rows])


def _shared_windows(whole: WindowBatches, share: Share) -> WindowBatches:
    shared = WindowBatches(
        whole.source,
        time=whole.time,
        rows=whole.rows,
        micro_rows=whole.micro_rows,
        steps=len(whole),
        seed=whole.seed,
        share=share,
    )
    shared.load(whole.state())
    return shared
