"""Many linear maps as one leaf, and the channels made of them: every row goes through the map of its own expert.

Shazeer 2017, arXiv 1701.06538. Rows come sorted by expert (`grouped.sorted_by_group`), so that each map meets all of its rows
at once; a product over all experts is one call, not a loop.

Legend: n rows (token and expert pairs), e experts; weight [e, out, in]; bias [e, out]; ends int64 [e].
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Leaf, Site
from almanac.core.spec import Initialiser, Normal
from almanac.core.weight import StoredWeight
from almanac.nn.activation import Activation, Gelu, Silu
from almanac.nn.channel.moe.grouped import grouped_product, groups_of


class Experts(Leaf):
    """x [n, in], ends [e] -> [n, out]; rows behind the last end are nobody's, and what they become is undefined."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        num_experts: int
        in_features: int
        out_features: int
        bias: bool = False
        axes: tuple[str, str, str] = ("expert", "ffn", "embed")  # logical names of [e, out, in]
        initialiser: Initialiser = Normal()

        def __post_init__(self) -> None:
            if min(self.num_experts, self.in_features, self.out_features) < 1:
                raise ShapeError(
                    f"{self.num_experts} experts from {self.in_features} to {self.out_features} features",
                    remedy="Give whole numbers from 1.",
                )

        def build(self) -> Experts:
            return Experts(self)

    def __init__(self, spec: Experts.Spec) -> None:
        shape = (spec.num_experts, spec.out_features, spec.in_features)
        super().__init__(shape, axes=spec.axes, initialiser=spec.initialiser)
        self.register_parameter("bias", nn.Parameter(torch.zeros(shape[:2])) if spec.bias else None)

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        return biased(self.product(x, ends), self.bias, ends)

    def product(self, x: Tensor, ends: Tensor) -> Tensor:
        """What the weight alone makes of the rows, [n, out]."""
        if not isinstance(self.weight, StoredWeight):
            return grouped_product(x, self.weight, ends)
        if torch.compiler.is_compiling():
            return grouped_product(x, self.weight.dense(), ends)
        return self.weight.apply_grouped(x, ends)


def biased(y: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """y [n, out] plus the bias [e, out] of each row's expert."""
    if bias is None:
        return y
    return y + bias[groups_of(ends, len(y)).clamp(max=len(bias) - 1)].to(y.dtype)


@dataclass(frozen=True, kw_only=True)
class ExpertsSpec(spec.Spec):
    """What a mixture asks of the channels it sends tokens to: rows sorted by expert [n, hidden], ends [e] -> rows."""

    @property
    @abstractmethod
    def num_experts(self) -> int:
        """How many there are."""


class GatedExperts(Site):
    """down(act(gate(x)) · up(x)) by each row's expert: x [n, hidden], ends [e] -> [n, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(ExpertsSpec):
        gate: Experts.Spec
        up: Experts.Spec
        down: Experts.Spec
        activation: Activation = Silu()

        @property
        def num_experts(self) -> int:
            return self.gate.num_experts

        def __post_init__(self) -> None:
            require_one_count(self.gate, self.up, self.down)

        def build(self) -> GatedExperts:
            return GatedExperts(self)

    def __init__(self, spec: GatedExperts.Spec) -> None:
        super().__init__()
        self.gate, self.up, self.down = spec.gate.build(), spec.up.build(), spec.down.build()
        self.activation = spec.activation

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(x, ends)) * self.up(x, ends), ends)


class DenseExperts(Site):
    """down(act(up(x))) by each row's expert, as in GShard and Switch: x [n, hidden], ends [e] -> [n, hidden]."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(ExpertsSpec):
        up: Experts.Spec
        down: Experts.Spec
        activation: Activation = Gelu()

        @property
        def num_experts(self) -> int:
            return self.up.num_experts

        def __post_init__(self) -> None:
            require_one_count(self.up, self.down)

        def build(self) -> DenseExperts:
            return DenseExperts(self)

    def __init__(self, spec: DenseExperts.Spec) -> None:
        super().__init__()
        self.up, self.down = spec.up.build(), spec.down.build()
        self.activation = spec.activation

    def compute(self, x: Tensor, ends: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x, ends)), ends)


def require_one_count(*maps: Experts.Spec) -> None:
    """Raises ShapeError unless all maps have as many experts."""
    counts = [item.num_experts for item in maps]
    if len(set(counts)) != 1:
        raise ShapeError(f"Maps of {counts} experts in one channel", remedy="Give all maps the same number.")


def inward(num_experts: int, hidden: int, intermediate: int, *, bias: bool = False) -> Experts.Spec:
    """The maps into the experts' inner width."""
    return Experts.Spec(num_experts=num_experts, in_features=hidden, out_features=intermediate, bias=bias)


def outward(num_experts: int, hidden: int, intermediate: int, *, bias: bool = False) -> Experts.Spec:
    """The maps back."""
    return Experts.Spec(
        num_experts=num_experts,
        in_features=intermediate,
        out_features=hidden,
        bias=bias,
        axes=("expert", "embed", "ffn"),
    )
