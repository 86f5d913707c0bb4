"""The training loop. There is one; what differs between runs is passed to it: batches, criterion, settings, listeners.

A step: the normaliser over all micro-batches -> forward and backward of each -> gradient norm -> update. A loss or a
gradient that is not finite ends the step *before* the update, whatever produced it; where it may be the loss scale's doing
(see ``train.precision``) the step is taken again with a smaller one. With a run folder the run saves
itself and, started again, continues bit for bit (on one machine, build and thread count).
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from almanac.core.errors import TrainingError
from almanac.train.checkpoint import Checkpoints
from almanac.train.criterion import Criterion, NextToken
from almanac.train.events.checkpoint import CheckpointSaver
from almanac.train.events.event import Ended, Event, Listener, Saving, Started, StepDone
from almanac.train.events.metrics import MetricsLog
from almanac.train.interrupt import stopping_on_signals
from almanac.train.run_folder import RunFolder, fingerprint
from almanac.train.settings import TrainSettings
from almanac.train.training import Batches, Keeper, Training


@dataclass(frozen=True)
class Outcome:
    """What came of a run: ``finished`` is False when it was asked to stop; ``loss`` is the running mean at the end."""

    step: int
    steps: int
    finished: bool
    skipped: int
    loss: float | None


def train(
    network: nn.Module,
    batches: Batches,
    *,
    settings: TrainSettings | None = None,
    criterion: Criterion | None = None,
    listeners: Sequence[Listener] = (),
    run_folder: str | Path | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Trains exactly the parameters that require gradients, in place.

    Args:
        network: what ``criterion`` knows how to run; for :class:`NextToken` anything with ``hidden`` and ``logits``.
        batches: the steps (see ``data.collate.StepBatches``).
        listeners: called with every event; an exception from one ends the run. What a `Keeper` remembers is saved.
        run_folder: where run.json, the log and the checkpoints go; a run found there is continued. With one, Ctrl-C and
            SIGTERM save and stop; without, they act as usual.
        stop: set it, from anywhere, to have the run stop as on Ctrl-C.

    Raises:
        TrainingError: nothing to train, no finite step for long, no room on the disk, or a folder of another run.
        IntegrityError: no checkpoint of the folder is whole.
        LockedError: another process is running there.
    """
    settings, criterion, stop = settings or TrainSettings(), criterion or NextToken(), stop or threading.Event()
    keepers = [listener for listener in listeners if isinstance(listener, Keeper)]
    training = Training.begin(network, batches, settings=settings, keepers=keepers)
    if run_folder is None:
        with _quiet_surroundings(network, settings.seed), settings.precision.prepared(network):
            return _run(training, criterion, listeners, stop, lambda section, value: None)
    identity = {
        "settings": settings.to_dict(),
        "criterion": criterion.to_dict(),
        "data": batches.digest(),
        "network": fingerprint(network),
    }
    prepared, quiet = settings.precision.prepared(network), _quiet_surroundings(network, settings.seed)
    with prepared, RunFolder(run_folder, identity) as folder, quiet:
        checkpoints = Checkpoints(folder.checkpoints)
        log = MetricsLog(folder.metrics)
        notes = tuple(_resume(training, checkpoints))
        with stopping_on_signals(stop), contextlib.closing(log):
            own = (log, CheckpointSaver(checkpoints))  # in this order: a saved step is always a logged one
            return _run(training, criterion, (*own, *listeners), stop, folder.record, notes)


def _run(
    training: Training,
    criterion: Criterion,
    listeners: Sequence[Listener],
    stop: threading.Event,
    record: Callable[[str, Any], None],
    notes: tuple[str, ...] = (),
) -> Outcome:
    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    counters, steps = training.counters, len(training.batches)
    trainable = sum(parameter.numel() for parameter in training.parameters.values())
    tell(Started(counters.step, steps, trainable, training.capture, record, notes))
    saved = counters.step
    while counters.step < steps and not stop.is_set():
        event = _step(training, criterion, stop)
        if event is None:
            break
        tell(event)
        if counters.bad_in_a_row >= training.settings.max_bad_steps:
            raise TrainingError(
                f"{counters.bad_in_a_row} steps in a row had no finite {event.skipped}, the last was step {event.step}",
                remedy="Lower the learning rate; the weights are as before those steps.",
            )
        if counters.step % training.settings.save_every == 0:
            tell(Saving(counters.step, training.capture))
            saved = counters.step
    if saved != counters.step:
        tell(Saving(counters.step, training.capture))
    finished = counters.step >= steps
    tell(Ended(counters.step, steps, finished))
    return Outcome(counters.step, steps, finished, counters.skipped, counters.smoothed_loss)


