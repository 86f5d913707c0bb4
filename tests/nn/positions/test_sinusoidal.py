"""Sinusoidal positions against the formula, and the property the paper chose them for."""

from __future__ import annotations

import math

import pytest
import torch

from almanac.core.errors import ShapeError
from almanac.nn.positions.sinusoidal import SinusoidalPositions, waves

HIDDEN = 12


def test_by_the_formula() -> None:
    got = SinusoidalPositions.Spec(hidden=HIDDEN, scale=0.5).build()(torch.tensor([[0, 3], [700, 1]]))
    for row, positions in enumerate([[0, 3], [700, 1]]):
        for time, position in enumerate(positions):
            for pair in range(HIDDEN // 2):
                angle = position / 10_000 ** (2 * pair / HIDDEN)
                expected = [math.sin(angle) / 2, math.cos(angle) / 2]
                assert got[row, time, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shift", [1, 5, 64])
def test_a_shift_is_linear(shift: int) -> None:
    """One matrix, fitted on some positions, maps PE(p) to PE(p + shift) for all others."""
    places = torch.arange(400, dtype=torch.float64)
    here, there = waves(places, HIDDEN), waves(places + shift, HIDDEN)
    matrix = torch.linalg.lstsq(here[:100], there[:100]).solution
    torch.testing.assert_close(here @ matrix, there, rtol=0, atol=1e-6)


def test_products_depend_on_the_distance_alone() -> None:
    table = waves(torch.arange(200, dtype=torch.float64), 64)
    products = table @ table.T
    for distance in (0, 3, 50):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))


def test_width_must_be_even() -> None:
    with pytest.raises(ShapeError, match="even"):
        SinusoidalPositions.Spec(hidden=7)
