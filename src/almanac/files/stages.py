"""Stages keyed by what they depend on: a build that was killed and started again goes on where it was.

The key of a stage is the digest of its own settings and of the key of the stage before it. A stage whose key stands in
the ledger is not run again; the ledger is written after a stage's files are whole.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.core.errors import FileFormatError
from almanac.files.store import canonical_json, write_json
from almanac.files.strict_json import read_json

LEDGER = "stages.json"


@dataclass(frozen=True)
class StageEvent:
    """Progress of a build: ``done`` of ``total`` units of a stage; ``seconds`` spent in it so far."""

    stage: str
    done: int
    total: int
    note: str
    seconds: float


Report = Callable[[StageEvent], None]
Summary = dict[str, Any]


class Stages:
    """Runs stages in order and remembers what is done in ``folder``."""

    def __init__(self, folder: Path, report: Report) -> None:
        self.folder = folder
        self.report = report
        self.key = ""
        self._done: dict[str, dict[str, Any]] = _read(folder / LEDGER)

    def run(self, name: str, settings: Mapping[str, Any], work: Callable[[StageReport], Summary]) -> Summary:
        """The summary of the stage, from the ledger or from running ``work``; a summary is JSON."""
        self.key = self._key(name, settings)
        known = self._done.get(name)
        if known is not None and known["key"] == self.key:
            self.report(StageEvent(name, 1, 1, "done before", 0.0))
            return known["summary"]
        progress = StageReport(name, self.report)
        summary = work(progress)
        self._done[name] = {"key": self.key, "summary": summary, "seconds": progress.seconds}
        write_json(self.folder / LEDGER, self._done)
        progress.tell(1, 1, "done")
        return summary

    def knows(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether the stage, if it came next, would not run again."""
        known = self._done.get(name)
        return known is not None and known["key"] == self._key(name, settings)

    def _key(self, name: str, settings: Mapping[str, Any]) -> str:
        return hashlib.sha256(canonical_json([name, self.key, dict(settings)])).hexdigest()

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds of every stage, as measured when it ran."""
        return {name: entry["seconds"] for name, entry in self._done.items()}


class StageReport:
    """What a stage uses to tell how far it is."""

    def __init__(self, name: str, report: Report) -> None:
        self.name = name
        self._report = report
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall seconds since the stage began."""
        return time.monotonic() - self._start

    def tell(self, done: int, total: int, note: str = "") -> None:
        """Reports ``done`` of ``total``."""
        self._report(StageEvent(self.name, done, total, note, self.seconds))


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise FileFormatError(f"{path} is damaged", remedy="Remove it; the build starts from the beginning.")
    return found
