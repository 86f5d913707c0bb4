"""The training loop. There is one; what differs between runs is passed to it: batches, criterion, settings, listeners.

Steps are in ``train.step``; what happens when several in a row go wrong, in ``train.spikes``. With a run folder the run saves
itself and, started again, continues bit for bit (on one machine, build and thread count).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from almanac.core.errors import TrainingError, UnsupportedError
from almanac.nn.product import wide
from almanac.train.checkpoint import Checkpoints
from almanac.train.criterion import Criterion, NextToken
from almanac.train.events.checkpoint import CheckpointSaver
from almanac.train.events.event import Ended, Event, Listener, Saving, Started, StepDone
from almanac.train.events.metrics import MetricsLog
from almanac.train.interrupt import stopping_on_signals
from almanac.train.parallel.parallel import Alone, Parallel
from almanac.train.run_folder import RunFolder, fingerprint
from almanac.train.settings import TrainSettings
from almanac.train.step import GRADIENT, LOSS, SPIKE, step
from almanac.train.training import Batches, Keeper, Training

REASONS = {
    LOSS: "no finite loss",
    GRADIENT: "no finite gradient",
    SPIKE: "a loss far above those before",
    None: "no update",
}


@dataclass(frozen=True)
class Outcome:
    """What came of a run: ``finished`` is False when it was asked to stop; ``loss`` is the running mean at the end.

    ``skipped``: steps without an update; ``rollbacks``: returns to an earlier checkpoint.
    """

    step: int
    steps: int
    finished: bool
    skipped: int
    loss: float | None
    rollbacks: int = 0


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
    _require_repeatable(settings, criterion)
    keepers = [listener for listener in listeners if isinstance(listener, Keeper)]
    parallel = _parallel(settings)
    parallel.require(settings, criterion.alters_network, len(keepers))
    identity = _identity(network, batches, settings, criterion) if run_folder is not None else {}
    with parallel.placed(network):
        training = Training.begin(network, batches, settings=settings, keepers=keepers, parallel=parallel)
        with _surroundings(network, settings, parallel):
            if run_folder is None:
                return _Run(training, criterion, listeners, stop).go()
            return _recorded(training, criterion, listeners, stop, RunFolder(run_folder, identity))


def _identity(network: nn.Module, batches: Batches, settings: TrainSettings, criterion: Criterion) -> dict[str, Any]:
    """What must be equal for a run to be continued; how many processes do it need not."""
    return {
        "settings": {name: value for name, value in settings.to_dict().items() if name != "mesh"},
        "criterion": criterion.to_dict(),
        "data": batches.digest(),
        "network": fingerprint(network),
    }


def _recorded(
    training: Training, criterion: Criterion, listeners: Sequence[Listener], stop: threading.Event, folder: RunFolder
) -> Outcome:
    """The run in its folder, of which one process has the lock and writes the log."""
    parallel = training.parallel
    with contextlib.ExitStack() as stack:
        if parallel.leads:
            stack.enter_context(folder)
        checkpoints = Checkpoints(folder.checkpoints, parallel.writers())
        logs = (MetricsLog(folder.metrics),) if parallel.leads else ()
        saver = CheckpointSaver(checkpoints, in_background=training.settings.background_saves)
        notes = tuple(_resume(training, checkpoints))
        stack.enter_context(stopping_on_signals(stop))
        for own in (*logs, saver):
            stack.enter_context(contextlib.closing(own))
        record = folder.record if parallel.leads else _nothing
        # in this order: a saved step is always a logged one
        return _Run(training, criterion, (*logs, saver, *listeners), stop, record, saver).go(notes)


def _nothing(section: str, value: Any) -> None:
    return None


def _parallel(settings: TrainSettings) -> Parallel:
    if settings.mesh is None:
        return Alone()
    from almanac.train.parallel.together import Together  # torch.distributed is needed by it alone

    return Together(settings.mesh)


@dataclass
class _Run:
    """A run under way and those who are told; ``checkpoints`` and ``saver`` where there is a folder."""

    training: Training
    criterion: Criterion
    listeners: Sequence[Listener]
    stop: threading.Event
    record: Callable[[str, Any], None] = _nothing
    saver: CheckpointSaver | None = None

    def go(self, notes: tuple[str, ...] = ()) -> Outcome:
        training, counters = self.training, self.training.counters
        steps = len(training.batches)
        trainable = sum(parameter.numel() for parameter in training.parameters.values())
        self._tell(Started(counters.step, steps, trainable, training.capture, self.record, notes))
        saved = counters.step
        while training.counters.step < steps and not self.stop.is_set():
            event = step(training, self.criterion, self.stop)
            if event is None:
                break
            if training.counters.bad_in_a_row >= training.settings.max_bad_steps:
                event = replace(event, rolled_back_to=self._roll_back(event))
            self._tell(event)
            if event.step % training.settings.save_every == 0:
                self._tell(Saving(event.step, training.capture))
                saved = event.step
        counters = training.counters
        if saved != counters.step:
            self._tell(Saving(counters.step, training.capture))
        finished = counters.step >= steps
        self._tell(Ended(counters.step, steps, finished))
        return Outcome(
            counters.step, steps, finished, counters.skipped, counters.losses.mean, rollbacks=counters.rollbacks
        )

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def _roll_back(self, event: StepDone) -> int:
        """Goes back to the newest good checkpoint and returns its step. Raises TrainingError if there is none."""
        training = self.training
        counters, anchor = training.counters, None
        if self.saver is not None and counters.rollbacks < training.settings.max_rollbacks:
            self.saver.settle()
            anchor = self.saver.checkpoints.anchor(counters.step)
        if anchor is None:
            self._tell(event)
            returns = f", after {counters.rollbacks} returns to an earlier checkpoint" if counters.rollbacks else ""
            raise TrainingError(
                f"{counters.bad_in_a_row} steps in a row had {REASONS[event.skipped]}, the last was step {event.step}"
                + returns,
                remedy="Lower the learning rate, or look at the data of those steps; the weights are as before them.",
            )
        training.roll_back(anchor)
        return int(anchor.facts["counters"]["step"])


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


def _require_repeatable(settings: TrainSettings, criterion: Criterion) -> None:
    is_repeated = settings.activations is not None or settings.recheck_every is not None
    if is_repeated and criterion.alters_network:
        raise UnsupportedError(
            f"{type(criterion).__name__} changes the network while it computes the loss, which is to be computed again",
            remedy="Leave out activation checkpointing and rechecks, or what changes the network (a balancing rate).",
        )


@contextlib.contextmanager
def _surroundings(network: nn.Module, settings: TrainSettings, parallel: Parallel) -> Iterator[None]:
    """As the run needs them inside; all of it as it was afterwards."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet_surroundings(network, parallel.seed(settings.seed)))
        stack.enter_context(wide())
        stack.enter_context(settings.precision.prepared(network))
        if settings.activations is not None:
            stack.enter_context(settings.activations.applied(network))
        yield


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
