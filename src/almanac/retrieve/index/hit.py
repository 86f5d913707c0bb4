"""What every index promises, lexical or dense: chunks in, the best of them out, with their scores."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from almanac.retrieve.chunk.chunk import Chunk


@dataclasses.dataclass(frozen=True)
class Hit:
    """A chunk found, and how well it matches (higher is better; comparable within one query of one index only)."""

    chunk: Chunk
    score: float


class Index(Protocol):
    """Anything that can be searched."""

    def __len__(self) -> int:
        """The number of chunks indexed."""
        ...

    def search(self, query: str, k: int) -> list[Hit]:
        """The at most ``k`` best chunks, best first; none if nothing matches."""
        ...
