"""What the loop tells its listeners. A listener is any callable that takes an event; it never sees the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from almanac.train.training import Snapshot


@dataclass(frozen=True)
class Started:
    """The run begins or goes on.

    - ``step``: steps already done; ``steps``: of the whole run
    - ``trainable``: numbers that are being learned
    - ``snapshot``: gives the state; ``record``: sets a section of the run folder's run.json, if there is a folder
    - ``notes``: what the reader should know, such as a damaged checkpoint that was passed over
    """

    step: int
    steps: int
    trainable: int
    snapshot: Callable[[], Snapshot]
    record: Callable[[str, Any], None]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepDone:
    """One optimizer step.

    - ``step``: from 1; ``epoch``: from 0, of the step that comes next
    - ``loss``: per target, or None where it was not finite; ``metrics``: the objective's sums per target
    - ``smoothed_loss``: running mean; ``gradient_norm``: before clipping, None where not finite
    - ``targets``: the step's normaliser; ``tokens``: that went through the network, padding included
    - ``skipped``: None, or why the weights were not updated: "loss" or "gradient" (not finite), "spike"
    - ``rolled_back_to``: the step whose weights the run has gone back to after this one, if it has
    - ``recheck``: of a step that was computed twice: "equal", or "transient", where a third time agreed with one
    - ``seconds``: wall time
    """

    step: int
    steps: int
    epoch: int
    loss: float | None
    smoothed_loss: float | None
    metrics: Mapping[str, float]
    learning_rate: float
    gradient_norm: float | None
    targets: float
    tokens: int
    seconds: float
    skipped: str | None = None
    rolled_back_to: int | None = None
    recheck: str | None = None


@dataclass(frozen=True)
class Forecasted:
    """What the run will need, told once it is known: ``seconds``, ``peak_bytes``, ``watt_hours``, whole run."""

    seconds: float
    peak_bytes: int
    watt_hours: float


@dataclass(frozen=True)
class Saving:
    """Now is the time to save; ``snapshot`` gives the state after ``step`` steps."""

    step: int
    snapshot: Callable[[], Snapshot]


@dataclass(frozen=True)
class Ended:
    """The run is over (``finished``) or was asked to stop after ``step`` steps."""

    step: int
    steps: int
    finished: bool


Event = Started | StepDone | Forecasted | Saving | Ended
Listener = Callable[[Event], object]
