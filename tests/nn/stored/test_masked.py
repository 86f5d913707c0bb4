"""Masked weights: zeros stay zeros, what is kept is kept to the bit, and bytes are counted with the mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import ShapeError
from almanac.nn.stored.masked import MaskedWeight


@given(rows=st.integers(1, 6), width=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_what_is_kept_is_kept_and_nothing_else(rows: int, width: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    mask = torch.rand(rows, width, generator=generator) < share
    stored = MaskedWeight.pack(weight, mask)
    assert torch.equal(stored.dense(), weight * mask)
    assert torch.equal(stored.kept, mask)
    assert stored.nbytes == 4 * int(mask.sum()) + rows * -(-width // 8)
    empty = MaskedWeight.empty((rows, width), int(mask.sum()))
    assert {name: item.shape for name, item in empty.named_parameters()} == {
        name: item.shape for name, item in stored.named_parameters()
    }


def test_nothing_stored_looks_trainable() -> None:
    stored = MaskedWeight.pack(torch.randn(4, 9), torch.ones(4, 9, dtype=torch.bool))
    assert all(item.dtype == torch.uint8 and not item.requires_grad for item in stored.parameters())


def test_codes_of_another_shape_are_refused() -> None:
    good = MaskedWeight.pack(torch.randn(4, 9), torch.ones(4, 9, dtype=torch.bool))
    codes, mask = good.codes.detach(), good.mask.detach()
    for wrong in ((codes[:-1], mask), (codes, mask[:, :1]), (codes.view(torch.float32), mask), (codes, mask.int())):
        with pytest.raises(ShapeError):
            MaskedWeight(*wrong, shape=(4, 9))
