"""Reciprocal rank fusion against the formula, and its order where scores are equal."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import RequestError
from almanac.retrieve.fuse import fuse


def test_a_case_by_hand() -> None:
    fused = fuse([["a", "b", "c"], ["b", "d"]])
    assert [item for item, _ in fused] == ["b", "a", "d", "c"]
    assert dict(fused) == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "d": 1 / 62, "c": 1 / 63})


def test_weights_and_k_count() -> None:
    assert [item for item, _ in fuse([["a", "b"], ["b", "a"]], weights=[1, 2])] == ["b", "a"]
    assert fuse([["a"], ["b"]], k=0, weights=[3, 0]) == [("a", 3.0), ("b", 0.0)]


@given(st.lists(st.permutations("abcdef").map(lambda items: items[:4]), max_size=4))
def test_scores_are_the_formula_and_ties_keep_the_order_of_meeting(rankings: list[list[str]]) -> None:
    fused = fuse(rankings, k=7)
    met = list(dict.fromkeys(item for ranking in rankings for item in ranking))
    exact = {item: sum(Fraction(1, 8 + r.index(item)) for r in rankings if item in r) for item in met}
    assert dict(fused) == pytest.approx({item: float(exact[item]) for item in met})
    order = [item for item, _ in fused]
    for first, second in itertools.pairwise(order):
        one, other = dict(fused)[first], dict(fused)[second]
        assert one > other or (one == other and met.index(first) < met.index(second))


def test_a_repeated_item_counts_once_per_ranking() -> None:
    assert fuse([["a", "b", "a"]]) == [("a", 1 / 61), ("b", 1 / 62)]
    assert fuse([]) == fuse([[], []]) == []


@pytest.mark.parametrize("options", [{"k": -1}, {"weights": [1]}, {"weights": [1, -1]}, {"weights": [1, math.inf]}])
def test_what_cannot_be_fused_is_refused(options: dict) -> None:
    with pytest.raises(RequestError, match="Fusing 2 rankings"):
        fuse([["a"], ["b"]], **options)
