"""Lion: the sign of a momentum, so that every number moves by the same amount, and one moment instead of two.

Chen 2023, arXiv 2302.06675, algorithm 2, found by a search over programs:

    c = β1 m + (1 - β1) g;    θ ← θ - η (sign(c) + λ θ);    m ← β2 m + (1 - β2) g

The gradient of now counts more in the update (β1) than in the memory (β2). All entries moving by η, the rate should be 3 to
10 times smaller than AdamW's and the decay as much larger (section 5). Decay is on matrices only, as everywhere here.

Legend: g gradient, m momentum, η rate, λ decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from almanac.train.optimizers.optimizer import Optimizer, PerParameter, State, decaying, require_rates


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """4 bytes of state a parameter."""

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_rates(beta1=self.beta1, beta2=self.beta2)

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return PerParameter(decaying(list(parameters.values()), self.weight_decay, update=self.update))

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        return sum(parameter.nbytes for parameter in parameters.values())

    def update(self, parameter: Tensor, gradient: Tensor, state: State, group: Mapping[str, Any]) -> None:
        """One step of one parameter."""
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"]
        direction = momentum.lerp(gradient, 1 - self.beta1).sign_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
        momentum.lerp_(gradient, 1 - self.beta2)
