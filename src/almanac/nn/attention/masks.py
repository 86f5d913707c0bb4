"""Which past tokens a token may see, as a value. True means visible."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Mask(Value):
    """A rule on absolute positions."""

    @abstractmethod
    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """bool, broadcast of the two: may the query see the key?"""

    @abstractmethod
    def is_plain_causal(self, length: int) -> bool:
        """Whether for ``length`` tokens the rule is just "the past and oneself"."""


@dataclass(frozen=True, kw_only=True)
class Causal(Mask):
    """The past and oneself."""

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return key_positions <= query_positions

    def is_plain_causal(self, length: int) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Mask):
    """The last ``size`` tokens, oneself included (Beltagy 2020, arXiv 2004.05150)."""

    size: int

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        return (key_positions <= query_positions) & (key_positions > query_positions - self.size)

    def is_plain_causal(self, length: int) -> bool:
        return length <= self.size
