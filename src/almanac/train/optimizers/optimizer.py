"""What every optimizer obeys: a value that makes a ``torch.optim`` optimizer over named parameters.

Those of ours are an update of one parameter, a function of tensors in its own file, run by `PerParameter`. An update keeps
its memory in the parameter's state, as tensors and whole numbers, which checkpoints save bit for bit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.core.value import Value

State = dict[str, Any]
"""What an update remembers of one parameter, empty before the first: tensors, and ``step`` as an int."""

Update = Callable[[Tensor, Tensor, State, Mapping[str, Any]], None]
"""(parameter, its gradient, its state, its group with ``lr`` and ``weight_decay``); changes parameter and state in place."""


@dataclass(frozen=True, kw_only=True)
class Optimizer(Value):
    """How gradients become updates. The loop sets the learning rate of every step."""

    @abstractmethod
    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over exactly these parameters, none of them twice."""

    @abstractmethod
    def state_bytes(self, parameters: Mapping[str, nn.Parameter]) -> int:
        """Memory that the states will take once every parameter had a gradient, counters aside."""


class PerParameter(torch.optim.Optimizer):
    """Runs each group's ``update`` on every parameter that has a gradient, one after another."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        super().__init__([dict(group) for group in groups], {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    group["update"](parameter, parameter.grad, self.state[parameter], group)


def decaying(parameters: Sequence[nn.Parameter], weight_decay: float, **fields: Any) -> list[dict[str, Any]]:
    """Groups with the decay on matrices alone; those without a parameter are left out."""
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    vectors = [parameter for parameter in parameters if parameter.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, **fields},
        {"params": vectors, "weight_decay": 0.0, **fields},
    ]
    return [group for group in groups if group["params"]]


def require_rates(**given: float) -> None:
    """Raises UnsupportedError unless every moment's rate is in [0, 1)."""
    for name, value in given.items():
        if not 0 <= value < 1:
            raise UnsupportedError(f"{name} is {value:g}", remedy="Give a number from 0 up to, not including, 1.")