def _step(training: Training, criterion: Criterion, stop: threading.Event) -> StepDone | None:
    """One optimizer step; None, with everything as before it, if the run was asked to stop in the middle."""
    began, place, scale = time.perf_counter(), training.place(), training.scale.value
    rate = training.set_rate()
    while (taken := _take(training, criterion, stop)) is not None and taken.skipped == "gradient":
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
        smoothed_loss=counters.smoothed_loss,
        metrics={name: value / taken.targets for name, value in taken.sums.items() if math.isfinite(value)},
        learning_rate=rate,
        gradient_norm=taken.norm if math.isfinite(taken.norm) else None,
        targets=taken.targets,
        tokens=taken.tokens,
        seconds=time.perf_counter() - began,
        skipped=taken.skipped,
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


def _take(training: Training, criterion: Criterion, stop: threading.Event) -> _Taken | None:
    """The micro-batches of the next step and the update; None, without one, if the run was asked to stop."""
    micro_batches = next(training.batches)
    normaliser = sum(criterion.weight(batch) for batch in micro_batches)
    total, sums = 0.0, dict[str, float]()
    for batch in micro_batches:
        if stop.is_set():
            return None
        with training.settings.precision.forward(training.network):
            loss, metrics = criterion.loss(training.network, batch, normaliser=normaliser)
        total += loss.item()
        if not math.isfinite(total):
            break
        (loss * training.scale.value).backward()
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    norm, skipped = _update(training, total)
    tokens = sum(criterion.tokens(batch) for batch in micro_batches)
    return _Taken(total, sums, norm, normaliser, tokens, skipped)


def _update(training: Training, loss: float) -> tuple[float, str | None]:
    """Applies the gradients, if they and the loss are finite; returns their global norm and why nothing was done."""
    gradients = [p.grad for p in training.parameters.values() if p.grad is not None]
    _scale(gradients, 1 / training.scale.value)  # before anything looks at them
    norm = float(torch.nn.utils.get_total_norm(gradients)) if math.isfinite(loss) else math.nan
    skipped = "loss" if not math.isfinite(loss) else "gradient" if not math.isfinite(norm) else None
    if skipped is None:
        if (limit := training.settings.clip_norm) is not None:
            _scale(gradients, limit / norm if norm > limit else 1.0)
        training.optimizer.step()
    training.optimizer.zero_grad()
    return norm, skipped


def _scale(gradients: Sequence[Tensor], factor: float) -> None:
    if factor != 1.0:
        torch._foreach_mul_(list(gradients), factor)


def _resume(training: Training, checkpoints: Checkpoints) -> list[str]:
    """Continues from the newest whole checkpoint, if there is one; returns what the reader should know."""
    found = checkpoints.load()
    if found is None:
        return []
    snapshot, damaged = found
    training.restore(snapshot)
    notes = [f"a damaged checkpoint was passed over: {name}" for name in damaged]
    threads = snapshot.facts.get("threads")
    if threads != torch.get_num_threads():
        notes.append(f"{threads} threads before, {torch.get_num_threads()} now: results will not be bit-identical")
    return notes


@contextlib.contextmanager
def _quiet_surroundings(network: nn.Module, seed: int) -> Iterator[None]:
    """Training mode, our own dice and deterministic kernels inside; all of it as it was afterwards."""
    training_before, deterministic_before = network.training, torch.are_deterministic_algorithms_enabled()
    filling_before = torch.utils.deterministic.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # it would write every fresh tensor twice
        network.train()
        try:
            yield
        finally:
            network.train(training_before)
            torch.use_deterministic_algorithms(deterministic_before)
            torch.utils.deterministic.fill_uninitialized_memory = filling_before
