"""``standing`` in run.json: how far a run is of how much, so that whoever looks at a folder knows whether it is finished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from almanac.train.events.event import Ended, Event, Saving, Started

STANDING = "standing"


class Standing:
    """Listener. Between two saves the log of steps knows better."""

    def __init__(self) -> None:
        self._record: Callable[[str, Any], None] = lambda section, value: None
        self._steps = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._record, self._steps = event.record, event.steps
        if isinstance(event, Started | Saving | Ended):
            finished = isinstance(event, Ended) and event.finished
            self._record(STANDING, {"step": event.step, "steps": self._steps, "finished": finished})
