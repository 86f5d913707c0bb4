"""ALiBi as Falcon was trained with it (Almazrouei 2023, arXiv 2311.16867): slope and bias rounded to bfloat16, and the bias
divided along with the score it is added to.

Rounding makes the bias a function of the key's position and not of the distance alone, so it is made of that position: a
softmax does not see what all keys of a query have in common. Beyond 256 tokens neighbouring keys begin to share a bias.

Legend: b batch, t queries, l keys, n heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.technique import Derived
from almanac.nn.positions.alibi import slopes
from almanac.nn.positions.score_bias import ScoreBias


class RoundedAlibi(ScoreBias, Derived):
    """slope · key position / ``divisor``, rounded to bfloat16 before it is divided."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(ScoreBias.Spec):
        divisor: float  # of the scores: sqrt(head_dim)

        def __post_init__(self) -> None:
            if self.num_heads < 1 or not self.divisor > 0:
                raise ShapeError(
                    f"ALiBi for {self.num_heads} heads, divided by {self.divisor}",
                    remedy="Give one head at least and a number above 0.",
                )

        def build(self) -> RoundedAlibi:
            return RoundedAlibi(self)

    def __init__(self, spec: RoundedAlibi.Spec) -> None:
        super().__init__()
        self.num_heads, self.divisor = spec.num_heads, spec.divisor
        self.register_buffer("slopes", torch.empty(spec.num_heads), persistent=False)
        if not self.slopes.is_meta:
            self.derive()

    def derive(self) -> None:
        # no cast of the model can round what is a bfloat16 already
        self.slopes = torch.tensor(slopes(self.num_heads)).to(torch.bfloat16).to(torch.float32)

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        product = self.slopes.to(torch.bfloat16)[:, None] * key_positions[:, None, :].to(torch.bfloat16)  # [b, n, l]
        bias = product.to(torch.promote_types(self.slopes.dtype, torch.float32)) / self.divisor
        return bias.unsqueeze(2).expand(-1, -1, query_positions.shape[1], -1)
