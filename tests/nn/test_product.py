"""Products within `wide` against torch's own, their gradients, and what must stay with torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from almanac.nn import product
from almanac.nn.embedding import Embedding
from almanac.nn.head import TiedHead
from almanac.nn.linear import Linear
from almanac.nn.product import available, linear, wide
from almanac.nn.stored.grouped import GroupedWeight

pytestmark = pytest.mark.skipif(not available(), reason="this build of torch has no oneDNN")
Given = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that went to oneDNN; every size is large enough to."""
    found: list[torch.Size] = []
    own = product._wide

    def told(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found.append(x.shape)
        return own(x, weight, bias)

    monkeypatch.setattr(product, "_wide", told)
    monkeypatch.setattr(product, "SMALLEST", 0)
    return found


def given(*, rows: tuple[int, ...] = (3, 20), inputs: int = 48, outputs: int = 32, seed: int = 0) -> Given:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*rows, inputs, generator=generator).requires_grad_()
    weight = torch.randn(outputs, inputs, generator=generator).requires_grad_()
    return x, weight, torch.randn(outputs, generator=generator).requires_grad_()


def gradients(function: Callable[..., Tensor], tensors: Given, upstream: Tensor) -> tuple[Tensor, ...]:
    y = function(*tensors)
    return y.detach(), *torch.autograd.grad(y, tensors, upstream)


def require_equal(tensors: Given, upstream: Tensor) -> None:
    with wide():
        ours = gradients(linear, tensors, upstream)
    for got, wanted in zip(ours, gradients(F.linear, tensors, upstream), strict=True):
        assert got.shape == wanted.shape and got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rows", [(1,), (7,), (3, 20), (2, 3, 5)])
def test_values_and_gradients_are_torchs(rows: tuple[int, ...], calls: list[torch.Size]) -> None:
    require_equal(given(rows=rows), torch.randn(*rows, 32, generator=torch.Generator().manual_seed(1)))
    assert len(calls) == 3  # the product and both of its gradients


def test_layouts_that_are_not_contiguous(calls: list[torch.Size]) -> None:
    x, weight, bias = given()
    turned = (
        x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        weight.detach().t().contiguous().t().requires_grad_(),
        bias.detach().repeat_interleave(2)[::2].requires_grad_(),
    )
    require_equal(turned, torch.ones(()).expand(3, 20, 32))  # as sum() sends back
    wider = torch.randn(3, 20, 96)[..., ::2].requires_grad_()
    require_equal((wider, weight, bias), torch.randn(20, 3, 32).transpose(0, 1))
    require_equal((x.detach()[:1].expand(3, 20, 48).requires_grad_(), weight, bias), torch.randn(3, 20, 32))
    assert len(calls) == 9  # all three layouts went to oneDNN, forward and backward


def test_only_the_gradients_that_are_asked_for_are_computed_and_kept(calls: list[torch.Size]) -> None:
    x, weight, bias = (tensor.detach() for tensor in given())
    cases = {"x": (x.clone().requires_grad_(), weight, bias), "weight": (x, weight.clone().requires_grad_(), bias)}
    for name, tensors in cases.items():
        calls.clear()
        with wide():
            y = linear(*tensors)
        kept = [tensor for tensor in y.grad_fn.saved_tensors if tensor is not None]  # type: ignore[union-attr]
        assert [tensor.shape for tensor in kept] == [weight.shape if name == "x" else x.shape]
        y.sum().backward()
        assert len(calls) == 2
    with wide():
        assert not linear(x, weight, None).requires_grad


@pytest.mark.usefixtures("calls")
def test_a_gradient_can_be_differentiated() -> None:
    """Second derivatives of a cube of the product, which go through the gradient's own graph."""
    found = []
    for surroundings in (wide(), contextlib.nullcontext()):
        x, weight, bias = given()
        with surroundings:
            first = torch.autograd.grad(linear(x, weight, bias).pow(3).mean(), (x, weight, bias), create_graph=True)
            penalty = sum(part.square().sum() for part in first)
            assert isinstance(penalty, Tensor)
            found.append(torch.autograd.grad(penalty, (x, weight, bias)))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.usefixtures("calls")
def test_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas of the gradients in float64, which oneDNN does not compute: there with torch's product instead."""
    monkeypatch.setattr(product, "_wide", F.linear)
    tensors = tuple(tensor.detach().double().requires_grad_() for tensor in given(inputs=5, outputs=4))
    assert torch.autograd.gradcheck(product._Product.apply, tensors)
    assert torch.autograd.gradgradcheck(product._Product.apply, tensors)


