"""What one run of one arm gives back: its metrics, what it spent, and the curves behind the figure. All of it JSON."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from almanac.core.errors import AlmanacError, FileFormatError

Curve = Sequence[tuple[float, float]]


class GateError(AlmanacError):
    """The experiment is not sound as it ran: items of the test were trained on, budgets differ, a baseline cannot play."""


@dataclass(frozen=True)
class Outcome:
    """One arm, one seed.

    - ``metrics``: finite numbers by name; ``items``: for cards of unit "item", one value per item and metric
    - ``budget``: what was spent, by name ("flops", "tokens", "parameters", "steps" ...)
    - ``curves``: points (x, y) by name; ``data``: digest of the data used, "" where there is none
    """

    metrics: Mapping[str, float]
    budget: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    items: Mapping[str, Sequence[float]] = field(default_factory=dict)
    data: str = ""

    def __post_init__(self) -> None:
        numbers = [*self.metrics.values(), *self.budget.values(), *(v for item in self.items.values() for v in item)]
        if not all(math.isfinite(number) for number in numbers):
            broken = [name for name, value in self.metrics.items() if not math.isfinite(value)]
            raise GateError(
                f"A metric is not a finite number: {broken[:3]}", remedy="Look at the run: it diverged or divided by 0."
            )

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "budget": {name: float(value) for name, value in self.budget.items()},
            "curves": {name: [[float(x), float(y)] for x, y in points] for name, points in self.curves.items()},
            "items": {name: [float(value) for value in values] for name, values in self.items.items()},
            "data": self.data,
        }

    @classmethod
    def from_dict(cls, data: Any) -> Outcome:
        """What ``to_dict`` wrote. Raises FileFormatError for anything else."""
        try:
            curves = {name: [(float(x), float(y)) for x, y in points] for name, points in data["curves"].items()}
            return cls(dict(data["metrics"]), dict(data["budget"]), curves, dict(data["items"]), str(data["data"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(
                f"A stored outcome is damaged: {error}", remedy="Run the experiment again."
            ) from error


def require_disjoint(train: Iterable[object], test: Iterable[object]) -> None:
    """Raises GateError if an item of the test is among the training items; items are compared by their text's digest."""
    seen = {_digest(item) for item in train}
    if shared := sum(_digest(item) in seen for item in test):
        raise GateError(
            f"{shared} test items were trained on", remedy="Split before anything else is made of the data."
        )


def _digest(item: object) -> bytes:
    return hashlib.sha256(repr(item).encode()).digest()
