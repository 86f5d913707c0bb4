"""Queries sharpened by their position: the published formula, one token at a time as in one piece."""

from __future__ import annotations

import math

import pytest
import torch

from almanac.core.errors import ShapeError
from almanac.core.state import Context
from almanac.nn.positions.temperature import Temperature


def test_each_query_is_scaled_by_the_steps_behind_it() -> None:
    made = Temperature.Spec(step=4, strength=0.5).build()
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 11, 8, generator=generator, dtype=torch.float64) for heads in (4, 2))
    places = torch.stack([torch.arange(11), torch.arange(20, 31)])
    turned, kept = made(q, k, Context(positions=places))
    assert kept is k
    for row in range(2):
        for time in range(11):
            factor = 1 + 0.5 * math.log(1 + (int(places[row, time]) + 1) // 4)
            torch.testing.assert_close(turned[row, :, time], q[row, :, time] * factor, rtol=1e-6, atol=0)
    last, _ = made(q[:, :, -1:], k[:, :, -1:], Context(positions=places[:, -1:]))
    assert last.equal(turned[:, :, -1:])


def test_a_step_of_nothing_is_refused() -> None:
    with pytest.raises(ShapeError):
        Temperature.Spec(step=0, strength=0.1)
