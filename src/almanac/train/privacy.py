"""Private gradients: each example's is clipped, the sum gets noise, so that no example moves a step by much.

DP-SGD, Abadi 2016, arXiv 1607.00133, algorithm 1: a sample holds every record with probability q; of each record's gradient g
over all parameters together

    g ← g · min(1, C / ‖g‖),    G = (Σ g + N(0, σ²C² I)) / L,    L = q · records, the *expected* size of a sample

What σ, q and the number of steps promise, ``trust.accountant`` says, and only if samples are drawn as `sample` does.
Deviations: clipping is over all parameters, not layer by layer; gradients come from one backward pass for each example
rather than from a batched one, which holds for every model and costs time but no memory; no Gaussian is added to the
parameters' own update rule, so any optimizer may use G.

Legend: C ``clip``; σ ``noise``; L ``lot``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from almanac.core.errors import RequestError, TrainingError
from almanac.core.value import Value


@dataclass(frozen=True, kw_only=True)
class Privacy(Value):
    """``clip`` (norm of one example's gradient), ``noise`` (its deviation over the clip), ``lot`` (expected examples)."""

    clip: float = 1.0
    noise: float = 1.0
    lot: float = 64.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0 and self.noise >= 0 and self.lot > 0):
            raise RequestError(
                f"Clipping at {self.clip} with noise {self.noise} and a lot of {self.lot}",
                remedy="Give a clip and a lot above 0, and noise of 0 (no privacy) or more.",
            )


def sample(records: int, rate: float, generator: torch.Generator) -> list[int]:
    """A Poisson sample: each of ``records`` is in it with probability ``rate``, alone; it may be empty."""
    if not 0 <= rate <= 1:
        raise RequestError(f"A sampling rate of {rate}", remedy="Give a probability.")
    return torch.nonzero(torch.rand(records, generator=generator) < rate).flatten().tolist()


def clipped_sum(
    losses: Iterable[Tensor], parameters: Sequence[nn.Parameter], *, clip: float
) -> tuple[list[Tensor], list[float]]:
    """The sum of the clipped gradients of ``losses``, one scalar for each example, and their norms before clipping.

    ``losses`` may be a generator, so that only one example's graph is held. A loss must depend on its own example
    alone: anything taken over a batch (its mean, batch statistics) breaks the promise unseen.

    Raises:
        TrainingError: a gradient that is not finite; one such example would poison the sum.
    """
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    norms: list[float] = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        norm = float(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())
        if not math.isfinite(norm):
            raise TrainingError(
                f"The gradient of example {len(norms)} is not finite", remedy="Leave the example out or lower the rate."
            )
        scale = min(1.0, clip / norm) if norm > 0 else 1.0
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient, alpha=scale)
        norms.append(norm)
    return sums, norms


def privatise(sums: Sequence[Tensor], privacy: Privacy, generator: torch.Generator) -> list[Tensor]:
    """The gradients of a step from clipped sums: noise added once, divided by the expected size of the sample.

    ``generator`` must go on from step to step: noise drawn anew from one seed cancels between steps.
    """
    deviation = privacy.noise * privacy.clip
    return [
        (total + deviation * torch.randn(total.shape, generator=generator, dtype=total.dtype)) / privacy.lot
        for total in sums
    ]


def private_gradients(
    losses: Iterable[Tensor], parameters: Sequence[nn.Parameter], privacy: Privacy, generator: torch.Generator
) -> list[float]:
    """Puts the private gradient of a step into each parameter's ``grad``; returns the norms before clipping.

    Raises:
        TrainingError: no parameter to train, or a gradient that is not finite.
    """
    if not parameters:
        raise TrainingError("There is nothing to train", remedy="Attach an adapter or unfreeze parameters.")
    sums, norms = clipped_sum(losses, parameters, clip=privacy.clip)
    for parameter, gradient in zip(parameters, privatise(sums, privacy, generator), strict=True):
        parameter.grad = gradient
    return norms
