"""Min-p: tokens at least p times as probable as the most probable one remain (Nguyen 2024, arXiv 2407.01082)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from almanac.generate.processors.processor import REMOVED, Processor, require


@dataclass(frozen=True, kw_only=True)
class MinP(Processor):
    """Keeps tokens with probability >= p · max; in logits: >= max + log p."""

    p: float

    def __post_init__(self) -> None:
        require(0 < self.p <= 1, "min_p", self.p, "a number above 0 and at most 1")

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        return logits.masked_fill_(logits < logits.max() + math.log(self.p), REMOVED)
