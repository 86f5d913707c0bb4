"""The mixture of experts: a router sends every token to a few of many channels, whose answers are summed by weight.

    y = Σ over chosen e of w_e(x) · expert_e(x)   [+ σ(g x) · shared(x)]

Shazeer 2017, arXiv 1701.06538, equation 1; experts that all tokens share: DeepSeekMoE (Dai 2024, arXiv 2401.06066), gated in
Qwen2-MoE (arXiv 2407.10671). A token that finds no room is passed on by the block's residual connection alone.

Legend: b rows, t tokens, h hidden, k experts of a token, n = b · t · k pairs of a token and an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from almanac.core import spec
from almanac.core.errors import ShapeError
from almanac.core.site import Site
from almanac.nn.activation import Activation, Silu
from almanac.nn.channel.gated import gated
from almanac.nn.channel.moe.experts import ExpertsSpec, GatedExperts, inward, outward
from almanac.nn.channel.moe.grouped import sorted_by_group
from almanac.nn.channel.moe.routing import Router, Routing, router
from almanac.nn.linear import Linear

MIN_ROWS = 4  # below it a BLAS takes other kernels, which round sums otherwise


class Mixture(Site):
    """x [b, t, h] (or [t, h]) -> the same shape."""

    @dataclass(frozen=True, kw_only=True)
    class Spec(spec.Spec):
        router: Router.Spec
        experts: ExpertsSpec
        shared: spec.Spec | None = None  # a channel that every token goes through as well
        shared_gate: Linear.Spec | None = None  # hidden -> 1: how much that counts, after a sigmoid

        def __post_init__(self) -> None:
            if self.experts.num_experts != self.router.num_experts:
                raise ShapeError(
                    f"A router to {self.router.num_experts} experts and a channel of {self.experts.num_experts}",
                    remedy="Give the router as many outputs as there are experts.",
                )
            if self.shared_gate is not None and self.shared is None:
                raise ShapeError("A gate of shared experts without any", remedy="Give shared experts too.")

        def build(self) -> Mixture:
            return Mixture(self)

    def __init__(self, spec: Mixture.Spec) -> None:
        super().__init__()
        self.router, self.experts = spec.router.build(), spec.experts.build()
        self.shared = spec.shared.build() if spec.shared is not None else None
        self.shared_gate = spec.shared_gate.build() if spec.shared_gate is not None else None

    def compute(self, x: Tensor) -> Tensor:
        y = self.routed(x, self.router(x))
        if self.shared is None:
            return y
        shared = self.shared(x)
        return y + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared)

    def routed(self, x: Tensor, routing: Routing) -> Tensor:
        """What the chosen experts make of x."""
        chosen = routing.experts.shape[-1]
        scales_input = self.router.rule.scales_input
        places, ends, total = slots(routing.experts.flatten(0, -2), self.router.num_experts)
        weights = routing.weights.flatten(0, -2).to(x.dtype)  # [b t, k]
        tokens = torch.arange(len(places), device=x.device) // chosen
        if scales_input or total != len(places):
            pairs = x.flatten(0, -2).index_select(0, tokens)  # [n, h]
            pairs = pairs * weights.view(-1, 1) if scales_input else pairs
            rows = pairs.new_zeros(total, x.shape[-1]).index_copy(0, places, pairs)
        else:
            rows = x.flatten(0, -2).index_select(0, torch.empty_like(tokens).scatter(0, places, tokens))
        said = self.experts(rows, ends).index_select(0, places).unflatten(0, (-1, chosen))
        return (said.sum(1) if scales_input else (weights.unsqueeze(1) @ said).squeeze(1)).view(x.shape)


def slots(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, int]:
    """experts int64 [tokens, k] -> (row of each pair, int64 [n]; ends int64 [num_experts]; rows in all), sorted by expert.

    Where products are made by a BLAS, groups get at least MIN_ROWS rows, the rest of them zero: then a token's numbers do not
    depend, not even in the last bit, on which experts the others chose. One or two tokens alone go without.
    """
    pairs = experts.flatten()
    order, ends = sorted_by_group(pairs, num_experts)
    at, total = torch.arange(len(pairs), device=pairs.device), len(pairs)
    if not torch.compiler.is_compiling() and pairs.device.type == "cpu" and len(experts) >= MIN_ROWS:
        counts = ends.diff(prepend=ends.new_zeros(1))
        added = torch.where(counts > 0, (MIN_ROWS - counts).clamp(min=0), 0)
        shift = added.cumsum(0)
        at = at + (shift - added)[pairs[order]]
        ends, total = ends + shift, total + int(shift[-1])
    return torch.empty_like(order).scatter(0, order, at), ends, total


def gated_experts(
    hidden: int,
    intermediate: int,
    *,
    num_experts: int,
    num_chosen: int,
    shared: int = 0,
    activation: Activation | None = None,
) -> Mixture.Spec:
    """The spec of gated experts behind a softmax router; ``shared`` is the width of a gated channel for all tokens."""
    into = inward(num_experts, hidden, intermediate)
    back = outward(num_experts, hidden, intermediate)
    return Mixture.Spec(
        router=router(hidden, num_experts, num_chosen),
        experts=GatedExperts.Spec(gate=into, up=into, down=back, activation=activation or Silu()),
        shared=gated(hidden, shared, activation=activation) if shared else None,
    )
