"""AdamW: Adam with the weight decay kept out of the moments. Loshchilov 2017, arXiv 1711.05101, algorithm 2.

Decay applies to matrices only: a norm's gain or a bias has no reason to be pulled to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.train.optimizers.optimizer import Optimizer, decaying


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Decay is 0 by default: adapters start at zero change, and pulling them there undoes what was learned."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            decaying(list(parameters.values()), self.weight_decay),
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=True,
        )

    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        return sum(2 * parameter.nbytes for parameter in parameters.values())

    def direction(self, gradient: Tensor, first: Tensor, second: Tensor, step: int) -> Tensor:
        """What the rate is multiplied with; takes the gradient into both moments, in place. ``step`` counts from 1.

        For optimizers that keep moments in a way of their own, or leave a part of the parameters to Adam.
        """
        first.lerp_(gradient, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        denominator = (second / (1 - self.beta2**step)).sqrt_().add_(self.epsilon)
        return first / (1 - self.beta1**step) / denominator
