"""Heads turn hidden vectors into logits over the vocabulary: with a matrix of their own, or with the embedding's
(Press 2017, arXiv 1608.05859)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.weight import StoredWeight
from almanac.nn.embedding import Embedding
from almanac.nn.linear import Linear
from almanac.nn.product import linear


class Head(Site):
    """hidden [..., hidden] -> logits [..., vocab] through its own ``projection``, then ``finished``."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        projection: Linear.Spec
        scale: float = 1.0
        softcap: float | None = None

        def build(self) -> Head:
            return Head(self)

    def __init__(self, spec: Head.Spec) -> None:
        super().__init__()
        self.projection = spec.projection.build()
        self.scale, self.softcap = spec.scale, spec.softcap

    def compute(self, x: Tensor, embed: Embedding) -> Tensor:
        return finished(self.projection(x), self.scale, self.softcap)


class TiedHead(Site):
    """hidden [..., hidden] -> logits [..., vocab] through the embedding's table; has no such matrix of its own.

    ``inward`` maps to the width of a table narrower than the stack (OPT 350M).
    """

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        scale: float = 1.0
        softcap: float | None = None
        inward: Linear.Spec | None = None

        def build(self) -> TiedHead:
            return TiedHead(self)

    def __init__(self, spec: TiedHead.Spec) -> None:
        super().__init__()
        self.inward = spec.inward.build() if spec.inward is not None else None
        self.scale, self.softcap = spec.scale, spec.softcap

    def compute(self, x: Tensor, embed: Embedding) -> Tensor:
        x = self.inward(x) if self.inward is not None else x
        weight = embed.weight
        logits = weight.apply_linear(x) if isinstance(weight, StoredWeight) else linear(x, weight, None)
        return finished(logits, self.scale, self.softcap)


def finished(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits times ``scale``, then kept within ±``softcap`` by c tanh(x / c) (Gemma 2, arXiv 2408.00118, section 2)."""
    logits = logits if scale == 1.0 else logits * scale
    return logits if softcap is None else softcap * (logits / softcap).tanh()
