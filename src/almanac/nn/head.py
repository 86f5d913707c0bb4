"""Heads turn hidden vectors into logits over the vocabulary: with a matrix of their own, or with the embedding's
(Press 2017, arXiv 1608.05859)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.weight import StoredWeight
from almanac.nn.embedding import Embedding
from almanac.nn.linear import Linear


class Head(Site):
    """hidden [..., hidden] -> logits [..., vocab] through its own ``projection``."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        projection: Linear.Spec

        def build(self) -> Head:
            return Head(self)

    def __init__(self, spec: Head.Spec) -> None:
        super().__init__()
        self.projection = spec.projection.build()

    def compute(self, x: Tensor, embed: Embedding) -> Tensor:
        return self.projection(x)


class TiedHead(Site):
    """hidden [..., hidden] -> logits [..., vocab] through the embedding's table; has no weight."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        def build(self) -> TiedHead:
            return TiedHead()

    def compute(self, x: Tensor, embed: Embedding) -> Tensor:
        weight = embed.weight
        return weight.apply_linear(x) if isinstance(weight, StoredWeight) else F.linear(x, weight)
