"""``metrics.jsonl``: one line of JSON per step. A resumed run's log reads as if it had never been interrupted.

Everything in a line but ``seconds`` is decided by the run's settings, data and seed, as long as the machine computes rightly.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO

from almanac.core.errors import FileFormatError
from almanac.files.store import write_atomic
from almanac.files.strict_json import parse_json
from almanac.train.events.event import Ended, Event, Saving, Started, StepDone


class MetricsLog:
    """Listener. Lines reach the system as they come, and the disk before every checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: IO[bytes] | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._open(event.step)
        elif isinstance(event, StepDone):
            assert self._stream is not None, "the loop starts before it steps"
            self._stream.write(line_of(event))
            self._stream.flush()
        elif isinstance(event, Saving) and self._stream is not None:
            os.fsync(self._stream.fileno())
        elif isinstance(event, Ended):
            self.close()

    def close(self) -> None:
        """Closes the file; a later ``Started`` opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self, step: int) -> None:
        """Drops the lines of steps that will be done again, and one that was cut off in the middle."""
        self.close()
        kept = [line for line in _lines(self.path) if (number := _step_of(line)) is not None and number <= step]
        write_atomic(self.path, b"".join(kept))
        self._stream = self.path.open("ab")


def line_of(event: StepDone) -> bytes:
    """One step as a line of JSON."""
    fields = {
        "step": event.step,
        "epoch": event.epoch,
        "loss": event.loss,
        "metrics": dict(event.metrics),
        "learning_rate": event.learning_rate,
        "gradient_norm": event.gradient_norm,
        "targets": event.targets,
        "tokens": event.tokens,
        "skipped": event.skipped,
        **_rare(event),
        "seconds": round(event.seconds, 4),
    }
    return json.dumps(fields, allow_nan=False).encode() + b"\n"


def _rare(event: StepDone) -> dict[str, object]:
    """What most steps have not: left out of their lines."""
    fields = {"rolled_back_to": event.rolled_back_to, "recheck": event.recheck}
    return {name: value for name, value in fields.items() if value is not None}


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _step_of(line: bytes) -> int | None:
    """The step that a whole line tells of; None for a line cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        fields = parse_json(line, source="a line of metrics.jsonl")
    except FileFormatError:
        return None
    step = fields.get("step") if isinstance(fields, dict) else None
    return step if isinstance(step, int) else None
