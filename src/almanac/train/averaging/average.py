"""Averages of the weights along a run: a listener that keeps them, saved with the run, and evaluation under them.

What an average is, a rule says (`ema`, `uniform`, `lawa`). An average of weights lies where the noise of single steps cancels
(Polyak and Juditsky 1992); it helps while the rate is high and hardly after it has decayed. Averages are float32 whatever the
weights are, cover what learns alone, and take in no step without an update.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.errors import ShapeError, TrainingError
from almanac.core.value import Value
from almanac.train.events.event import Event, Started, StepDone
from almanac.train.training import PARAMETER, Keeper

Weights = Mapping[str, Tensor]
"""Tensors by parameter name."""

State = dict[str, Tensor]
"""What a rule remembers, by keys of its own; saved with the run."""


@dataclass(frozen=True, kw_only=True)
class AverageRule(Value):
    """Which weights of a run count how much. What is remembered is in the state, so that a rule is a value."""

    @abstractmethod
    def take(self, state: State, weights: Weights, progress: tuple[int, int]) -> None:
        """Takes in the weights after a step; ``progress``: the step, from 1, and the steps of the run."""

    @abstractmethod
    def mean(self, state: State) -> dict[str, Tensor]:
        """The average by parameter name, float32; empty before there is one."""


class Averaging(Keeper):
    """Listener. Two in one run need two names."""

    def __init__(self, rule: AverageRule, *, name: str = "average") -> None:
        self.rule = rule
        self._name = name
        self._state: State = {}
        self._live: Weights = {}

    @property
    def name(self) -> str:
        return self._name

    def state(self) -> dict[str, Tensor]:
        return self._state

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._state = {key: tensor.clone() for key, tensor in state.items()}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            tensors = event.snapshot().tensors  # the weights themselves: they are read again after every step
            self._live = {name.removeprefix(PARAMETER): t for name, t in tensors.items() if name.startswith(PARAMETER)}
            if event.step == 0:
                self._state = {}
        elif isinstance(event, StepDone) and event.skipped is None:
            self.rule.take(self._state, self._live, (event.step, event.steps))

    def weights(self) -> dict[str, Tensor]:
        """The average. Raises TrainingError if nothing was averaged yet."""
        found = self.rule.mean(self._state)
        if not found:
            raise TrainingError(
                f"{self._name} holds no weights yet", remedy="Train on, or let the average begin earlier."
            )
        return found


@contextlib.contextmanager
def averaged(network: nn.Module, weights: Weights) -> Iterator[nn.Module]:
    """Within the block the network has these weights; afterwards its own again, bit for bit."""
    before = {name: network.get_parameter(name).detach().clone() for name in weights}
    adopt(network, weights)
    try:
        yield network
    finally:
        adopt(network, before)


def adopt(network: nn.Module, weights: Weights) -> None:
    """Gives the network these weights, for good. Raises ShapeError, before anything is changed, for weights of another."""
    own = dict(network.named_parameters())
    wrong = [name for name, tensor in weights.items() if name not in own or own[name].shape != tensor.shape]
    if wrong:
        raise ShapeError(
            f"{wrong[0]} is not a weight of this network", remedy="Give averages of a run of this network."
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def mean_of(given: Sequence[Weights]) -> dict[str, Tensor]:
    """The uniform average of several sets of weights, such as checkpoints; float32.

    Raises ShapeError if there is none, or they are not of the same names and shapes.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in given]
    if not shapes or any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"{len(given)} sets of weights to average", remedy="Give one or more of one network.")
    return {name: torch.stack([weights[name].float() for weights in given]).mean(dim=0) for name in shapes[0]}
