"""A run under way: what learns, the optimizer, the place in the data, the counters; and all of it as tensors and JSON.

What :meth:`Training.capture` returns decides every later step, so that a run restored from it continues bit for bit
(on one machine, build and thread count).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from almanac.core.errors import FileFormatError, TrainingError
from almanac.train.parallel.parallel import Alone, Parallel
from almanac.train.precision import LossScale
from almanac.train.settings import TrainSettings
from almanac.train.spikes import LossStatistics

PARAMETER, OPTIMIZER, KEEPER, RNG = "parameter/", "optimizer/", "keeper/", "rng/torch"


Place = tuple[dict[str, int], Tensor]
"""A place in the data, and the state of the dice."""


class Batches(Protocol):
    """The steps of a run: each item is the list of micro-batches of one optimizer step."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[list[Any]]: ...
    def __next__(self) -> list[Any]: ...
    def state(self) -> dict[str, int]: ...
    def load(self, state: dict[str, int]) -> None: ...
    def digest(self) -> str: ...


class Keeper(ABC):
    """A listener whose memory is saved with the run, such as an average of the weights."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What tells it from the other keepers of a run."""

    @abstractmethod
    def state(self) -> Mapping[str, Tensor]:
        """Its memory; the tensors are written before the next step."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes to a memory that was saved."""


@dataclass
class Counters:
    """Running statistics; none of them ever takes in a number that is not finite."""

    step: int = 0  # steps whose data were used, skipped ones included
    skipped: int = 0  # steps without an update
    bad_in_a_row: int = 0
    rollbacks: int = 0  # returns to an earlier checkpoint
    targets: float = 0.0  # sum of the normalisers
    losses: LossStatistics = field(default_factory=LossStatistics)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Counters:
        """As they were written into a checkpoint."""
        plain = {name: value for name, value in facts.items() if name not in ("losses", "smoothed_loss")}
        # before there were statistics, checkpoints held the mean alone
        losses = facts.get("losses", {"mean": facts.get("smoothed_loss")})
        return cls(**plain, losses=LossStatistics(**losses))

    def good(self, loss: float, targets: float) -> None:
        """Takes in a step that updated the weights."""
        self.bad_in_a_row = 0
        self.targets += targets
        self.losses.take(loss)

    def bad(self) -> None:
        """Takes in a step that did not."""
        self.skipped += 1
        self.bad_in_a_row += 1


