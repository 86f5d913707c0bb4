"""Analogies answered and similarities ranked; scipy's Spearman is the oracle."""

from __future__ import annotations

import random

import pytest
import torch

from almanac.core.errors import RequestError
from almanac.evaluate.word_vectors import analogies, similarity, spearman
from almanac.models.word_vectors import WordVectors

GRID = WordVectors(
    ["aa", "ab", "ba", "bb", "other"],
    torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, -1.0], [0.0, 1.0, 1.0], [0.0, 1.0, -1.0], [-1.0, -1.0, 0.2]]),
)


def test_analogies_are_counted_and_the_missing_ones_too() -> None:
    found = analogies(GRID, [("aa", "ab", "ba", "bb"), ("aa", "ba", "ab", "other"), ("aa", "ab", "no", "bb")])
    assert (found.correct, found.asked, found.missing, found.accuracy) == (1, 2, 1, 0.5)
    with pytest.raises(RequestError):
        analogies(GRID, [("x", "ab", "ba", "bb")])


def test_spearman_is_scipys_with_ties() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle (extra 'oracles')")
    rng = random.Random(0)
    for _ in range(50):
        size = rng.randint(3, 30)
        first, second = ([rng.randint(0, 6) / 3 for _ in range(size)] for _ in range(2))
        if len(set(first)) > 1 and len(set(second)) > 1:
            assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_similarity_ranks_cosines() -> None:
    pairs = [("aa", "ab", 0.0), ("aa", "ba", 5.0), ("aa", "other", -9.0), ("aa", "no", 1.0)]
    found = similarity(GRID, pairs)
    assert (found.pairs, found.missing) == (3, 1)
    assert found.rho == pytest.approx(1.0)
    assert similarity(GRID, [(a, b, -score) for a, b, score in pairs]).rho == pytest.approx(-1.0)


def test_a_correlation_that_is_not_defined_is_refused() -> None:
    for first, second in (([1.0], [1.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([], [])):
        with pytest.raises(RequestError):
            spearman(first, second)
