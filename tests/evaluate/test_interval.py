"""The bootstrap interval: against the normal approximation where that holds, and at its edges."""

from __future__ import annotations

import numpy as np

from almanac.evaluate.interval import estimate


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, size=400).tolist()
    found = estimate(values)
    assert found is not None
    half = 1.96 * np.std(values) / np.sqrt(len(values))
    assert abs(found.mean - np.mean(values)) < 1e-12
    assert abs(found.low - (found.mean - half)) < 0.15 * half
    assert abs(found.high - (found.mean + half)) < 0.15 * half


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = estimate((rng.random(60) < 0.3).astype(float).tolist())
        assert found is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_same_values_give_the_same_interval_and_none_gives_none() -> None:
    assert estimate([0.0, 1.0, 1.0]) == estimate([0.0, 1.0, 1.0])
    assert estimate([]) is None
    constant = estimate([0.5] * 9)
    assert constant is not None and (constant.low, constant.high, constant.count) == (0.5, 0.5, 9)
