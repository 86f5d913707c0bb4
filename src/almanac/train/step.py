"""One optimizer step: the normaliser over all micro-batches -> forward and backward of each -> gradient norm -> update.

A loss or a gradient that is not finite, or a loss that is a spike, ends the step *before* the update, whatever produced it;
where it may be the loss scale's doing (see ``train.precision``) the step is taken again with a smaller one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from almanac.objectives.next_token import Metrics
from almanac.train.criterion import Criterion
from almanac.train.events.event import StepDone
from almanac.train.recheck import Gradients, agreed
from almanac.train.training import Training

LOSS, GRADIENT, SPIKE = "loss", "gradient", "spike"


def step(training: Training, criterion: Criterion, stop: threading.Event) -> StepDone | None:
    """Takes the next step; None, with everything as before it, if the run was asked to stop in the middle.

    Raises TrainingError if a step that is computed again never comes out the same.
    """
    began, place, scale = time.perf_counter(), training.place(), training.scale.value
    rate = training.set_rate()
    while (taken := _take(training, criterion, stop)) is not None and taken.skipped == GRADIENT:
        if not training.scale.shrink():
            break
        training.go_back(place)
    if taken is None:
        training.go_back(place)
        return None
    counters = training.counters
    counters.step += 1
    if taken.skipped is None:
        counters.good(taken.loss, taken.targets)
        training.scale.grow()
    else:
        counters.bad()
        training.scale.value = scale  # the fault was not the scale's
    return StepDone(
        step=counters.step,
        steps=len(training.batches),
        epoch=training.batches.state()["epoch"],
        loss=taken.loss if math.isfinite(taken.loss) else None,
        smoothed_loss=counters.losses.mean,
        metrics={name: value / taken.targets for name, value in taken.sums.items() if math.isfinite(value)},
        learning_rate=rate,
        gradient_norm=taken.norm if math.isfinite(taken.norm) else None,
        targets=taken.targets,
        tokens=taken.tokens,
        seconds=time.perf_counter() - began,
        skipped=taken.skipped,
        recheck=taken.recheck,
    )


@dataclass(frozen=True)
class _Taken:
    """What came of the micro-batches of a step; ``skipped``: why there was no update, or None."""

    loss: float
    sums: dict[str, float]
    norm: float
    targets: float
    tokens: int
    skipped: str | None
    recheck: str | None


def _take(training: Training, criterion: Criterion, stop: threading.Event) -> _Taken | None:
    """The micro-batches of the next step and the update; None, without one, if the run was asked to stop."""
    micro_batches, dice = next(training.batches), torch.get_rng_state()
    own = (
        sum(criterion.weight(batch) for batch in micro_batches),
        sum(criterion.tokens(batch) for batch in micro_batches),
    )
    (normaliser, tokens), stopped = training.parallel.agree(own, stop.is_set())
    if stopped:
        return None

    def compute() -> Gradients | None:
        torch.set_rng_state(dice)
        training.optimizer.zero_grad()
        return _gradients(training, criterion, micro_batches, normaliser, stop)

    found, recheck = _gradients(training, criterion, micro_batches, normaliser, stop), None
    every = training.settings.recheck_every
    if found is not None and every is not None and (training.counters.step + 1) % every == 0:
        found, recheck = agreed(found, compute)
    if found is None:
        return None
    norm, skipped = _update(training, found.loss)
    return _Taken(found.loss, found.sums, norm, normaliser, int(tokens), skipped, recheck)


def _gradients(
    training: Training, criterion: Criterion, micro_batches: Sequence[Any], normaliser: float, stop: threading.Event
) -> Gradients | None:
    """Leaves the gradients of the scaled loss in the parameters; None if the run was asked to stop on the way."""

    def loss(network: nn.Module, batch: Any) -> tuple[Tensor, Metrics]:
        with training.settings.precision.forward(training.network):
            return criterion.loss(network, batch, normaliser=normaliser)

    scale = training.scale.value
    found = training.parallel.gradients(training.network, micro_batches, loss, scale=scale, stop=stop)
    return None if found is None else Gradients(*found, training.parameters)


def _update(training: Training, loss: float) -> tuple[float, str | None]:
    """Applies the gradients, if nothing is wrong with them and the loss; returns their global norm and why it did not."""
    gradients = [p.grad for p in training.parameters.values() if p.grad is not None]
    _scale(gradients, 1 / training.scale.value)  # before anything looks at them
    norm = training.parallel.norm(training.parameters) if math.isfinite(loss) else math.nan
    skipped = _fault(training, loss, norm)
    if skipped is None:
        if (limit := training.settings.clip_norm) is not None:
            _scale(gradients, limit / norm if norm > limit else 1.0)
        training.optimizer.step()
    training.optimizer.zero_grad()
    return norm, skipped


def _fault(training: Training, loss: float, norm: float) -> str | None:
    if not math.isfinite(loss):
        return LOSS
    if not math.isfinite(norm):
        return GRADIENT
    spikes = training.settings.spikes
    return SPIKE if spikes is not None and spikes.found_in(loss, training.counters.losses) else None


def _scale(gradients: Sequence[Tensor], factor: float) -> None:
    if factor != 1.0:
        torch._foreach_mul_(list(gradients), factor)
