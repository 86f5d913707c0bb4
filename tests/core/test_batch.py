"""Batches: padding on the right, masks aligned to the token that is scored."""

from __future__ import annotations

import pytest
import torch

from almanac.core.batch import Tokens, pad_rows
from almanac.core.errors import ShapeError


def test_rows_are_padded_to_the_longest() -> None:
    batch = pad_rows([[5, 6, 7], [8]], [[True, False, True], [True]], pad_id=9)
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.loss_mask.tolist() == [[False, False, True], [False, False, False]]  # nothing predicts the first
    assert batch.positions.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.segments.tolist() == [[0, 0, 0], [0, -1, -1]]
    assert batch.num_targets == 1
    assert {item.dtype for item in (batch.tokens, batch.positions, batch.segments)} == {torch.int64}


def test_padding_that_looks_like_a_token_is_still_padding() -> None:
    batch = pad_rows([[1, 1], [1]], [[True, True], [True]], pad_id=1)
    assert batch.segments.tolist() == [[0, 0], [0, -1]]
    assert batch.loss_mask.tolist() == [[False, True], [False, False]]


def test_a_batch_of_unequal_shapes_is_refused() -> None:
    good = pad_rows([[1, 2]], [[True, True]], pad_id=0)
    with pytest.raises(ShapeError):
        Tokens(good.tokens, good.loss_mask[:, :1], good.positions, good.segments)
    with pytest.raises(ShapeError):
        Tokens(*(item[0] for item in (good.tokens, good.loss_mask, good.positions, good.segments)))


def test_moving_keeps_everything() -> None:
    moved = pad_rows([[1, 2]], [[True, True]], pad_id=0).to("meta")
    assert all(item.is_meta for item in (moved.tokens, moved.loss_mask, moved.positions, moved.segments))