@pytest.mark.usefixtures("calls")
def test_a_weight_used_twice_gets_both_gradients() -> None:
    x, weight, bias = given(inputs=32)
    with wide():
        ours = gradients(
            lambda x, w, b: linear(linear(x, w, b).tanh(), w, None), (x, weight, bias), torch.ones(3, 20, 32)
        )
    wanted = gradients(lambda x, w, b: F.linear(F.linear(x, w, b).tanh(), w), (x, weight, bias), torch.ones(3, 20, 32))
    for got, expected in zip(ours, wanted, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def mixed() -> Iterator[tuple[str, Callable[[], Tensor]]]:
    x, weight, bias = given()
    yield "float64", lambda: linear(x.double(), weight.double(), None)
    yield "bfloat16", lambda: linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    yield "a vector", lambda: linear(x[0, 0], weight, bias)
    yield "no rows", lambda: linear(x[:0], weight, bias)
    yield "a subclass", lambda: linear(x.as_subclass(Named), weight, bias)
    yield "torch.func", lambda: torch.func.vmap(lambda row: linear(row, weight, bias))(x)


class Named(Tensor):
    """Any tensor that is more than one."""


@pytest.mark.parametrize("case", [name for name, _ in mixed()])
def test_what_is_left_to_torch(case: str, calls: list[torch.Size]) -> None:
    computed = dict(mixed())[case]
    with wide():
        found = computed()
    assert not calls and found.requires_grad
    torch.testing.assert_close(found, computed(), atol=0, rtol=0)


def test_autocast_keeps_its_16_bits(calls: list[torch.Size]) -> None:
    x, weight, bias = given()
    for grad in (torch.enable_grad(), torch.no_grad()):
        with wide(), grad, torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight, bias).dtype == torch.bfloat16
    assert not calls


def test_mixed_dtypes_fail_as_they_do_without() -> None:
    x, weight, _ = given()
    with wide(), pytest.raises(RuntimeError, match="dtype"):
        linear(x, weight.double(), None)


def test_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch, calls: list[torch.Size]) -> None:
    x, weight, bias = given()
    for smallest, used in ((x.numel() * len(weight) + 1, 0), (x.numel() * len(weight), 1)):
        monkeypatch.setattr(product, "SMALLEST", smallest)
        with wide():
            linear(x, weight, bias)
        assert len(calls) == used


def test_outside_and_after_the_block_nothing_is_chosen(calls: list[torch.Size]) -> None:
    tensors = given()
    with wide(), wide():
        pass
    linear(*tensors)
    assert not calls
    with wide():
        with wide():
            pass
        linear(*tensors)
    assert len(calls) == 1


@pytest.mark.usefixtures("calls")
def test_checkpointing_gives_the_same_gradients_bit_for_bit() -> None:
    found = []
    for kept in (True, False):
        tensors = given(inputs=32)
        with wide():

            def twice(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return linear(linear(x, weight, bias).tanh(), weight, bias)

            y = twice(*tensors) if kept else torch.utils.checkpoint.checkpoint(twice, *tensors, use_reentrant=False)
            found.append(torch.autograd.grad(y.square().sum(), tensors))
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))


@pytest.mark.usefixtures("calls")
def test_compiled_code_keeps_torchs_product(calls: list[torch.Size]) -> None:
    tensors = given()
    compiled = torch.compile(lambda x, w, b: linear(x, w, b).relu(), backend="eager", fullgraph=True)
    with wide():
        y = compiled(*tensors)
    assert not calls
    torch.testing.assert_close(y, F.linear(*tensors).relu(), atol=0, rtol=0)


def test_leaves_and_tied_heads_take_it_and_stored_weights_do_not(calls: list[torch.Size]) -> None:
    leaf = Linear.Spec(in_features=64, out_features=64, bias=True).build()
    embed, head = Embedding.Spec(vocab_size=96, hidden=64).build(), TiedHead.Spec().build()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    for module in (leaf, embed):
        module.initialise(torch.Generator().manual_seed(3))
    with wide():
        torch.testing.assert_close(leaf(x), F.linear(x, leaf.weight, leaf.bias), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(head(x, embed), F.linear(x, embed.weight), atol=1e-5, rtol=1e-5)
    assert len(calls) == 2
    codes = torch.randint(0, 256, (64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    scale, zero = torch.full((64, 2), 0.01), torch.full((64, 2), 128)
    leaf.set_weight(GroupedWeight.pack(codes, scale, zero, bits=8, group_size=32))
    calls.clear()
    without = leaf(x)
    with wide():
        torch.testing.assert_close(leaf(x), without, atol=0, rtol=0)
    assert not calls
