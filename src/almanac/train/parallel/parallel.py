"""The seam between the loop and many processes: what a step must ask, and how one process answers.

The loop knows a `Parallel` alone. `Alone` is one process; `train.parallel.together` answers for a mesh.
"""

from __future__ import annotations

import contextlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from almanac.train.pieces import OneWriter, Writers

if TYPE_CHECKING:  # the settings name a mesh, and what runs by them stands above
    from almanac.train.settings import TrainSettings

Loss = Callable[[nn.Module, Any], tuple[Tensor, Mapping[str, Tensor]]]
"""(network, micro-batch) -> its share of the step's loss, and sums to report."""


class Parallel(ABC):
    """A run's processes, seen from one of them."""

    @property
    @abstractmethod
    def leads(self) -> bool:
        """Whether this process writes what is written once."""

    @abstractmethod
    def require(self, settings: TrainSettings, alters_network: bool, keepers: int) -> None:
        """Raises UnsupportedError for what processes cannot do together."""

    @abstractmethod
    def placed(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        """``network`` holds this process's part inside, and the whole again after."""

    @abstractmethod
    def parameters(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """What learns here, by name: plain tensors that an optimizer updates in place."""

    @abstractmethod
    def batches(self, batches: Any) -> Any:
        """The part of every step that is computed here."""

    @abstractmethod
    def seed(self, seed: int) -> int:
        """Of the dice: equal where processes compute the same, different where they see other data."""

    @abstractmethod
    def agree(self, own: tuple[float, float], stop: bool) -> tuple[tuple[float, float], bool]:
        """Weights and tokens of what is computed here -> of the whole step; and whether any process was asked to stop."""

    @abstractmethod
    def gradients(
        self, network: nn.Module, batches: Sequence[Any], loss: Loss, *, scale: float, stop: threading.Event
    ) -> tuple[float, dict[str, float]] | None:
        """Leaves the gradients of the scaled loss of the whole step in the parameters; returns that loss and the sums.

        None if the run was asked to stop on the way.
        """

    @abstractmethod
    def norm(self, parameters: Mapping[str, nn.Parameter]) -> float:
        """The norm of all gradients together, wherever they lie."""

    @abstractmethod
    def writers(self) -> Writers:
        """Who writes this run's checkpoints, and reads of them what each process needs."""


class Alone(Parallel):
    """One process."""

    @property
    def leads(self) -> bool:
        return True

    def require(self, settings: TrainSettings, alters_network: bool, keepers: int) -> None:
        return None

    def placed(self, network: nn.Module) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def parameters(self, network: nn.Module) -> dict[str, nn.Parameter]:
        return {name: p for name, p in network.named_parameters() if p.requires_grad}

    def batches(self, batches: Any) -> Any:
        return batches

    def seed(self, seed: int) -> int:
        return seed

    def agree(self, own: tuple[float, float], stop: bool) -> tuple[tuple[float, float], bool]:
        return own, stop

    def gradients(
        self, network: nn.Module, batches: Sequence[Any], loss: Loss, *, scale: float, stop: threading.Event
    ) -> tuple[float, dict[str, float]] | None:
        total, sums = 0.0, dict[str, float]()
        for batch in batches:
            if stop.is_set():
                return None
            value, metrics = loss(network, batch)
            total += value.item()
            if not math.isfinite(total):
                break
            (value * scale).backward()
            add_to(sums, metrics)
        return total, sums

    def norm(self, parameters: Mapping[str, nn.Parameter]) -> float:
        return float(torch.nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None]))

    def writers(self) -> Writers:
        return OneWriter()


def add_to(sums: dict[str, float], metrics: Mapping[str, Tensor]) -> None:
    """Adds a micro-batch's sums to those of its step."""
    for name, value in metrics.items():
        sums[name] = sums.get(name, 0.0) + float(value)
