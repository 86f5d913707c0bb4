"""Mamba against transformers' layer on the same weights, a loop over tokens, and differences; the convolution by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nn.recurrent.mixing import HIDDEN, built, numbers, whole
from torch import Tensor
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from almanac.core.errors import ShapeError
from almanac.core.technique import initialise
from almanac.nn.recurrent.conv import CausalConv
from almanac.nn.recurrent.mamba import (
    Invariant,
    Mamba,
    Selective,
    inverse_softplus,
    mamba,
    negative,
    selective_scan,
    softplus,
)

STATES, RANK = 5, 3


def theirs(layer: Mamba) -> MambaMixer:
    """Transformers' layer holding the weights of ours."""
    config = MambaConfig(
        hidden_size=HIDDEN, state_size=STATES, expand=2, conv_kernel=4, time_step_rank=RANK, num_hidden_layers=1
    )
    twin = MambaMixer(config, layer_idx=0).eval()
    assert layer.gate is not None and isinstance(layer.selection, Selective)
    weights = {
        "in_proj.weight": torch.cat([layer.inward.weight, layer.gate.weight]),
        "conv1d.weight": layer.conv.weight,
        "conv1d.bias": layer.conv.bias,
        "x_proj.weight": layer.selection.project.weight,
        "dt_proj.weight": layer.selection.step.weight,
        "dt_proj.bias": layer.step_bias.weight,
        "A_log": layer.log_decay.weight[0],
        "D": layer.skip.weight,
        "out_proj.weight": layer.out.weight,
    }
    twin.load_state_dict({name: tensor.detach() for name, tensor in weights.items()})
    return twin


@pytest.mark.parametrize(("rows", "time"), [(1, 1), (2, 3), (3, 40)])
def test_transformers_layer_gives_the_same(rows: int, time: int) -> None:
    layer = built(mamba(HIDDEN, num_states=STATES, rank=RANK))
    assert isinstance(layer, Mamba)
    x = numbers(rows, time)
    with torch.no_grad():
        expected = theirs(layer)(x)
        assert (whole(layer, x) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def given(time: int) -> tuple[Tensor, ...]:
    """u, step, A, B, C, memory for two rows of 3 channels of 2 states."""
    generator = torch.Generator().manual_seed(time)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return (
        some(2, time, 3),
        softplus(some(2, time, 3)),
        negative(some(3, 2)),
        some(2, time, 2),
        some(2, time, 2),
        some(2, 3, 2),
    )


def loop(u: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Algorithm 2, one number at a time."""
    h, y = memory.clone(), torch.zeros_like(u)
    for row in range(u.shape[0]):
        for t in range(u.shape[1]):
            for channel in range(u.shape[2]):
                for n in range(decay.shape[1]):
                    kept = torch.exp(step[row, t, channel] * decay[channel, n])
                    arrives = step[row, t, channel] * b[row, t, n] * u[row, t, channel]
                    h[row, channel, n] = kept * h[row, channel, n] + arrives
                y[row, t, channel] = h[row, channel] @ c[row, t]
    return y, h


@pytest.mark.parametrize("time", [1, 2, 7, 12])
def test_the_scan_is_the_loop(time: int) -> None:
    *items, memory = given(time)
    y, after = selective_scan(*items, memory=memory)
    expected, expected_after = loop(*items, memory)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after, expected_after, rtol=1e-10, atol=1e-12)


def test_gradients_by_differences() -> None:
    items = [item.clone().requires_grad_() for item in given(4)]
    assert torch.autograd.gradcheck(
        lambda u, step, decay, b, c, memory: selective_scan(u, step, decay, b, c, memory=memory), items
    )


def test_large_magnitudes_stay_finite() -> None:
    layer = built(mamba(HIDDEN, num_states=STATES))
    x = (1e4 * numbers(1, 30)).requires_grad_()
    y = whole(layer, x)
    y.sum().backward()
    assert torch.isfinite(y).all() and x.grad is not None and torch.isfinite(x.grad).all()


def test_states_fade_and_steps_are_positive_whatever_is_learned() -> None:
    learned = torch.linspace(-50, 50, 11)
    assert (negative(learned) < 0).all() and (softplus(learned) > 0).all()


def test_it_begins_as_the_paper_says() -> None:
    layer = initialise(mamba(32, num_states=6).build(), seed=0)
    assert isinstance(layer, Mamba) and isinstance(layer.selection, Selective)
    torch.testing.assert_close(negative(layer.log_decay()[0]), -torch.arange(1.0, 7.0).expand(64, 6))
    steps = F.softplus(layer.step_bias())
    torch.testing.assert_close(steps[[0, -1]], torch.tensor([1e-3, 1e-1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(steps[1:] / steps[:-1], (steps[1] / steps[0]).expand(63), rtol=1e-3, atol=0)
    assert torch.equal(layer.skip(), torch.ones(64))
    assert layer.selection.step.weight.shape == (64, 2)
    assert 0.9 * 2**-0.5 < float(layer.selection.step.weight.abs().max().detach()) <= 2**-0.5
    values = torch.tensor([1e-4, 0.1, 3.0], dtype=torch.float64)
    torch.testing.assert_close(F.softplus(inverse_softplus(values)), values)


def test_without_selection_the_scan_is_linear_in_its_input_and_with_it_not() -> None:
    for selective in (False, True):
        layer = built(mamba(HIDDEN, selective=selective), dtype=torch.float64)
        assert isinstance(layer, Mamba) and isinstance(layer.selection, Invariant) is not selective
        first, second = torch.randn(2, 1, 6, 2 * HIDDEN, dtype=torch.float64)

        def scanned(u: Tensor, layer: Mamba = layer) -> Tensor:
            step, b, c = layer.selection(u)
            memory = torch.zeros(1, layer.channels, layer.num_states).double()
            step = softplus(step + layer.step_bias())
            return selective_scan(u, step, negative(layer.log_decay()[0]), b, c, memory=memory)[0]

        difference = (scanned(first + second) - scanned(first) - scanned(second)).abs().max()
        assert (difference < 1e-10) is not selective


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_convolution_by_hand(width: int) -> None:
    layer = initialise(CausalConv.Spec(channels=3, width=width).build(), seed=1)
    torch.nn.init.normal_(layer.bias)
    x, before = torch.randn(2, 6, 3), torch.randn(2, width - 1, 3)
    values = torch.cat([before, x], dim=1)
    found, after = layer(x, before, None)
    expected = F.conv1d(values.transpose(1, 2), layer.weight, layer.bias, groups=3).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(after, values[:, 6:])


def test_sizes_that_do_not_fit_are_refused() -> None:
    spec = mamba(HIDDEN)
    for changes in (
        {"conv": CausalConv.Spec(channels=7)},
        {"num_states": 3},
        {"out": spec.inward},
        {"gate": spec.out},
    ):
        with pytest.raises(ShapeError, match="are needed"):
            spec.with_(**changes)
    with pytest.raises(ShapeError, match="width 0"):
        CausalConv.Spec(channels=3, width=0)
