"""A linear map through fewer dimensions, perhaps normalised there: up(norm(down(x))).

DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.2, makes its queries so; gated linear attention its decays (Yang 2023, arXiv
2312.06635, section 4.4).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.nn.linear import Linear


class LowRank(Site):
    """x [..., in_features] -> [..., out_features]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        down: Linear.Spec
        norm: spec.Spec | None = None
        up: Linear.Spec

        def __post_init__(self) -> None:
            if self.down.out_features != self.up.in_features:
                raise ShapeError(
                    f"Down to {self.down.out_features} and up from {self.up.in_features}",
                    remedy="Give both maps the same rank.",
                )

        def build(self) -> LowRank:
            return LowRank(self)

    def __init__(self, spec: LowRank.Spec) -> None:
        super().__init__()
        self.down, self.up = spec.down.build(), spec.up.build()
        self.norm = spec.norm.build() if spec.norm is not None else None

    def compute(self, x: Tensor) -> Tensor:
        inner = self.down(x)
        return self.up(inner if self.norm is None else self.norm(inner))
