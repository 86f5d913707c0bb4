"""Saves a checkpoint when the loop says so, and asks before the first step whether there is room for one."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from almanac.train.checkpoint import KEPT, Checkpoints
from almanac.train.events.event import Ended, Event, Saving, Started
from almanac.train.training import Snapshot

WITH_MOMENTS = 3  # a checkpoint against the weights in it: the optimizer's two moments are not there yet at the start


class CheckpointSaver:
    """Listener; what is saved is the state between two steps.

    Args:
        in_background: the loop waits only until the state is copied, and a thread writes the copy. What goes wrong there is
            raised at the next save, or when the run ends.
    """

    def __init__(self, checkpoints: Checkpoints, *, in_background: bool = False) -> None:
        self.checkpoints = checkpoints
        self._writer = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._pending: Future[Path] | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            weights = sum(tensor.nbytes for tensor in event.snapshot().tensors.values())
            self.checkpoints.require_room((KEPT + 1) * WITH_MOMENTS * weights)
        elif isinstance(event, Saving):
            self.settle()
            if self._writer is None:
                self.checkpoints.save(event.snapshot())
            else:
                self._pending = self._writer.submit(self.checkpoints.save, _copy(event.snapshot()))
        elif isinstance(event, Ended):
            self.settle()

    def settle(self) -> None:
        """Returns when what was to be saved is on the disk. Raises what went wrong on the way there."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Ends the thread, when it is done with what it writes."""
        if self._writer is not None:
            self._writer.shutdown()


def _copy(snapshot: Snapshot) -> Snapshot:
    """Of its own memory: the live tensors change with the next step."""
    return Snapshot({name: tensor.detach().clone() for name, tensor in snapshot.tensors.items()}, snapshot.facts)
