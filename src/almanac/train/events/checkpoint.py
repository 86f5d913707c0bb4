"""Saves a checkpoint when the loop says so, and asks before the first step whether there is room for one."""

from __future__ import annotations

from almanac.train.checkpoint import KEPT, Checkpoints
from almanac.train.events.event import Event, Saving, Started

WITH_MOMENTS = 3  # a checkpoint against the weights in it: the optimizer's two moments are not there yet at the start


class CheckpointSaver:
    """Listener; the loop waits for it, so that what is saved is the state between two steps."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            weights = sum(tensor.nbytes for tensor in event.snapshot().tensors.values())
            self.checkpoints.require_room((KEPT + 1) * WITH_MOMENTS * weights)
        elif isinstance(event, Saving):
            self.checkpoints.save(event.snapshot())
