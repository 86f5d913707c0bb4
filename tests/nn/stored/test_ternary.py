"""Base-3 packing: every byte, every width, and nothing but three digits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import ShapeError
from almanac.nn.stored.ternary import SCALE_BYTES, TernaryWeight, row_bytes


def digits(out: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (out, width), generator=generator, dtype=torch.int8)


@given(out=st.integers(1, 7), width=st.integers(1, 40), seed=st.integers(0, 9))
def test_decoding_what_was_packed(out: int, width: int, seed: int) -> None:
    wanted, scale = digits(out, width, seed), torch.rand(out, generator=torch.Generator().manual_seed(seed)) + 0.1
    stored = TernaryWeight.pack(wanted, scale)
    assert torch.equal(stored.digits(), wanted)
    assert torch.equal(stored.dense(), wanted.float() * scale[:, None])
    assert stored.nbytes == out * (SCALE_BYTES + -(-width // 5)) == out * row_bytes(width)
    ids = torch.arange(out).flip(0).view(1, -1)
    assert torch.equal(stored.embed(ids), stored.dense()[ids])


def test_a_byte_is_written_little_end_first() -> None:
    stored = TernaryWeight.pack(torch.tensor([[1, 0, -1, -1, 1]], dtype=torch.int8), torch.ones(1))
    assert int(stored.codes[0, SCALE_BYTES]) == 2 * 1 + 1 * 3 + 0 * 9 + 0 * 27 + 2 * 81


def test_all_243_bytes_are_different() -> None:
    every = torch.cartesian_prod(*[torch.arange(-1, 2, dtype=torch.int8)] * 5)
    stored = TernaryWeight.pack(every, torch.ones(243))
    assert len(stored.codes[:, SCALE_BYTES].unique()) == 243
    assert torch.equal(stored.digits(), every)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_and_gradients_are_the_dense_ones(dtype: torch.dtype) -> None:
    stored = TernaryWeight.pack(digits(6, 13), torch.full((6,), 0.25))
    x = torch.randn(3, 13, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    y = stored.apply_linear(x)
    assert y.dtype == dtype
    assert torch.equal(y, F.linear(x, stored.dense().to(dtype)))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, stored.dense().to(dtype).sum(0).expand(3, 13))
    assert all(not parameter.requires_grad for parameter in stored.parameters())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="outside"):
        TernaryWeight.pack(torch.tensor([[2]], dtype=torch.int8), torch.ones(1))
    codes = TernaryWeight.pack(digits(2, 6), torch.ones(2)).codes
    with pytest.raises(ShapeError, match="different models"):
        TernaryWeight(codes, shape=(2, 11))
    with pytest.raises(ShapeError, match="different models"):
        TernaryWeight(codes.to(torch.int8), shape=(2, 6))
