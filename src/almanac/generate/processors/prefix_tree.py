"""Constrained decoding: only sequences of a prefix tree can be written.

At every step all tokens but the children of the node reached so far are removed (De Cao et al. 2021, "Autoregressive entity
retrieval", arXiv 2010.00904, section 3.2). The log-probabilities that the engine reports stay the model's own. A tree may
be made as it is walked: whatever has ``children`` is a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from almanac.core.errors import RequestError
from almanac.generate.processors.processor import REMOVED, Processor


class Choice(Protocol):
    """A node: token -> node; one without children ends a sequence."""

    @property
    def children(self) -> Mapping[int, Choice]: ...


@dataclass
class Node:
    """A node whose children are put in by hand."""

    children: dict[int, Choice] = field(default_factory=dict)


def chain(tokens: Sequence[int], last: Choice) -> Choice:
    """The node from which ``tokens`` lead to ``last``."""
    for token in reversed(tokens):
        last = Node({token: last})
    return last


@dataclass(frozen=True, kw_only=True)
class PrefixTree(Processor):
    """``root`` is reached by a prompt of ``prompt_tokens``; what follows walks down from there."""

    root: Choice
    prompt_tokens: int

    def __post_init__(self) -> None:
        if not self.root.children:
            raise RequestError("A prefix tree without a sequence", remedy="Give at least one sequence to choose from.")

    def __call__(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        node: Choice = self.root
        for token in tokens[self.prompt_tokens :]:
            node = node.children.get(token, Node())
        if not node.children:
            raise RequestError(
                "A sequence of the prefix tree has ended, or was left", remedy="End every sequence with a stop token."
            )
        allowed = torch.tensor(sorted(node.children), device=logits.device)
        kept = torch.full_like(logits, REMOVED)
        kept[allowed] = logits[allowed]
        return kept
