"""``memory.jsonl``: what the process holds, a line of JSON per step. Apart from the metrics, which the run's seed decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from almanac.files.store import write_atomic
from almanac.train.events.event import Event, Started, StepDone

MEMORY = "memory.jsonl"


class MemoryLog:
    """Listener.

    Args:
        path: usually ``memory.jsonl`` in the run folder.
        read: what is held now, in bytes; such as `verify.forecast.resident_bytes`.
    """

    def __init__(self, path: Path, read: Callable[[], int]) -> None:
        self.path, self.read = path, read

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
            write_atomic(self.path, b"".join(line for line in lines if _is_before(line, event.step)))
        elif isinstance(event, StepDone):
            with self.path.open("ab") as stream:
                stream.write(json.dumps({"step": event.step, "bytes": self.read()}).encode() + b"\n")


def _is_before(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False  # cut off
