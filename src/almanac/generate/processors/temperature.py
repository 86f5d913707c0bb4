"""Temperature: logits divided by T; below 1 sharper, above 1 flatter (Ackley 1985)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from almanac.generate.processors.processor import Processor, require

LOWEST = 1e-6  # below, logits divided by it leave the range of float32


@dataclass(frozen=True, kw_only=True)
class Temperature(Processor):
    """T from 1e-6 to 100; greedy decoding is not a temperature but the absence of sampling."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        fits = LOWEST <= self.temperature <= 100
        require(fits, "temperature", self.temperature, f"0 for greedy, or a number from {LOWEST} to 100")

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        return logits.div_(self.temperature)
