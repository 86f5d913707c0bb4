"""What every optimizer obeys: a value that makes a ``torch.optim`` optimizer over named parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Optimizer(Value):
    """How gradients become updates. The loop sets the learning rate of every step."""

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over exactly these parameters, none of them twice."""
