"""Saves a checkpoint when the loop says so, and asks before the first step whether there is room for one."""

from __future__ import annotations

from almanac.train.checkpoint import Checkpoints
from almanac.train.events.event import Event, Saving, Started


class CheckpointSaver:
    """Listener; the loop waits for it, so that what is saved is the state between two steps."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.checkpoints.require_room(event.snapshot())
        elif isinstance(event, Saving):
            self.checkpoints.save(event.snapshot())
