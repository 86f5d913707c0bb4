"""Prefix language modelling: the first part of a text is read in both directions, the rest is predicted token by token.

Dong 2019, arXiv 1905.03197 (one model to understand and to write); Raffel 2019, arXiv 1910.10683, section 3.2.1 (the mask).
The loss is next-token prediction over the tokens after the prefix alone: a token
of the prefix sees those after it, so that predicting it would be copying. The network is told by ``Context.prefix``
and needs the mask `nn.attention.masks.PrefixLM`, in training and in use.

Legend: b rows, t tokens of a row, n tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.batch import Tokens, pad_rows
from almanac.core.errors import RequestError
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class PrefixSplit(Value):
    """Where texts are divided: uniformly between the shares ``least`` and ``most`` of their tokens."""

    least: float = 0.0
    most: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most <= 1:
            raise RequestError(
                f"A prefix of {self.least:g} to {self.most:g} of a text", remedy="Give two shares in ascending order."
            )


def prefix_length(length: int, split: PrefixSplit, dice: torch.Generator) -> int:
    """How many tokens of a text of ``length`` are its prefix: 1 at least and ``length`` - 1 at most.

    Raises RequestError for a text that cannot be divided.
    """
    if length < 2:
        raise RequestError(f"A text of {length} tokens to divide", remedy="Give texts of 2 tokens at least.")
    least = min(max(round(split.least * length), 1), length - 1)
    most = max(min(round(split.most * length), length - 1), least)
    return least + int(torch.randint(most - least + 1, (), generator=dice))


def prefix_rows(texts: Sequence[Sequence[int]], prefixes: Sequence[int], *, pad_id: int = 0) -> tuple[Tokens, Tensor]:
    """(batch [b, t] whose targets are the tokens after each prefix, prefixes int64 [b] for ``Context.prefix``)."""
    rows = [list(text) for text in texts]
    masks = [[at >= prefix for at in range(len(row))] for row, prefix in zip(rows, prefixes, strict=True)]
    return pad_rows(rows, masks, pad_id=pad_id), torch.tensor(prefixes, dtype=torch.int64)
