"""Learned positions: a row of a table per place, added to the token's vector.

Gehring 2017, arXiv 1705.03122, section 3.1; BERT (Devlin 2018, arXiv 1810.04805) and GPT-2 use it so. No text can be
longer than the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from almanac.core import spec
from almanac.core.site import Leaf
from almanac.core.spec import Initialiser, Normal
from almanac.core.weight import StoredWeight


class LearnedPositions(Leaf):
    """positions int64 [batch, time] -> [batch, time, hidden]; ``weight`` [offset + length, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        length: int  # places the table holds
        hidden: int
        axes: tuple[str, str] = ("none", "embed")
        initialiser: Initialiser = Normal()
        offset: int = 0  # rows before that of position 0 (2 in OPT and BART)

        def build(self) -> LearnedPositions:
            return LearnedPositions(self)

    def __init__(self, spec: LearnedPositions.Spec) -> None:
        super().__init__((spec.length + spec.offset, spec.hidden), axes=spec.axes, initialiser=spec.initialiser)
        self.bias = None
        self.offset = spec.offset

    def compute(self, positions: Tensor) -> Tensor:
        table, positions = self.weight, positions + self.offset if self.offset else positions
        return table.embed(positions) if isinstance(table, StoredWeight) else F.embedding(positions, table)
