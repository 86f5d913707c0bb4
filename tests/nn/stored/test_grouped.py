"""Grouped integers: what is packed comes back, code by code, in exactly the bytes that the bits need."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.nn.stored.grouped import GroupedWeight


def packed(bits: int, group_size: int, *, rows: int = 5, width: int = 37, scaled: bool = False) -> GroupedWeight:
    codes, scale, zero, columns = parts(bits, group_size, rows=rows, width=width)
    return GroupedWeight.pack(codes, scale, zero, bits=bits, group_size=group_size, columns=columns if scaled else None)


def parts(bits: int, group_size: int, *, rows: int = 5, width: int = 37) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(bits * 1000 + width)
    groups = math.ceil(width / group_size)
    codes = torch.randint(0, 2**bits, (rows, width), generator=generator, dtype=torch.uint8)
    zero = torch.randint(0, 2**bits, (rows, groups), generator=generator, dtype=torch.uint8)
    return codes, torch.rand(rows, groups, generator=generator), zero, torch.rand(width, generator=generator) + 0.5


@given(
    bits=st.integers(2, 8),
    group_size=st.integers(1, 20),
    rows=st.integers(1, 4),
    width=st.integers(1, 40),
    scaled=st.booleans(),
)
def test_dense_is_the_formula(bits: int, group_size: int, rows: int, width: int, scaled: bool) -> None:
    codes, scale, zero, columns = parts(bits, group_size, rows=rows, width=width)
    stored = packed(bits, group_size, rows=rows, width=width, scaled=scaled)
    dense = stored.dense()
    assert dense.dtype == torch.float32
    for row in range(rows):
        for place in range(width):
            group = place // group_size
            expected = (codes[row, place].float() - zero[row, group].float()) * scale[row, group]
            expected = expected / columns[place] if scaled else expected
            assert float(dense[row, place]) == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    ids = torch.tensor([[0, rows - 1]])
    assert torch.equal(stored.embed(ids), dense[ids])


@pytest.mark.parametrize("bits", range(2, 9))
def test_bytes_are_those_of_the_bits(bits: int) -> None:
    stored = packed(bits, 16, rows=3, width=64)
    assert stored.nbytes == 3 * (bits * 64 // 8 + 4 * 5)
    assert packed(bits, 16, rows=3, width=64, scaled=True).nbytes == stored.nbytes + 4 * 64


def test_nothing_stored_looks_trainable() -> None:
    stored = packed(4, 8, scaled=True)
    assert all(item.dtype == torch.uint8 and not item.requires_grad for item in stored.parameters())
    x = torch.randn(3, 37, requires_grad=True)
    stored.apply_linear(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, stored.dense().sum(dim=0).expand(3, 37))


def test_codes_of_another_shape_are_refused() -> None:
    good = packed(4, 8, scaled=True)
    codes, columns = good.codes.detach(), good.columns.detach()
    for wrong in (codes[:, :-1], codes[:-1], codes.view(torch.int8)):
        with pytest.raises(ShapeError):
            GroupedWeight(wrong, shape=(5, 37), bits=4, group_size=8)
    with pytest.raises(ShapeError):
        GroupedWeight(codes, shape=(5, 37), bits=5, group_size=8)
    with pytest.raises(ShapeError):
        GroupedWeight(codes, shape=(5, 37), bits=4, group_size=8, columns=columns[:-1])
