"""Positions as a number added to each attention score: the contract of ALiBi, of T5's buckets, and of what may follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from almanac.core import spec


class ScoreBias(nn.Module, ABC):
    """(query positions int64 [b, t], key positions int64 [b, l]) -> float32 [b, heads, t, l], added before the softmax.

    What a query may not see at all is the mask's affair; a bias says nothing of it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        num_heads: int  # query heads

        @abstractmethod
        def build(self) -> ScoreBias:
            """A bias of this spec."""

    @abstractmethod
    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """The bias of every score."""
