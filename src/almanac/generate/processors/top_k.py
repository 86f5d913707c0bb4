"""Top-k: only the k most probable tokens remain (Fan 2018, arXiv 1805.04833). Ties with the k-th remain too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from almanac.generate.processors.processor import REMOVED, Processor, require


@dataclass(frozen=True, kw_only=True)
class TopK(Processor):
    """Keeps ``k`` tokens."""

    k: int

    def __post_init__(self) -> None:
        require(self.k >= 1, "top_k", self.k, "a whole number from 1")

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        if self.k >= logits.shape[0]:
            return logits
        return logits.masked_fill_(logits < logits.topk(self.k).values[-1], REMOVED)
