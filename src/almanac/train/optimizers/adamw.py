"""AdamW: Adam with the weight decay kept out of the moments. Loshchilov 2017, arXiv 1711.05101, algorithm 2.

Decay applies to matrices only: a norm's gain or a bias has no reason to be pulled to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from almanac.train.optimizers.optimizer import Optimizer


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Decay is 0 by default: adapters start at zero change, and pulling them there undoes what was learned."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        matrices = [parameter for parameter in parameters.values() if parameter.dim() >= 2]
        vectors = [parameter for parameter in parameters.values() if parameter.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=0.0,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            fused=True,
        )
