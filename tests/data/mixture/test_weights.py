"""Shares of sources, DoReMi, curriculum and balance, each against a value worked out by hand or a slow reference."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almanac.core.errors import RequestError
from almanac.data.mixture.balance import augmented, balanced, swapped
from almanac.data.mixture.curriculum import by_score, competence
from almanac.data.mixture.doremi import reweight, update
from almanac.data.mixture.weights import Mixture, is_kept, keep_rates


def test_shares_are_declared_or_a_power_of_the_sizes() -> None:
    sizes = {"web": 900.0, "code": 100.0}
    assert Mixture(weights=(("web", 1.0), ("code", 3.0))).shares(sizes) == {"web": 0.25, "code": 0.75}
    assert Mixture().shares(sizes) == pytest.approx({"web": 0.9, "code": 0.1})
    assert Mixture(alpha=0).shares(sizes) == {"web": 0.5, "code": 0.5}
    raised = Mixture(alpha=0.3).shares(sizes)
    assert raised["web"] / raised["code"] == pytest.approx(9**0.3) and sum(raised.values()) == pytest.approx(1)
    assert Mixture(alpha=0.3).shares(sizes | {"none": 0}) == pytest.approx(raised)
    for weights in ((("web", 1.0),), (("web", 1.0), ("cod", 1.0))):
        with pytest.raises(RequestError, match="cod"):
            Mixture(weights=weights).shares(sizes)
    for wrong in ({"alpha": -1.0}, {"weights": (("a", 0.0),)}, {"weights": (("a", math.nan),)}):
        with pytest.raises(RequestError):
            Mixture(**wrong)


@given(st.dictionaries(st.sampled_from("abcde"), st.tuples(st.integers(1, 10**9), st.floats(0.01, 100)), min_size=1))
def test_what_is_kept_has_the_shares(given_: dict[str, tuple[int, float]]) -> None:
    sizes = {name: float(size) for name, (size, _) in given_.items()}
    shares = Mixture(weights=tuple((name, weight) for name, (_, weight) in given_.items())).shares(sizes)
    rates = keep_rates(sizes, shares)
    kept = {name: sizes[name] * rates[name] for name in sizes}
    assert max(rates.values()) == 1 and min(rates.values()) > 0
    assert {name: size / sum(kept.values()) for name, size in kept.items()} == pytest.approx(shares)


def test_documents_are_chosen_by_their_id_alone() -> None:
    names = [f"web/{number}" for number in range(4000)]
    kept = {name for name in names if is_kept(name, 0.3)}
    assert abs(len(kept) / 4000 - 0.3) < 0.03
    assert kept < {name for name in names if is_kept(name, 0.6)} and all(is_kept(name, 1.0) for name in names)


def test_an_update_is_that_of_the_paper() -> None:
    weights, excess = np.array([0.5, 0.3, 0.2]), np.array([0.4, -1.0, 0.0])
    raised = [0.5 * math.exp(2 * 0.4), 0.3, 0.2]
    expected = [0.9 * value / sum(raised) + 0.1 / 3 for value in raised]
    assert update(weights, excess, eta=2.0, smoothing=0.1) == pytest.approx(expected)
    assert np.isfinite(update(weights, np.array([1e4, 0, 0]))).all()


def test_more_goes_to_what_can_be_learned_and_less_to_noise() -> None:
    floor, start = np.array([1.0, 1.0, 4.0]), np.array([1.5, 3.0, 4.0])  # the third is noise: its loss cannot fall
    seen = np.zeros(3)

    def losses(weights: np.ndarray) -> list[float]:
        seen[:] += weights
        return list(floor + (start - floor) * np.exp(-seen / 20))

    found = reweight(losses, floor.tolist(), steps=60)
    assert found.weights.sum() == pytest.approx(1) and found.path.shape == (60, 3)
    assert found.weights[1] > found.weights[0] > found.weights[2] and found.weights[2] < 1 / 3
    for wrong in (lambda weights: [1.0, math.nan, 1.0], lambda weights: [1.0]):
        with pytest.raises(RequestError):
            reweight(wrong, [1.0, 1.0, 1.0], steps=1)
    with pytest.raises(RequestError):
        reweight(losses, [], steps=1)


def test_a_curriculum_goes_from_easy_to_hard() -> None:
    scores = [3.0, 1.0, 2.0, 1.0]
    assert by_score(scores).tolist() == [1, 3, 2, 0] and by_score(scores, hardest_first=True).tolist() == [0, 2, 1, 3]
    values = random.Random(0).sample(range(1000), 100)
    banded = by_score(values, bands=4, seed=1)
    assert sorted(banded.tolist()) == list(range(100)) and banded.tolist() != by_score(values).tolist()
    parts = [[values[place] for place in banded[start : start + 25]] for start in range(0, 100, 25)]
    assert all(max(left) < min(right) for left, right in itertools.pairwise(parts))
    assert (
        competence(0, steps=100) == pytest.approx(0.01)
        and competence(100, steps=100) == competence(999, steps=100) == 1
    )
    assert competence(50, steps=100, initial=0.1) == pytest.approx(math.sqrt(0.5 * 0.99 + 0.01))


def test_terms_of_a_pair_change_places() -> None:
    pairs = [("he", "she"), ("his", "her"), ("him", "her"), ("Mr", "Ms"), ("big brother", "big sister")]
    text = "He gave HIS big brother the Mr's hat; she, the heroine, kept her own."
    other = swapped(text, pairs)
    assert other == "She gave HER big sister the Ms's hat; he, the heroine, kept his own."
    assert swapped(other, pairs) == text and swapped(text, []) == text
    assert augmented([text, "no term"], pairs) == [text, other, "no term"]
    assert swapped("a.b stays, a+b goes", [("a+b", "c")]) == "a.b stays, c goes"


def test_labels_are_balanced() -> None:
    labels = list("aaaaaaabbbc")
    more = balanced(labels)
    assert sorted(labels[place] for place in more) == sorted("a" * 7 + "b" * 7 + "c" * 7)
    assert set(more.tolist()) == set(range(11)) and np.bincount(more)[7:10].max() - np.bincount(more)[7:10].min() <= 1
    fewer = balanced(labels, repeat=False, seed=3)
    assert (
        sorted(labels[place] for place in fewer) == list("abc")
        and (fewer == balanced(labels, repeat=False, seed=3)).all()
    )
    with pytest.raises(RequestError):
        balanced([])