@dataclass(frozen=True)
class Snapshot:
    """All that decides how a run goes on: tensors by name, and facts fit for JSON."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass
class Training:
    """The live state of a run. ``parameters`` are exactly those that require gradients, or what of them lies here."""

    network: nn.Module
    batches: Batches
    settings: TrainSettings
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scale: LossScale
    keepers: dict[str, Keeper] = field(default_factory=dict[str, Keeper])
    counters: Counters = field(default_factory=Counters)
    parallel: Parallel = field(default_factory=Alone)

    @classmethod
    def begin(
        cls,
        network: nn.Module,
        batches: Batches,
        *,
        settings: TrainSettings,
        keepers: Sequence[Keeper] = (),
        parallel: Parallel | None = None,
    ) -> Training:
        """A run at its first step.

        Raises TrainingError if no parameter requires a gradient, or two keepers have one name.
        """
        parallel = parallel or Alone()
        parameters, batches = parallel.parameters(network), parallel.batches(batches)
        if not parameters:
            raise TrainingError(
                "No parameter of this network requires a gradient", remedy="Attach an adapter, or unfreeze weights."
            )
        named = {keeper.name: keeper for keeper in keepers}
        if len(named) != len(keepers):
            raise TrainingError("Two averages or other keepers have one name", remedy="Give each its own.")
        optimizer, scale = settings.optimizer.build(parameters), settings.precision.loss_scale()
        optimizer.zero_grad()  # gradients that somebody left are none of this run's
        return cls(network, batches, settings, parameters, optimizer, scale, named, parallel=parallel)

    def set_rate(self) -> float:
        """Gives the optimizer the learning rate of the step that comes now, and returns it."""
        rate = self.settings.rate(self.counters.step, len(self.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def place(self) -> Place:
        """Where the data and the dice stand, for :meth:`go_back`."""
        return self.batches.state(), torch.get_rng_state()

    def go_back(self, place: Place) -> None:
        """Gives up what was done since ``place`` was taken, weights not having been updated."""
        self.optimizer.zero_grad()
        self.batches.load(place[0])
        torch.set_rng_state(place[1])

    def capture(self) -> Snapshot:
        """The state between two steps; tensors are the live ones, to be written before the next step.

        The fact ``anchor`` tells whether a run may go back to it: it is between good steps, and saved however often the run
        was stopped, so that one that was stopped goes back to where one that was not goes back to.
        """
        tensors = {PARAMETER + name: parameter.detach() for name, parameter in self.parameters.items()}
        scalars: dict[str, dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{OPTIMIZER}{name}/{key}"] = value
                else:
                    scalars.setdefault(name, {})[key] = value
        for name, keeper in self.keepers.items():
            tensors |= {f"{KEEPER}{name}/{key}": tensor for key, tensor in keeper.state().items()}
        tensors[RNG] = torch.get_rng_state()
        facts = {
            "counters": asdict(self.counters),
            "batches": self.batches.state(),
            "optimizer": scalars,
            "scale": {"value": self.scale.value, "good": self.scale.good},
            "keepers": sorted(self.keepers),
            "threads": torch.get_num_threads(),
            "anchor": self.counters.bad_in_a_row == 0 and self.counters.step % self.settings.save_every == 0,
        }
        return Snapshot(tensors, facts)

    def roll_back(self, snapshot: Snapshot) -> None:
        """Takes weights, moments, averages, loss scale and loss statistics from an earlier state of this run.

        The step, the place in the data and the dice stay: what was learned since is given up, and its data are not used
        again. Raises FileFormatError as :meth:`restore`.
        """
        place, now = self.place(), self.counters
        self.restore(snapshot)
        self.batches.load(place[0])
        torch.set_rng_state(place[1])
        self.counters = replace(now, bad_in_a_row=0, rollbacks=now.rollbacks + 1, losses=self.counters.losses)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes to the state that was captured.

        Raises FileFormatError, before anything is changed, if the snapshot is of other parameters or keepers.
        """
        tensors = snapshot.tensors
        saved = {name.removeprefix(PARAMETER): t for name, t in tensors.items() if name.startswith(PARAMETER)}
        shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
        if shapes != {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}:
            raise FileFormatError(
                "The checkpoint holds other parameters than the network trains now",
                remedy="Resume with the model and the plan that the run was started with.",
            )
        kept = snapshot.facts.get("keepers", [])  # absent where the checkpoint is of before there were any
        if kept != sorted(self.keepers):
            raise FileFormatError(
                f"The checkpoint holds the memory of {kept}, this run keeps {sorted(self.keepers)}",
                remedy="Resume with the averages that the run was started with.",
            )
        self.counters = Counters.from_facts(snapshot.facts["counters"])
        self.batches.load(snapshot.facts["batches"])
        self.scale = replace(self.scale, **snapshot.facts.get("scale", {}))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved[name])
        states = _optimizer_states(tensors, snapshot.facts["optimizer"], self.parameters)
        self.optimizer.state.clear()
        self.optimizer.state.update(states)
        for name, keeper in self.keepers.items():
            prefix = f"{KEEPER}{name}/"
            keeper.load({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
        torch.set_rng_state(tensors[RNG].clone())


def _optimizer_states(
    tensors: Mapping[str, Tensor], scalars: Mapping[str, dict[str, Any]], parameters: Mapping[str, nn.Parameter]
) -> dict[nn.Parameter, dict[str, Any]]:
    states: dict[nn.Parameter, dict[str, Any]] = {parameters[name]: dict(items) for name, items in scalars.items()}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            owner, _, key = name.removeprefix(OPTIMIZER).rpartition("/")
            state = states.setdefault(parameters[owner], {})
            state[key] = tensor.clone()
    return states
