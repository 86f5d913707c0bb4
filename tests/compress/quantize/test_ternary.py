"""Ternary rounding against slow loops, training through it against the definition, folding and storing bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import toys
from torch import nn

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.compress.quantize.ternary import Ternary, quantize, scale_of, store
from almanac.compress.quantize.ternary_training import NAME, Rounded, TernaryTraining, straight_through
from almanac.core.errors import SelectionError, ShapeError, UnsupportedError
from almanac.core.site import select
from almanac.nn.linear import Linear
from almanac.nn.stored.ternary import TernaryWeight


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(model: nn.Module) -> dict[str, Linear]:
    return select(model, "layers.**", of=Linear)


def latents(model: nn.Module) -> dict[str, nn.Parameter]:
    found = {path: site.wrapper(NAME) for path, site in maps(model).items()}
    return {path: wrapper.latent for path, wrapper in found.items() if isinstance(wrapper, Rounded)}


def test_rounding_is_the_papers_by_a_slow_loop() -> None:
    weight = normal(7, 11) * torch.logspace(-2, 1, 7)[:, None]
    mean = sum(abs(value) for value in weight.flatten().tolist()) / weight.numel()
    digits, scale = quantize(weight)
    assert float(scale) == pytest.approx(mean, rel=1e-6)
    for got, value in zip(digits.flatten().tolist(), weight.flatten().tolist(), strict=True):
        assert got == max(-1, min(1, round(value / mean)))
    assert set(digits.unique().tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4])
def test_rounding_twice_is_rounding_once(size: float) -> None:
    once = store(normal(5, 13) * size).dense()
    assert torch.equal(store(once).dense(), once)
    assert len(once.abs().unique()) <= 2
    assert bool(torch.isfinite(once).all())


def test_a_matrix_of_one_magnitude_is_exact_and_a_gaussian_one_is_not() -> None:
    weight = torch.tensor([[0.3, -0.3, 0.0], [0.3, 0.3, 0.3]])
    assert torch.equal(store(weight).dense(), weight)
    gaussian = normal(200, 200)
    error = float((store(gaussian).dense() - gaussian).square().mean())
    level = (2 / math.pi) ** 0.5  # the mean magnitude; a weight rounds to it from half of it on
    beyond = math.erfc(level / 2 / 2**0.5) / 2
    density = math.exp(-(level**2) / 8) / (2 * math.pi) ** 0.5
    assert error == pytest.approx(1 - 4 * level * density + 2 * level**2 * beyond, rel=0.02)  # 0.263
    assert error > 0.190  # what the best three levels leave (Lloyd 1957, Max 1960)
    assert float(scale_of(gaussian)) == pytest.approx((2 / torch.pi) ** 0.5, rel=0.01)


def test_a_broken_weight_is_refused() -> None:
    with pytest.raises(ShapeError, match="finite"):
        store(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ShapeError, match="finite"):
        store(torch.tensor([[1.0, float("inf")]]))


def test_the_gradient_is_that_to_the_rounded_weight() -> None:
    weight, x, up = normal(6, 9).requires_grad_(), normal(4, 9, seed=1), normal(4, 6, seed=2)
    (got,) = torch.autograd.grad(x @ straight_through(weight).T, weight, up)
    leaf = straight_through(weight).detach().requires_grad_()
    (expected,) = torch.autograd.grad(x @ leaf.T, leaf, up)
    assert torch.equal(got, expected)
    clipped = weight.detach().abs() > 1.5 * scale_of(weight)
    assert bool(clipped.any()) and bool(got[clipped].ne(0).all())  # clipped weights go on learning


def test_training_moves_the_latent_weights_and_folds_and_stores_exactly() -> None:
    model, technique = toys.toy("plain"), TernaryTraining()
    technique.attach(model)
    before = {path: site.dense_weight().detach().clone() for path, site in maps(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(toys.tokens(2, 9)).square().mean().backward()
    optimizer.step()
    for path, latent in latents(model).items():
        assert not torch.equal(latent, before[path]), path
        assert len(latent.unique()) > 3
    seen = model(toys.tokens(2, 9))
    technique.fold(model)
    assert torch.equal(model(toys.tokens(2, 9)), seen)
    folded = {path: site.dense_weight() for path, site in maps(model).items()}
    Ternary().attach(model)
    for path, site in maps(model).items():
        assert isinstance(site.weight, TernaryWeight)
        assert torch.equal(site.dense_weight(), folded[path])
        assert len(folded[path].abs().unique()) == 2
        assert site.weight.nbytes < folded[path].nbytes / 12
    torch.testing.assert_close(model(toys.tokens(2, 9)), seen, rtol=1e-5, atol=1e-6)


def test_a_copy_trains_its_own_weights() -> None:
    model = toys.toy("plain")
    TernaryTraining().attach(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for latent in latents(twin).values():
            latent.mul_(2)
    assert not torch.equal(twin(toys.tokens(1, 5)), model(toys.tokens(1, 5)))


def test_it_refuses_what_it_cannot_do() -> None:
    model = toys.toy("plain", Int8(), TernaryTraining())
    with pytest.raises(UnsupportedError, match="Expand the weights first"):
        TernaryTraining().fold(model)
    assert all(site.chain for site in maps(model).values())
    model = toys.toy("plain", Lora())
    with pytest.raises(SelectionError, match="must come first"):
        TernaryTraining().attach(model)
    model = toys.toy("plain", TernaryTraining())
    with pytest.raises(SelectionError):
        TernaryTraining().attach(model)
    Lora().attach(model)  # the other way round is welcome
    assert all(site.chain[0] is site.wrapper(NAME) for site in maps(model).values())
