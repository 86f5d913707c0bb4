"""The contract of every stored weight: whatever path computes it, the product is that of ``dense()``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from almanac.compress.quantize import blocks, int8
from almanac.core.errors import AlmanacError, ShapeError
from almanac.core.weight import StoredWeight
from almanac.files.gguf.formats import FORMATS
from almanac.nn.linear import Linear
from almanac.nn.stored import kernels
from almanac.nn.stored.blocks import BlockWeight
from almanac.nn.stored.rowwise import RowwiseInt8

OUT, IN = 37, 256  # a ragged last tile of rows; one block of the largest kind
ROWS = 70

KINDS: dict[str, Callable[[Tensor], StoredWeight]] = {"int8": int8.store} | {
    entry.name: lambda weight, entry=entry: blocks.store(weight, entry) for entry in FORMATS.values()
}
every_kind = pytest.mark.parametrize("kind", KINDS)
needs_kernels = pytest.mark.skipif(not kernels.available(), reason="no C compiler on this machine: nothing to compare")


def dense(out: int = OUT, width: int = IN) -> Tensor:
    """A weight with rows of very different sizes, one of them zero."""
    generator = torch.Generator().manual_seed(out * 1000 + width)
    weight = torch.randn(out, width, generator=generator) * torch.logspace(-3, 1, out)[:, None]
    weight[out // 2] = 0
    return weight


def activations(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_product(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """y = x Wᵀ up to float32 rounding of sums of this length, judged in float64."""
    exact = F.linear(x.double(), weight.double())
    size = F.linear(x.double().abs(), weight.double().abs())
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= 1e-5 * size + 1e-30).all())


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@needs_kernels
@every_kind
def test_kernels_expand_to_the_same_bits_as_torch(kind: str) -> None:
    stored = KINDS[kind](dense())
    fast = stored.dense()
    with kernels.disabled():
        assert not kernels.available()
        slow = stored.dense()
    assert fast.dtype == torch.float32
    assert torch.equal(fast, slow)
    assert torch.equal(slow[OUT // 2], torch.zeros(IN))


@every_kind
def test_dense_is_close_to_what_was_stored(kind: str) -> None:
    weight = dense()
    error = (KINDS[kind](weight).dense() - weight).abs().amax(dim=1)
    largest = weight.abs().amax(dim=1)
    bits = {"int8": 8, "F32": 24, "F16": 11, "BF16": 8}.get(kind) or int(kind[1])
    assert bool((error <= largest * 2.0 ** (1 - bits)).all())


@every_kind
@pytest.mark.parametrize("compiled", [True, False])
def test_product_for_every_number_of_rows(kind: str, compiled: bool) -> None:
    stored = KINDS[kind](dense())
    weight = stored.dense()
    with nullcontext() if compiled else kernels.disabled():
        for rows in range(ROWS + 1):
            x = activations(rows, IN)
            assert_product(stored.linear(x), x, weight)


@needs_kernels
@every_kind
def test_a_row_has_the_same_bits_alone_and_in_company(kind: str) -> None:
    stored = KINDS[kind](dense())
    x = activations(ROWS, IN)
    alone = torch.cat([stored.linear(row[None]) for row in x])
    for rows in (2, 3, 16, 47, 48, 49, ROWS):
        assert torch.equal(stored.linear(x[:rows]), alone[:rows])
    assert torch.equal(stored.linear(x[5:12].flip(0)), alone[5:12].flip(0))
    assert torch.equal(stored.linear(x[:12].view(2, 3, 2, IN)).view(12, OUT), alone[:12])
    with threads(2):
        assert torch.equal(stored.linear(x), alone)


@every_kind
@pytest.mark.parametrize("compiled", [True, False])
def test_shapes_and_layouts(kind: str, compiled: bool) -> None:
    stored = KINDS[kind](dense())
    weight = stored.dense()
    with nullcontext() if compiled else kernels.disabled():
        for x in (
            activations(IN),
            activations(2, 3, 5, IN),
            activations(IN, 4).T,
            activations(4, 2 * IN)[:, ::2],
            activations(1, IN).expand(3, IN),
            activations(2, 0, IN),
        ):
            assert_product(stored.linear(x), x, weight)


@every_kind
def test_codes_need_not_be_contiguous(kind: str) -> None:
    stored = KINDS[kind](dense())
    codes = dict(stored.named_parameters())["codes"]
    wide = torch.zeros(OUT, codes.shape[1] + 3, dtype=torch.uint8)
    wide[:, : codes.shape[1]] = codes
    x = activations(3, IN)
    expected = stored.linear(x)
    stored.store("codes", wide[:, : codes.shape[1]])
    assert torch.equal(stored.linear(x), expected)
    assert torch.equal(stored.dense(), KINDS[kind](dense()).dense())


@given(out=st.integers(1, 9), width=st.integers(1, 50), rows=st.integers(0, 60), compiled=st.booleans())
def test_int8_of_any_size(out: int, width: int, rows: int, compiled: bool) -> None:
    stored = int8.store(dense(out, width))
    x = activations(rows, width)
    with nullcontext() if compiled else kernels.disabled():
        assert_product(stored.linear(x), x, stored.dense())
        ids = torch.arange(out).flip(0)
        assert torch.equal(stored.embed(ids), stored.dense()[ids])


@every_kind
@pytest.mark.parametrize("out", [1, 2, 3, 4, 5, 8])
def test_blocks_with_few_outputs(kind: str, out: int) -> None:
    stored = KINDS[kind](dense(out, 512))
    for rows in (1, 2, 5):
        x = activations(rows, 512)
        assert_product(stored.linear(x), x, stored.dense())


@every_kind
def test_embedding_rows_are_those_of_dense(kind: str) -> None:
    stored = KINDS[kind](dense())
    ids = torch.tensor([[0, OUT - 1, 5], [5, 5, OUT // 2]])
    assert torch.equal(stored.embed(ids), stored.dense()[ids])
    assert stored.embed(ids[:0]).shape == (0, 3, IN)


@every_kind
@pytest.mark.parametrize("rows", [1, 3, 60])
def test_the_gradient_to_x_is_the_dense_one(kind: str, rows: int) -> None:
    stored = KINDS[kind](dense())
    x = activations(rows, IN).requires_grad_()
    up = activations(rows, OUT, seed=2)
    y = stored.apply_linear(x)
    (got,) = torch.autograd.grad(y, x, up)
    assert_product(got, up, stored.dense().T)
    assert torch.equal(y, stored.linear(x.detach()))
    with torch.no_grad():
        assert torch.equal(stored.apply_linear(x), y)
    assert all(not parameter.requires_grad for parameter in stored.parameters())


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_go_through_dense(kind: str, dtype: torch.dtype) -> None:
    stored = KINDS[kind](dense())
    x = activations(3, IN).to(dtype).requires_grad_()
    y = stored.apply_linear(x)
    assert y.dtype == dtype
    assert torch.equal(y, F.linear(x, stored.dense().to(dtype)))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@every_kind
def test_bytes_are_counted(kind: str) -> None:
    bits = {"int8": 8 + 32 / IN, "F32": 32, "F16": 16, "BF16": 16, "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6}
    bits |= {"Q8_0": 8.5, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}
    assert KINDS[kind](dense()).nbytes == OUT * IN * bits[kind] / 8


@every_kind
def test_a_leaf_takes_only_a_weight_of_its_shape(kind: str) -> None:
    leaf = Linear.Spec(in_features=IN, out_features=OUT, bias=True).build()
    before = leaf.weight
    with pytest.raises(ShapeError):
        leaf.set_weight(KINDS[kind](dense(OUT + 1)))
    assert leaf.weight is before
    stored = KINDS[kind](dense())
    leaf.set_weight(stored)
    with torch.no_grad():
        leaf.bias.fill_(2.0)
        x = activations(3, IN)
        assert torch.equal(leaf(x), stored.linear(x) + 2.0)
    with pytest.raises(AlmanacError):
        leaf.initialise()
    leaf.set_weight(stored.dense())
    assert [name for name, _ in leaf.named_parameters()] == ["bias", "weight"]


@every_kind
def test_damaged_weights_are_not_rounded_away(kind: str) -> None:
    if kind in ("F32", "F16", "BF16"):
        return  # these hold what is not finite
    for bad in (float("nan"), float("inf")):
        weight = dense()
        weight[3, 7] = bad
        with pytest.raises(AlmanacError):
            KINDS[kind](weight)


def test_codes_of_the_wrong_kind_are_refused() -> None:
    good = KINDS["Q4_1"](dense())
    codes = dict(good.named_parameters())["codes"].detach()
    entry = next(entry for entry in FORMATS.values() if entry.name == "Q4_1")
    for wrong in (codes[:, :-1], codes[:-1], codes.float(), codes.view(torch.int8)):
        with pytest.raises(ShapeError):
            BlockWeight(wrong, format=entry, shape=(OUT, IN))
    with pytest.raises(ShapeError):
        BlockWeight(codes, format=entry, shape=(OUT, IN + 1))
    rows = dict(KINDS["int8"](dense()).named_parameters())["codes"].detach()
    for wrong in (rows[:, 1:], rows[1:], rows.view(torch.int8)):
        with pytest.raises(ShapeError):
            RowwiseInt8(wrong, shape=(OUT, IN))


def test_int8_keeps_its_bound() -> None:
    """|W - scale · code| <= scale / 2, with scale = max |W| / 127, and the largest of a row exactly 127."""
    weight = dense()
    codes, scale = int8.quantize(weight)
    assert torch.equal(scale, weight.abs().amax(dim=1) / 127)
    assert bool(((weight - scale[:, None] * codes).abs() <= scale[:, None] / 2 * (1 + 1e-5)).all())
    assert set(codes.abs().amax(dim=1).tolist()) == {0, 127}


@needs_kernels
def test_an_unknown_format_number_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match=r"blocks\.c"):
        kernels.linear(activations(1, 32), torch.zeros(1, 32, dtype=torch.uint8), 32, 999)


def test_without_a_compiler_torch_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    kernels._library.cache_clear()
    try:
        assert not kernels.available()
        stored = KINDS["Q4_1"](dense())
        x = activations(3, IN)
        assert torch.equal(stored.linear(x), F.linear(x, stored.dense()))
    finally:
        kernels._library.cache_clear()
