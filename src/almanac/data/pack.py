"""Packing: several examples behind one another in one row, so that little of a batch is padding.

A packed example must learn exactly what it would alone (Krell 2021, arXiv 2107.02027): positions start again at 0 and
tokens see only their own segment, which a network does with ``Context(positions, segments)``. The first token of an
example is never a target, since what stands before it is another example.

Rows are filled best fit decreasing: the longest examples first, each into the fullest row that still has room.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from almanac.core.batch import Tokens
from almanac.core.errors import ShapeError


def pack_rows(rows: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]], *, width: int, pad_id: int) -> Tokens:
    """Tokens [as few rows as found, width] holding every example once; segments count from 0 in each row.

    Raises ShapeError for an example that is longer than ``width``.
    """
    bins = best_fit([len(row) for row in rows], width)
    tokens = torch.full((len(bins), width), pad_id, dtype=torch.int64)
    loss_mask = torch.zeros(len(bins), width, dtype=torch.bool)
    positions = torch.zeros(len(bins), width, dtype=torch.int64)
    segments = torch.full((len(bins), width), -1, dtype=torch.int64)
    for index, examples in enumerate(bins):
        start = 0
        for segment, example in enumerate(examples):
            end = start + len(rows[example])
            tokens[index, start:end] = torch.tensor(rows[example], dtype=torch.int64)
            loss_mask[index, start:end] = torch.tensor(masks[example], dtype=torch.bool)
            loss_mask[index, start] = False
            positions[index, start:end] = torch.arange(end - start)
            segments[index, start:end] = segment
            start = end
        positions[index, start:] = torch.arange(width - start)
    return Tokens(tokens, loss_mask, positions, segments)


def best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which examples share a row: lists of indices whose lengths sum to at most ``width``."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if lengths[index] > width:
            raise ShapeError(
                f"An example of {lengths[index]} tokens in rows of {width}", remedy="Cut it, or make the rows wider."
            )
        fitting = [place for place, left in enumerate(room) if left >= lengths[index]]
        if fitting:
            place = min(fitting, key=lambda place: room[place])
            bins[place].append(index)
            room[place] -= lengths[index]
        else:
            bins.append([index])
            room.append(width - lengths[index])
    return bins


def is_packed(batch: Tokens) -> bool:
    """Whether a row holds more than one segment, so that a network needs to be told which token sees which."""
    return bool((batch.segments > 0).any())


def take(batch: Tokens, start: int, *, count: int) -> Tokens:
    """``count`` rows of a batch from ``start`` on."""
    return Tokens(*(getattr(batch, field.name)[start : start + count] for field in dataclasses.fields(batch)))
