"""Many maps as one leaf: the grouped product is that of the dense loop, whatever computes it and however weights are held."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.compress.prune.pattern import PerRow
from almanac.compress.quantize import blocks, int8, ternary
from almanac.compress.quantize.round_to_nearest import Grid
from almanac.compress.quantize.round_to_nearest import store as rounded
from almanac.core.errors import ShapeError
from almanac.core.technique import initialise
from almanac.core.weight import StoredWeight
from almanac.files.gguf.formats import format_named
from almanac.nn.channel.moe import grouped
from almanac.nn.channel.moe.clamped import clamped_swiglu
from almanac.nn.channel.moe.experts import DenseExperts, Experts, GatedExperts, inward, outward
from almanac.nn.stored import kernels
from almanac.nn.stored.masked import MaskedWeight

EXPERTS, OUT, IN = 5, 24, 64
COUNTS = (3, 0, 17, 1, 0)

STORED: dict[str, Callable[[Tensor], StoredWeight]] = {
    "int8": int8.store,
    "Q4_1": lambda weight: blocks.store(weight, format_named("Q4_1")),
    "Q8_0": lambda weight: blocks.store(weight, format_named("Q8_0")),
    "grouped": lambda weight: rounded(weight, Grid(bits=3, group_size=24)),
    "scaled": lambda weight: rounded(weight, Grid(), columns=torch.linspace(0.5, 2, IN).expand(EXPERTS, IN)),
    "masked": lambda weight: MaskedWeight.pack(weight, PerRow().masks(weight.abs())),
    "ternary": ternary.store,
}


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ends_of(counts: tuple[int, ...] = COUNTS) -> Tensor:
    return torch.tensor(counts).cumsum(0)


def loop(x: Tensor, weight: Tensor, counts: tuple[int, ...] = COUNTS) -> Tensor:
    """One product per expert, as anyone would write it."""
    return torch.cat([part @ matrix.T for part, matrix in zip(x.split(counts), weight, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [64, 33])
@pytest.mark.parametrize("counts", [COUNTS, (0, 0, 0, 0, 0), (0, 0, 0, 0, 1), (4, 4, 4, 4, 4)])
def test_the_product_and_its_gradients_are_the_loops(dtype: torch.dtype, width: int, counts: tuple[int, ...]) -> None:
    x, weight = drawn(sum(counts), width, dtype=dtype), drawn(EXPERTS, OUT, width, seed=1, dtype=dtype)
    upstream = drawn(sum(counts), OUT, seed=2, dtype=dtype)
    ends = ends_of(counts)
    results = []
    for product in (
        grouped.grouped_product,
        grouped.reference,
        grouped._product,
        lambda x, w, ends: loop(x, w, counts),
    ):
        given = (x.clone().requires_grad_(), weight.clone().requires_grad_())
        y = product(*given, ends)
        assert y.dtype == dtype
        results.append((y, *torch.autograd.grad(y, given, upstream, materialize_grads=True)))
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.2}[dtype]
    for other in results[:-1]:
        for got, want in zip(other, results[-1], strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=tolerance)


def test_the_product_compiles_as_one_graph_with_its_gradients() -> None:
    torch._dynamo.reset()
    x, weight, ends = drawn(sum(COUNTS), IN), drawn(EXPERTS, OUT, IN, seed=1), ends_of()
    compiled = torch.compile(grouped.grouped_product, backend="aot_eager", fullgraph=True)
    results = []
    for product in (compiled, grouped.grouped_product):
        given = (x.clone().requires_grad_(), weight.clone().requires_grad_())
        y = product(*given, ends)
        results.append((y, *torch.autograd.grad(y.square().sum(), given)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_rows_are_sorted_stably_and_told_apart() -> None:
    groups = torch.tensor([2, 0, 2, 4, 0, 2])
    order, ends = grouped.sorted_by_group(groups, EXPERTS)
    assert order.tolist() == [1, 4, 0, 2, 5, 3]
    assert ends.tolist() == [2, 2, 5, 5, 6]
    assert grouped.groups_of(ends, 8).tolist() == [0, 0, 2, 2, 2, 4, EXPERTS, EXPERTS]


def test_bias_is_that_of_each_rows_expert() -> None:
    leaf = initialise(Experts.Spec(num_experts=EXPERTS, in_features=IN, out_features=OUT, bias=True).build(), seed=0)
    assert isinstance(leaf, Experts)
    assert leaf.bias is not None
    with torch.no_grad():
        leaf.bias.copy_(drawn(EXPERTS, OUT, seed=3))
        x = drawn(sum(COUNTS), IN)
        rows = torch.arange(EXPERTS).repeat_interleave(torch.tensor(COUNTS))
        expected = loop(x, leaf.dense_weight()) + leaf.bias[rows]
        torch.testing.assert_close(leaf(x, ends_of()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("compiled", [True, False])
def test_stored_weights_give_the_product_of_what_they_stand_for(kind: str, compiled: bool) -> None:
    stored = STORED[kind](drawn(EXPERTS, OUT, IN))
    assert stored.shape == (EXPERTS, OUT, IN)
    dense = stored.dense()
    for index in range(EXPERTS):
        assert torch.equal(stored.expert(index), dense[index])
    x, ends = drawn(sum(COUNTS), IN, seed=5), ends_of()
    if compiled and kernels.available():
        y = stored.grouped(x, ends)
    else:
        with kernels.disabled():
            y = stored.grouped(x, ends)
    torch.testing.assert_close(y, loop(x, dense), rtol=0, atol=1e-4)
    given, same = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = drawn(sum(COUNTS), OUT, seed=6)
    (got,) = torch.autograd.grad(stored.apply_grouped(given, ends), given, upstream)
    (want,) = torch.autograd.grad(loop(same, dense), same, upstream)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", STORED)
def test_each_expert_is_stored_as_it_would_be_alone(kind: str) -> None:
    """No scale, mean or count is shared between experts."""
    weight = drawn(EXPERTS, OUT, IN) * torch.logspace(-2, 2, EXPERTS)[:, None, None]
    together = STORED[kind](weight).dense()
    if kind == "scaled":
        alone = [rounded(matrix, Grid(), columns=torch.linspace(0.5, 2, IN)).dense() for matrix in weight]
    else:
        alone = [STORED[kind](matrix).dense() for matrix in weight]
    assert torch.equal(together, torch.stack(alone))


def test_gated_and_dense_experts_are_their_formulas() -> None:
    into, back = inward(EXPERTS, 16, 32), outward(EXPERTS, 16, 32)
    x, ends = drawn(sum(COUNTS), 16), ends_of()
    for spec in (GatedExperts.Spec(gate=into, up=into, down=back), DenseExperts.Spec(up=into, down=back)):
        bank = initialise(spec.build(), seed=1)
        parts = []
        with torch.no_grad():
            for index, rows in enumerate(x.split(COUNTS)):
                up = rows @ bank.up.dense_weight()[index].T
                if isinstance(bank, GatedExperts):
                    inner = F.silu(rows @ bank.gate.dense_weight()[index].T) * up
                else:
                    inner = F.gelu(up)
                parts.append(inner @ bank.down.dense_weight()[index].T)
            torch.testing.assert_close(bank(x, ends), torch.cat(parts), rtol=0, atol=1e-6)


def test_the_clamp_binds_on_both_sides_and_the_linear_half_is_shifted() -> None:
    gate, up = torch.tensor([9.0, -9.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 9.0, -9.0])
    got = clamped_swiglu(gate, up, alpha=1.702, limit=7.0)
    sigmoid = torch.sigmoid(torch.tensor([7.0, -9.0, 1.0, 1.0]) * 1.702)
    torch.testing.assert_close(got, torch.tensor([7.0, -9.0, 8.0, -6.0]) * sigmoid)


def test_impossible_experts_are_refused() -> None:
    with pytest.raises(ShapeError):
        Experts.Spec(num_experts=0, in_features=4, out_features=4)
    with pytest.raises(ShapeError):
        GatedExperts.Spec(gate=inward(2, 4, 4), up=inward(3, 4, 4), down=outward(2, 4, 4))
    with pytest.raises(ShapeError):
        int8.RowwiseInt8(torch.zeros(2, 3, 4, dtype=torch.uint8), shape=(2, 3, 4))
