"""Exact search and selection, against full sorts, against FAISS, and through changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from almanac.retrieve.index.best import best, best_of_groups, occurrence
from almanac.retrieve.index.flat import FlatVectors

SCORES = nps.arrays(np.float32, st.integers(0, 40), elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]))


@given(SCORES, st.integers(1, 45))
def test_the_best_are_those_of_a_full_sort_with_ties_in_order(scores: np.ndarray, k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    assert best(scores, k).tolist() == expected


@given(SCORES, st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_no_group_gets_more_than_its_share(scores: np.ndarray, k: int, kinds: int, share: int) -> None:
    groups = (np.arange(len(scores)) * 7 % 5 % kinds).astype(np.int32)
    expected: list[int] = []
    for place in sorted(range(len(scores)), key=lambda place: (-scores[place], place)):
        if len(expected) < k and sum(groups[one] == groups[place] for one in expected) < share:
            expected.append(place)
    assert best_of_groups(scores, k, groups=groups, per_group=share).tolist() == expected
    assert best_of_groups(scores, k, groups=None, per_group=share).tolist() == best(scores, k).tolist()


def test_occurrence_counts_what_came_before() -> None:
    assert occurrence(np.array([7, 7, 9, 7, 9], np.int32)).tolist() == [0, 1, 0, 2, 1]
    assert occurrence(np.zeros(0, np.int32)).tolist() == []


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    made = rng.standard_normal((count, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_the_same_neighbours_as_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(4)
    vectors, queries = unit(rng, 3000, 48), unit(rng, 20, 48)
    peer = faiss.IndexFlatIP(48)
    peer.add(vectors)
    scores, rows = peer.search(queries, 10)
    store = FlatVectors(vectors)
    for query, expected, at in zip(queries, scores, rows, strict=True):
        found, cosines = store.search(query, 10)
        assert found.tolist() == at.tolist()
        assert cosines == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_changes_put_every_vector_where_it_belongs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, added = rng.standard_normal((9, 3)).astype(np.float32), rng.standard_normal((4, 3)).astype(np.float32)
    stay = rng.random(9) < 0.6
    total = int(stay.sum()) + 4
    rows = np.sort(rng.choice(total, 4, replace=False))
    free = np.setdiff1d(np.arange(total), rows)
    place = np.full(9, -1, np.int64)
    place[stay] = free
    before = FlatVectors(old)
    after = before.changed(place, added, rows)
    assert len(after) == total and np.array_equal(after.matrix[rows], added)
    assert np.array_equal(after.matrix[free], old[stay])
    assert np.array_equal(before.matrix, old) and not np.shares_memory(after.matrix, old)
    assert np.array_equal(after.vector(int(rows[0])), added[0])


def test_an_empty_store_finds_nothing() -> None:
    rows, scores = FlatVectors.empty(5).search(np.ones(5, np.float32), 3)
    assert len(rows) == len(scores) == 0
