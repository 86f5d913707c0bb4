"""Counting embeddings or not: the inverse, the frontier against a search, its slope, and the powers that were published."""

from __future__ import annotations

import numpy as np
import pytest

from almanac.core.errors import ShapeError
from almanac.evaluate.scaling import PUBLISHED, REFIT, Law
from almanac.evaluate.scaling_counting import (
    OMEGA,
    apparent_exponent,
    budget_of,
    local_exponent,
    non_embedding_parameters,
    total_parameters,
)


def test_the_count_and_its_inverse() -> None:
    inside = np.geomspace(1, 1e12, 25)
    total = total_parameters(inside)
    assert total == pytest.approx(inside + OMEGA * inside ** (1 / 3))
    assert non_embedding_parameters(total) == pytest.approx(inside, rel=1e-6)
    assert non_embedding_parameters(5.0, omega=0) == 5
    with pytest.raises(ShapeError):
        non_embedding_parameters(-1.0)


@pytest.mark.parametrize("law", [REFIT, PUBLISHED])
@pytest.mark.parametrize("inside", [1e3, 1e6, 1e9])
def test_the_budget_of_a_size_is_best_spent_on_it(law: Law, inside: float) -> None:
    budget = float(budget_of(law, inside))
    sizes = inside * np.geomspace(0.5, 2, 2001)
    losses = [law.loss(float(total_parameters(n)), budget / 6 / float(n)) for n in sizes]
    assert sizes[int(np.argmin(losses))] == pytest.approx(inside, rel=2e-3)


def test_the_local_power_is_the_slope_of_the_frontier_and_has_its_limits() -> None:
    for inside in (1e3, 1e6, 1e9):
        ends = np.log(budget_of(REFIT, inside * np.array([0.999, 1.001])))
        assert local_exponent(REFIT, inside) == pytest.approx(np.log(1.001 / 0.999) / (ends[1] - ends[0]), abs=1e-4)
    a, b = REFIT.alpha, REFIT.beta
    assert local_exponent(REFIT, 1e-6) == pytest.approx(b / (b + a / 3), abs=1e-3)
    assert local_exponent(REFIT, 1e18) == pytest.approx(b / (a + b), abs=1e-3)


def test_the_powers_of_the_paper() -> None:
    assert apparent_exponent(PUBLISHED) == pytest.approx(0.74, abs=0.015)  # Pearce 2024, with Hoffmann's estimates
    assert apparent_exponent(REFIT) == pytest.approx(0.78, abs=0.015)  # with Besiroglu's
    assert apparent_exponent(REFIT, omega=0) == pytest.approx(REFIT.beta / (REFIT.alpha + REFIT.beta))
    assert apparent_exponent(REFIT, (1e11, 1e13)) == pytest.approx(0.51, abs=0.01)
    with pytest.raises(ShapeError):
        apparent_exponent(REFIT, (1e9, 1e9))
