"""LSTM and GRU against torch's own, outputs, states and gradients."""

from __future__ import annotations

import pytest
import torch
from nn.recurrent.mixing import HIDDEN, built, numbers, whole
from torch import nn

from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.nn.recurrent.gru import Gru, gru
from almanac.nn.recurrent.lstm import Lstm, lstm
from almanac.nn.recurrent.state import RecurrentState


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_torch_gives_the_same(kind: str) -> None:
    layer = built(lstm(HIDDEN) if kind == "lstm" else gru(HIDDEN), dtype=torch.float64)
    assert isinstance(layer, Lstm | Gru)
    theirs = (nn.LSTM if kind == "lstm" else nn.GRU)(HIDDEN, HIDDEN, batch_first=True).double()
    names = {"weight_ih_l0": layer.inward.weight, "weight_hh_l0": layer.again.weight}
    names |= {"bias_ih_l0": layer.inward.bias, "bias_hh_l0": layer.again.bias}
    theirs.load_state_dict({name: tensor.detach() for name, tensor in names.items()})
    x = numbers(3, 11, dtype=torch.float64)
    expected, after = theirs(x)
    torch.testing.assert_close(whole(layer, x), expected, rtol=1e-11, atol=1e-11)
    y, state = layer(x, Context(positions=torch.arange(11).expand(3, -1)), layer.init_state(3, 1))
    assert isinstance(state, RecurrentState)
    for mine, other in zip(state.parts, after if isinstance(after, tuple) else (after,), strict=True):
        torch.testing.assert_close(mine, other[0], rtol=1e-11, atol=1e-11)
    y.square().sum().backward()
    expected.square().sum().backward()
    for name, ours in names.items():
        torch.testing.assert_close(ours.grad, theirs.get_parameter(name).grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("make", [lstm, gru])
def test_sizes_that_do_not_fit_are_refused(make: object) -> None:
    spec = lstm(HIDDEN, cells=7) if make is lstm else gru(HIDDEN, cells=7)
    for changes in (
        {"out": None},
        {"again": spec.inward},
        {"inward": spec.inward.with_(out_features=5)},
        {"again": spec.again.with_(in_features=8)},
    ):
        with pytest.raises(ShapeError):
            spec.with_(**changes)
