"""Heads that add a learned number to each logit, as GPT-J's and Phi's do; one tied to the embedding still owns its bias.

The bias is a leaf of its own, so that it has the same place whether the head is tied or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.site import Site
from almanac.core.spec import Normal
from almanac.core.weight import StoredWeight
from almanac.nn.embedding import Embedding
from almanac.nn.head import Head, TiedHead, finished
from almanac.nn.recurrent.learned import Learned


class BiasedHead(Site):
    """hidden [..., hidden] -> logits [..., vocab] through its own ``projection``; ``bias.weight`` [vocab]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(Head.Spec):
        bias: Learned.Spec

        def build(self) -> BiasedHead:
            return BiasedHead(self)

    def __init__(self, spec: BiasedHead.Spec) -> None:
        super().__init__()
        self.projection, self.bias = spec.projection.build(), spec.bias.build()
        self.scale, self.softcap = spec.scale, spec.softcap

    def compute(self, x: Tensor, embed: Embedding) -> Tensor:
        return finished(self.projection(x) + self.bias(), self.scale, self.softcap)


class BiasedTiedHead(Site):
    """hidden [..., hidden] -> logits [..., vocab] through the embedding's table; ``bias.weight`` [vocab]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(TiedHead.Spec):
        bias: Learned.Spec

        def build(self) -> BiasedTiedHead:
            return BiasedTiedHead(self)

    def __init__(self, spec: BiasedTiedHead.Spec) -> None:
        super().__init__()
        self.inward = spec.inward.build() if spec.inward is not None else None
        self.bias = spec.bias.build()
        self.scale, self.softcap = spec.scale, spec.softcap

    def compute(self, x: Tensor, embed: Embedding) -> Tensor:
        x = self.inward(x) if self.inward is not None else x
        weight = embed.weight
        logits = weight.apply_linear(x) if isinstance(weight, StoredWeight) else F.linear(x, weight)
        return finished(logits + self.bias(), self.scale, self.softcap)


def biased(head: Head.Spec | TiedHead.Spec, vocab_size: int) -> spec.Spec:
    """The head with a bias."""
    bias = Learned.Spec(size=(vocab_size,), axes=("vocab",), initialiser=Normal())
    if isinstance(head, TiedHead.Spec):
        return BiasedTiedHead.Spec(scale=head.scale, softcap=head.softcap, inward=head.inward, bias=bias)
    return BiasedHead.Spec(projection=head.projection, scale=head.scale, softcap=head.softcap, bias=bias)
