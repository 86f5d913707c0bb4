"""Logits processors: what shapes the distribution of the next token. Each is a frozen value in a file of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from almanac.core.errors import RequestError
from almanac.core.value import Value

REMOVED = float("-inf")


@dataclass(frozen=True, kw_only=True)
class Processor(Value):
    """``processor(logits, tokens) -> logits`` for one sequence.

    logits float32 [vocab], may be changed in place; tokens: all ids so far, prompt included. At least one entry must
    stay finite.
    """

    @abstractmethod
    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor: ...


def require(condition: bool, field: str, value: object, wanted: str) -> None:
    """Raises RequestError when a sampling field is out of its range."""
    if not condition:
        raise RequestError(f"{field} is {value!r}", remedy=f"Give {wanted}.")
