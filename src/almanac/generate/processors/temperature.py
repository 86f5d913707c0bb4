"""Temperature: logits divided by T; below 1 sharper, above 1 flatter (Ackley 1985)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from almanac.generate.processors.processor import Processor, require


@dataclass(frozen=True, kw_only=True)
class Temperature(Processor):
    """T > 0; greedy decoding is not a temperature but the absence of sampling."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.temperature <= 100, "temperature", self.temperature, "a number above 0 and at most 100")

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        return logits.div_(self.temperature)
