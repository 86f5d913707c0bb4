"""A step computed twice: the same data, dice and weights must give the same bits, or the machine computes wrongly.

Processors that return wrong numbers without telling are rare and real, and one wrong gradient is enough to spoil a run
(Hochschild 2021, "Cores that don't count", HotOS). A step that is computed again and differs is computed a third time: if
two of the three agree, theirs is taken and the fault was transient; if none do, the run stops before the update.

Every ``recheck_every``-th step costs twice its time and one more copy of the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.errors import TrainingError

EQUAL, TRANSIENT = "equal", "transient"


@dataclass(frozen=True)
class Gradients:
    """What a pass over the data of a step gives: the loss, sums of metrics, and gradients where ``parameters`` keep them."""

    loss: float
    sums: dict[str, float]
    parameters: Mapping[str, nn.Parameter]

    def copy(self) -> dict[str, Tensor | None]:
        """The gradients by parameter name, in memory of their own."""
        return {name: None if p.grad is None else p.grad.clone() for name, p in self.parameters.items()}


def agreed(found: Gradients, compute: Callable[[], Gradients | None]) -> tuple[Gradients | None, str | None]:
    """``found``, or what the majority of three says, left in the parameters; and whether there was a fault.

    ``compute`` does the same work again from the same state; it returns None where the run was asked to stop.

    Raises TrainingError if it comes out differently every time.
    """
    seen: list[tuple[Gradients, dict[str, Tensor | None]]] = [(found, found.copy())]
    while len(seen) < 3:
        again = compute()
        if again is None:
            return None, None
        gradients = again.copy()
        if any(_same(again, gradients, *before) for before in seen):
            return again, EQUAL if len(seen) == 1 else TRANSIENT
        seen.append((again, gradients))
    raise TrainingError(
        "A step was computed three times from the same state, with three results; nothing was updated",
        remedy="Check the machine's memory and processor; if a kernel of yours is not deterministic, leave out rechecks.",
    )


def _same(one: Gradients, ones: dict[str, Tensor | None], other: Gradients, others: dict[str, Tensor | None]) -> bool:
    def equal(name: str) -> bool:
        a, b = ones[name], others[name]
        return a is b if a is None or b is None else _bits_equal(a, b)

    losses_equal = one.loss == other.loss or (math.isnan(one.loss) and math.isnan(other.loss))
    return losses_equal and all(equal(name) for name in ones)


def _bits_equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
