"""The token embedding: a row of the table per id, perhaps scaled (Vaswani 2017, arXiv 1706.03762, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.site import Leaf
from almanac.core.spec import Initialiser, Normal
from almanac.core.weight import StoredWeight


class Embedding(Leaf):
    """ids int64 [batch, time] -> [batch, time, embed]; ``weight`` [vocab_size, embed]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        vocab_size: int
        hidden: int
        axes: tuple[str, str] = ("vocab", "embed")
        initialiser: Initialiser = Normal()
        scale: float = 1.0  # of what is looked up; a head tied to the table does not see it

        def build(self) -> Embedding:
            return Embedding(self)

    def __init__(self, spec: Embedding.Spec) -> None:
        super().__init__((spec.vocab_size, spec.hidden), axes=spec.axes, initialiser=spec.initialiser)
        self.bias = None
        self.scale = spec.scale

    def compute(self, ids: Tensor) -> Tensor:
        x = self.weight.embed(ids) if isinstance(self.weight, StoredWeight) else F.embedding(ids, self.weight)
        return (
            x if self.scale == 1.0 else x * x.new_tensor(self.scale)
        )  # the scale rounded as x is: so models were trained
