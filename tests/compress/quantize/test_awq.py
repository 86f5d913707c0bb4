"""AWQ: scaling changes nothing but what rounding then does, and the search never ends worse than where it began."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from almanac.compress.quantize.awq import Awq, output_error, scales, search
from almanac.compress.quantize.round_to_nearest import Grid, RoundToNearest, rounded, store
from almanac.core.errors import UnsupportedError

GRID = Grid(bits=3, group_size=0)


def layer(loud: tuple[int, ...] = (3, 11)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(300, 16, generator=generator)
    inputs[:, list(loud)] *= 20
    return torch.randn(12, 16, generator=generator), inputs


def test_scaling_is_exact_before_rounding() -> None:
    """Powers of two are scaled without rounding error, so what comes back must be equal, bit for bit."""
    weight = torch.randint(-7, 8, (4, 6)).float()
    weight[:, 0] = 7
    weight[:, 1] = -8
    columns = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert torch.equal(store(weight, Grid(bits=4, group_size=0), columns=columns).dense(), weight)
    weight, inputs = layer()
    tried = scales(inputs.abs().mean(dim=0), 0.7)
    torch.testing.assert_close((inputs / tried) @ (weight * tried).T, inputs @ weight.T, rtol=1e-4, atol=1e-3)
    assert float(tried.max() * tried.min()) == pytest.approx(1, rel=1e-5)


def test_the_error_is_that_of_the_outputs() -> None:
    weight, inputs = layer()
    change = rounded(weight, GRID) - weight
    assert output_error(change, inputs.T @ inputs) == pytest.approx(float((inputs @ change.T).square().sum()), rel=1e-4)


def test_the_search_finds_the_best_power() -> None:
    weight, inputs = layer()
    importance, gram = inputs.abs().mean(dim=0), inputs.T @ inputs
    found = search(weight, importance, gram, grid=GRID, steps=20)

    def error(columns: Tensor) -> float:
        changed = store(weight, GRID, columns=columns).dense()
        return float((inputs @ (changed - weight).T).square().mean())

    tried = [error(scales(importance, step / 20)) for step in range(20)]
    assert error(found) == pytest.approx(min(tried), rel=1e-3)
    assert min(tried) < 0.3 * tried[0]


def test_a_silent_channel_does_no_harm() -> None:
    weight, inputs = layer()
    inputs[:, 5] = 0
    found = search(weight, inputs.abs().mean(dim=0), inputs.T @ inputs, grid=GRID, steps=20)
    assert torch.isfinite(store(weight, GRID, columns=found).dense()).all()
    nothing = search(weight, torch.zeros(16), torch.zeros(16, 16), grid=GRID, steps=4)
    assert torch.isfinite(store(weight, GRID, columns=nothing).dense()).all()


def test_a_calibrated_model_is_no_further_than_a_rounded_one() -> None:
    def loud() -> torch.nn.Module:
        model = toys.toy("llama")
        with torch.no_grad():
            for block in model.layers:
                for norm in (block.mixer_norm, block.channel_norm):
                    norm.weight[:3] *= 30
        return model

    with torch.no_grad():
        expected = loud()(toys.tokens(4, 40))
        errors = []
        for technique in (Awq(grid=GRID), RoundToNearest(grid=GRID)):
            model = loud()
            technique.attach(model, [toys.tokens(16, 40, seed=5)])
            errors.append(float((model(toys.tokens(4, 40)) - expected).square().mean()))
    assert errors[0] < 0.9 * errors[1]


def test_a_search_of_nothing_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        Awq(steps=0)
