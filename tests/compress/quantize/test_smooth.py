"""SmoothQuant: smoothing alone changes nothing, rounding is that of the formula, and planted outliers make no difference."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from almanac.adapt.lora import Lora
from almanac.compress.quantize.int8 import Int8
from almanac.compress.quantize.round_to_nearest import Grid, RoundToNearest
from almanac.compress.quantize.smooth import Rounded, Smooth, round_activations, scales
from almanac.core.errors import UnsupportedError
from almanac.core.technique import Plan, assemble
from almanac.nn.stack import Decoder

TOKENS = [toys.tokens(8, 40, seed=4)]
WEIGHTS = RoundToNearest(grid=Grid(bits=6, group_size=0, symmetric=True))


def loud(factor: float) -> Decoder:
    """The same function with three channels behind every norm larger by ``factor``."""
    model = toys.toy("llama")
    scale = torch.ones(toys.HIDDEN)
    scale[:3] = factor
    with torch.no_grad():
        for block in model.layers:
            for norm, readers in (
                (block.mixer_norm, (block.mixer.q, block.mixer.k, block.mixer.v)),
                (block.channel_norm, (block.channel.gate, block.channel.up)),
            ):
                norm.weight.mul_(scale)
                for reader in readers:
                    reader.weight.div_(scale)
    return model


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model(toys.tokens(4, 40))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("before", [(), (Int8(),)], ids=["dense", "int8"])
def test_smoothing_alone_changes_nothing(alpha: float, before: tuple[Int8, ...]) -> None:
    model = toys.toy("llama", *before)
    expected = logits(model)
    Smooth(alpha=alpha, bits=0).attach(model, TOKENS)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_rounding_is_that_of_the_formula() -> None:
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    found = round_activations(x, 4)
    for row, expected in zip(found, x, strict=True):
        step = max(abs(float(v)) for v in expected) / 7
        for got, value in zip(row.tolist(), expected.tolist(), strict=True):
            assert got == pytest.approx(step * round(value / step) if step else 0.0, abs=1e-6)
    y = x.clone().requires_grad_()
    round_activations(y, 4).sum().backward()
    assert torch.equal(y.grad if y.grad is not None else y, torch.ones(5, 9))


def test_scales_share_the_difficulty() -> None:
    generator = torch.Generator().manual_seed(0)
    largest, weight = torch.rand(7, generator=generator) * 9, torch.randn(4, 7, generator=generator)
    columns = weight.abs().amax(dim=0)
    half = scales(largest, weight, 0.5)
    torch.testing.assert_close(largest / half, columns * half)
    torch.testing.assert_close(largest / scales(largest, weight, 1.0), torch.ones(7))
    torch.testing.assert_close(columns * scales(largest, weight, 0.0), torch.ones(7))
    assert torch.isfinite(scales(torch.zeros(7), torch.zeros(4, 7), 0.5)).all()


def test_planted_outliers_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for factor in (1.0, 16.0):  # a power of two: planting is exact, and every rounding must fall the same way
        model = loud(factor)
        for step in (Smooth(bits=6), WEIGHTS):
            step.attach(model, TOKENS)
        results.append(logits(model))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-3)
    expected, errors = logits(loud(16.0)), []
    for smoothed in (True, False):
        model = loud(16.0)
        if not smoothed:
            monkeypatch.setattr("almanac.compress.quantize.smooth.scales", lambda largest, *_: torch.ones_like(largest))
        for step in (Smooth(bits=6), WEIGHTS):
            step.attach(model, TOKENS)
        errors.append(float((logits(model) - expected).square().mean()))
    assert errors[0] < 0.2 * errors[1]


def test_an_adapter_does_not_train_the_scales() -> None:
    model = toys.toy("llama")
    Smooth().attach(model, TOKENS)
    Lora().attach(model)
    assert not any("smooth" in name for name, item in model.named_parameters() if item.requires_grad)


def test_weights_expanded_after_smoothing_still_load() -> None:
    """An int8 model that was smoothed, then expanded: the plan loses int8, the meaning of the scales must not change."""
    model = toys.toy("llama", Int8())
    Smooth().attach(model, TOKENS)
    expected = logits(model)
    for leaf in toys.leaves(model).values():
        leaf.set_weight(leaf.dense_weight().detach())
    loaded = assemble(toys.specs()["llama"], Plan(techniques=(Smooth(),)), toys.tensors_of(model))
    assert isinstance(loaded, Decoder)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert float((logits(loaded) - expected).abs().mean()) < 0.05 * float(expected.abs().max())


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"alpha": 1.5}, {"alpha": -0.1}, {"bits": 1}, {"bits": 9}):
        with pytest.raises(UnsupportedError):
            Smooth(**wrong)
    assert Rounded(torch.ones(2), torch.ones(2), 8).requires_grad_(True).scale.requires_grad is False
