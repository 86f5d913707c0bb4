"""Exact vector search: every vector is looked at, by one product of matrix and query, and the best are selected.

Nothing is approximated, so it is also what every approximate store is compared with. Cost: dim multiplications per
vector, bound by the memory's bandwidth; 100,000 vectors of 384 numbers are 154 MB to read per query.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from almanac.retrieve.index.best import Places, Scores, best_of_groups
from almanac.retrieve.index.vectors import Vectors


class FlatVectors:
    """A `VectorStore` in memory: ``matrix`` is float32 [n, dim], its rows of length 1."""

    def __init__(self, matrix: Vectors) -> None:
        self.matrix = matrix

    @classmethod
    def empty(cls, dim: int) -> FlatVectors:
        """A store without vectors."""
        return cls(np.zeros((0, dim), np.float32))

    def __len__(self) -> int:
        return len(self.matrix)

    def vector(self, row: int) -> Vectors:
        """float32 [dim]."""
        return self.matrix[row]

    def search(
        self, query: Vectors, k: int, *, groups: NDArray[np.int32] | None = None, per_group: int | None = None
    ) -> tuple[Places, Scores]:
        """See `VectorStore`; the cosines are the product in float32."""
        scores = self.matrix @ query  # [n]
        rows = best_of_groups(scores, k, groups=groups, per_group=per_group)
        return rows, scores[rows]

    def changed(self, place: Places, added: Vectors, rows: Places) -> FlatVectors:
        """See `VectorStore`; one copy of what stays."""
        if not len(place) and np.array_equal(rows, np.arange(len(added))):
            return FlatVectors(added)
        kept = place >= 0
        matrix = np.empty((int(kept.sum()) + len(added), self.matrix.shape[1]), np.float32)
        for start, stop in _runs(place):
            matrix[place[start] : place[start] + stop - start] = self.matrix[start:stop]
        matrix[rows] = added
        return FlatVectors(matrix)


def _runs(place: Places) -> list[tuple[int, int]]:
    """The stretches of old rows that stay side by side: they move as one block."""
    if not len(place):
        return []
    cuts = np.flatnonzero((np.diff(place) != 1) | (place[:-1] < 0)) + 1
    bounds = [0, *cuts.tolist(), len(place)]
    return [(a, b) for a, b in itertools.pairwise(bounds) if place[a] >= 0]
