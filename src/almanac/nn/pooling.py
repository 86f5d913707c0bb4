"""From the vectors of a text's tokens to one vector of the text, as a value.

Mean, first token and maximum are the three that Reimers 2019, arXiv 1908.10084, section 3 compares.
Legend: b texts, t tokens, h hidden; ``own`` bool [b, t] says which tokens are the text's, None that all are.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Pooling(Value):
    """A rule without weights."""

    @abstractmethod
    def __call__(self, hidden: Tensor, own: Tensor | None = None) -> Tensor:
        """hidden [b, t, h] -> [b, h]; every text has at least one token of its own."""


@dataclass(frozen=True, kw_only=True)
class Mean(Pooling):
    """The average of the text's tokens."""

    def __call__(self, hidden: Tensor, own: Tensor | None = None) -> Tensor:
        if own is None:
            return hidden.mean(dim=1)
        counted = own.unsqueeze(-1).to(hidden.dtype)
        return (hidden * counted).sum(dim=1) / counted.sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class First(Pooling):
    """The vector of the first token, BERT's [CLS]; rows are padded on the right."""

    def __call__(self, hidden: Tensor, own: Tensor | None = None) -> Tensor:
        return hidden[:, 0]


@dataclass(frozen=True, kw_only=True)
class Max(Pooling):
    """The largest value of each feature over the text's tokens."""

    def __call__(self, hidden: Tensor, own: Tensor | None = None) -> Tensor:
        if own is not None:
            hidden = hidden.masked_fill(~own.unsqueeze(-1), float("-inf"))
        return hidden.amax(dim=1)
