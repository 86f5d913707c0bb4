"""Adafactor: the second moment of a matrix as row means times column means, and steps relative to a parameter's size.

Shazeer 2018, arXiv 1804.04235, algorithms 4 and 5. For a matrix n × m it remembers n + m numbers instead of 2 n m:

    β2 = 1 - t^-0.8;  R ← β2 R + (1 - β2) row means of g² + ε1;  C likewise by columns;  V = R Cᵀ / mean R
    u = g / √V,  divided by max(1, RMS(u) / d);    θ ← θ - max(ε2, RMS(θ)) · ρ · u

ρ is the rate of the schedule, of the order 1e-2, where AdamW would have 1e-3 or less. A vector keeps its whole second
moment. Deviations: no momentum unless ``beta1`` is given; decay, on matrices only, is ρ λ θ; the last two dimensions are
factored of a tensor that has more. Means, not sums, make V the same number and keep it in range.

Legend: g gradient, V second moment, t step from 1, d clip, RMS root mean square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from almanac.train.optimizers.optimizer import Optimizer, PerParameter, State, decaying, require_rates


@dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """``decay_power`` 0.8, ``clip`` d, ``tiny`` ε1 and ``smallest_scale`` ε2 are the paper's."""

    beta1: float = 0.0
    decay_power: float = 0.8
    clip: float = 1.0
    tiny: float = 1e-30
    smallest_scale: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_rates(beta1=self.beta1)

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return PerParameter(decaying(list(parameters.values()), self.weight_decay, update=self.update))

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        found = 0
        for parameter in parameters.values():
            *_, rows, columns = (1, 1, *parameter.shape)
            factors = parameter.numel() // columns + parameter.numel() // rows
            kept = factors if parameter.dim() >= 2 else parameter.numel()
            found += (kept + (parameter.numel() if self.beta1 else 0)) * parameter.element_size()
        return found

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Mapping[str, Any]) -> None:
        """One step of one parameter."""
        state["step"] = step = state.get("step", 0) + 1
        squares = gradient.square().add_(self.tiny)
        toward = float(step) ** -self.decay_power  # 1 - β2: at the first step all of it
        if parameter.dim() >= 2:
            rows = _toward(state, "rows", squares.mean(dim=-1), toward)
            columns = _toward(state, "columns", squares.mean(dim=-2), toward)
            inverse = inverse_root(rows, columns)
        else:
            inverse = _toward(state, "squares", squares, toward).rsqrt()
        direction = gradient * inverse
        direction.div_(max(1.0, rms(direction) / self.clip))
        size = max(self.smallest_scale, rms(parameter))
        if self.beta1:
            direction = _toward(state, "momentum", direction, 1 - self.beta1, start=0.0)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"] * size)


def inverse_root(rows: Tensor, columns: Tensor) -> Tensor:
    """1 / √V, [..., n, m], from row means [..., n] and column means [..., m] of the squares."""
    share = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt()
    return share.unsqueeze(-1) * columns.rsqrt().unsqueeze(-2)


def rms(tensor: Tensor) -> float:
    """The root mean square of all numbers."""
    return float(torch.linalg.vector_norm(tensor)) / max(tensor.numel(), 1) ** 0.5


def _toward(state: State, name: str, value: Tensor, share: float, *, start: float | None = None) -> Tensor:
    """The running mean called ``name``, moved by ``share`` of the way to ``value``; it begins there, or at ``start``."""
    if name not in state:
        state[name] = value.clone() if start is None else torch.full_like(value, start)
    return state[name].lerp_(value, share)
