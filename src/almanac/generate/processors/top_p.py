"""Top-p (nucleus): the smallest set of tokens whose probability reaches p (Holtzman 2019, arXiv 1904.09751)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from almanac.generate.processors.processor import REMOVED, Processor, require


@dataclass(frozen=True, kw_only=True)
class TopP(Processor):
    """Keeps the nucleus of mass ``p``; the most probable token always remains."""

    p: float

    def __post_init__(self) -> None:
        require(0 < self.p <= 1, "top_p", self.p, "a number above 0 and at most 1")

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        if self.p >= 1:
            return logits
        ordered, order = logits.softmax(0).sort(descending=True, stable=True)
        before = ordered.cumsum(0) - ordered  # mass of all more probable tokens
        return logits.index_fill_(0, order[before >= self.p], REMOVED)
