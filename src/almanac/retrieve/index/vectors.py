"""What the index asks of whoever makes vectors (`Embedder`) and of whoever keeps them (`VectorStore`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from almanac.core.errors import ShapeError
from almanac.retrieve.index.best import Places, Scores

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Texts to vectors whose dot product says how near their meanings are."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def digest(self) -> str:
        """What identifies the model, so that vectors of different models never meet."""
        ...

    def embed(self, texts: Sequence[str]) -> Any:
        """float32 [texts, dim]."""
        ...


class VectorStore(Protocol):
    """Vectors in the order of the index's chunks. It is never changed: a change gives another one.

    A store outside this process keeps its own map from these rows to its keys.
    """

    def __len__(self) -> int:
        """How many vectors there are."""
        ...

    def vector(self, row: int) -> Vectors:
        """float32 [dim]."""
        ...

    def search(
        self, query: Vectors, k: int, *, groups: NDArray[np.int32] | None = None, per_group: int | None = None
    ) -> tuple[Places, Scores]:
        """Rows and cosines of the ``k`` vectors nearest to ``query`` [dim], best first; see `best_of_groups`."""
        ...

    def changed(self, place: Places, added: Vectors, rows: Places) -> VectorStore:
        """The store with old row ``i`` at ``place[i]`` (dropped if -1), and ``added`` [m, dim] at ``rows`` [m]."""
        ...


def embed(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """float32 [texts, dim] of length 1 (a vector of zeros stays), checked.

    Raises:
        ShapeError: the embedder did not give one finite vector of its ``dim`` per text.
    """
    made = np.asarray(embedder.embed(texts), dtype=np.float32)
    if made.shape != (len(texts), embedder.dim) or not np.isfinite(made).all():
        raise ShapeError(
            f"The embedder gave numbers of shape {made.shape} for {len(texts)} texts, or some that are not finite",
            remedy=f"It must give finite float32 [{len(texts)}, {embedder.dim}]: check the embedding model.",
        )
    lengths = np.sqrt(np.einsum("ij,ij->i", made, made, dtype=np.float64))
    return (made / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
