"""GPT-OSS's experts: a clamped SwiGLU whose linear half is shifted by one.

OpenAI 2025, arXiv 2508.10925, section 2 ("unconventional", with clamping and a residual connection):

    y = down((min(max(up, -limit), limit) + 1) · g · sigmoid(alpha · g)),   g = min(gate, limit)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.nn.channel.moe.experts import Experts, ExpertsSpec, require_one_count


class ClampedExperts(Site):
    """x [n, hidden], ends [e] -> [n, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(ExpertsSpec):
        gate: Experts.Spec
        up: Experts.Spec
        down: Experts.Spec
        alpha: float = 1.702
        limit: float = 7.0

        @property
        def num_experts(self) -> int:
            return self.gate.num_experts

        def __post_init__(self) -> None:
            require_one_count(self.gate, self.up, self.down)
            if self.limit <= 0:
                raise ShapeError(f"Values clamped to ±{self.limit}", remedy="Give a positive limit.")

        def build(self) -> ClampedExperts:
            return ClampedExperts(self)

    def __init__(self, spec: ClampedExperts.Spec) -> None:
        super().__init__()
        self.gate, self.up, self.down = spec.gate.build(), spec.up.build(), spec.down.build()
        self.alpha, self.limit = spec.alpha, spec.limit

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        inner = clamped_swiglu(self.gate(x, ends), self.up(x, ends), alpha=self.alpha, limit=self.limit)
        return self.down(inner, ends)


def clamped_swiglu(gate: Tensor, up: Tensor, *, alpha: float, limit: float) -> Tensor:
    """The equation above without the last map."""
    gate = gate.clamp(max=limit)
    return (up.clamp(-limit, limit) + 1) * gate * torch.sigmoid(alpha * gate)
