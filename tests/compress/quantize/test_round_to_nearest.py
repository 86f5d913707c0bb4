"""Rounding to nearest: the nearest grid point of every weight, found by trying all of them."""

from __future__ import annotations

import pytest
import torch
import toys
from torch import Tensor

from almanac.compress.quantize.round_to_nearest import Grid, RoundToNearest, fit_groups, rounded, store
from almanac.core.errors import ShapeError, UnsupportedError
from almanac.core.weight import StoredWeight


def weight(rows: int = 6, width: int = 21) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    made = torch.randn(rows, width, generator=generator) * torch.logspace(-3, 1, rows)[:, None]
    made[1] = made[1].abs() + 1  # all of one sign
    made[2] = 0
    return made


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [0, 5, 7, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_weight_goes_to_the_nearest_point(bits: int, group_size: int, symmetric: bool) -> None:
    grid = Grid(bits=bits, group_size=group_size, symmetric=symmetric)
    given, size = weight(), grid.size(21)
    found = rounded(given, grid)
    scale, zero = fit_groups(given, grid)
    for row in range(6):
        for place in range(21):
            at = (row, place // size)
            points = scale[at] * (torch.arange(int(symmetric), 2**bits) - zero[at].float())
            nearest = points[(points - given[row, place]).abs().argmin()]
            assert abs(float(found[row, place] - given[row, place])) <= abs(float(nearest - given[row, place])) + 1e-6
            assert abs(float(found[row, place] - given[row, place])) <= float(scale[at]) * (1 - symmetric / 2) + 1e-6
    assert torch.equal(found[2], torch.zeros(21))


def test_zeros_stay_zeros() -> None:
    given = weight()
    given[:, ::3] = 0
    for symmetric in (True, False):
        assert not rounded(given, Grid(bits=3, symmetric=symmetric))[:, ::3].any()


def test_smaller_groups_and_more_bits_err_less() -> None:
    given = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    errors = [float((rounded(given, Grid(bits=3, group_size=size)) - given).square().mean()) for size in (0, 64, 16)]
    assert errors == sorted(errors, reverse=True)
    errors = [float((rounded(given, Grid(bits=bits)) - given).square().mean()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] / errors[3] == pytest.approx(4, rel=0.2)  # a bit more, half the step


def test_bytes_are_real() -> None:
    model = toys.toy("plain", RoundToNearest(grid=Grid(bits=4, group_size=32), targets="layers.**"))
    for path, leaf in toys.leaves(model).items():
        if path.startswith("layers."):
            assert isinstance(leaf.weight, StoredWeight)
            assert leaf.weight.nbytes == leaf.shape[0] * leaf.shape[1] * (4 + 40 / 32) / 8
        else:
            assert not isinstance(leaf.weight, StoredWeight)


def test_scaled_columns_are_undone() -> None:
    given, columns = weight(), torch.linspace(0.1, 10, 21)
    found = store(given, Grid(bits=8, group_size=0), columns=columns).dense()
    torch.testing.assert_close(found, rounded(given * columns, Grid(bits=8, group_size=0)) / columns)


def test_what_cannot_be_rounded_is_refused() -> None:
    for bits in (1, 9):
        with pytest.raises(UnsupportedError):
            Grid(bits=bits)
    with pytest.raises(UnsupportedError):
        Grid(group_size=-1)
    for bad in (float("nan"), float("inf")):
        given = weight()
        given[3, 4] = bad
        with pytest.raises(ShapeError):
            rounded(given, Grid())
