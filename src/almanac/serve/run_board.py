"""The runs below one folder as the page of curves wants them: read as they grow, by one thread, in bounded memory and pieces.

A name in a request only ever picks from the runs that were found by looking; it is never made into a path.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from almanac.core.errors import NotFoundError
from almanac.serve.limits import Limits
from almanac.serve.service import Slots
from almanac.train.events.curves import Curves, Series, number, of_step
from almanac.train.events.found_runs import (
    FoundRun,
    Summary,
    find_runs,
    is_locked,
    read_facts,
    resources_of,
    settings_of,
    summary_of,
)
from almanac.train.events.measurements import Measurements
from almanac.train.events.memory import MEMORY
from almanac.train.run_folder import CHECKPOINTS, METRICS, RUN

LOOK_SECONDS = 2.0  # a folder is looked through at most this often

Body = dict[str, Any]


class RunBoard:
    """What the routes of runs share; its methods but ``close`` run in its thread."""

    def __init__(self, root: Path, *, limits: Limits) -> None:
        self.root, self.limits = root, limits
        self.slots = Slots(limits.concurrency)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="almanac-runs")  # so that two never read one log at once
        self._found: dict[str, FoundRun] = {}
        self._looked_at = -math.inf
        self._watched: OrderedDict[str, Watched] = OrderedDict()
        self._summaries: dict[str, tuple[tuple[object, ...], Summary]] = {}

    def listed(self) -> list[Body]:
        """Every run, in a few figures, those that changed last first."""
        self._look()
        rows = [dataclasses.asdict(self._summary(run)) for run in self._found.values()]
        return [_finite(row) for row in sorted(rows, key=lambda row: -(row["changed_at"] or 0))]

    def run(self, name: str, version: str) -> Body:
        """One run: its figures and what has been added to its curves since ``version``.

        Raises NotFoundError if there is no such run.
        """
        self._look()
        found = self._found.get(name)
        if found is None:
            self._watched.pop(name, None)
            raise NotFoundError("There is no run of that name", remedy="Look at the list of runs.")
        watched = self._watched.get(name)
        if watched is None or watched.run != found:
            watched = Watched(found)
            self._watched[name] = watched
        self._watched.move_to_end(name)
        while len(self._watched) > self.limits.runs:
            self._watched.popitem(last=False)
        return _finite(watched.body(version, self.limits.run_read_bytes))

    def _summary(self, run: FoundRun) -> Summary:
        """How a run stands; its files are read again only if they have changed."""
        stamp = (
            run.folder,
            is_locked(run.folder),
            *(_changed(run.folder / name) for name in (METRICS, RUN, CHECKPOINTS)),
        )
        known = self._summaries.get(run.name)
        if known is None or known[0] != stamp:
            known = self._summaries[run.name] = (stamp, summary_of(run))
        return known[1]

    def close(self) -> None:
        """Ends the thread."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> None:
        if time.monotonic() - self._looked_at > LOOK_SECONDS:
            self._found = {run.name: run for run in find_runs(self.root)}
            self._summaries = {name: item for name, item in self._summaries.items() if name in self._found}
            self._looked_at = time.monotonic()


class Watched:
    """One run that somebody looks at."""

    def __init__(self, run: FoundRun) -> None:
        self.run = run
        self.steps = Curves(run.folder / METRICS, of_step)
        self.memory = Curves(run.folder / MEMORY, lambda line: {"memory_bytes": number(line.get("bytes"))})
        self.measured = Measurements(run.folder)

    def body(self, version: str, most_bytes: int) -> Body:
        """See `RunBoard.run`."""
        is_read = self.steps.read(most_bytes) & self.memory.read(most_bytes)
        self.measured.read()
        old, new = _parts(version), self._version()
        is_whole = old is None or old[:4] != new[:4]
        since = (0, 0) if is_whole or old is None else (old[4], old[5])
        curves = _curves(self.steps.series, since[0]) | _curves(self.memory.series, since[1])
        is_measured_new = is_whole or old is None or old[6] != new[6]
        return {
            **self._figures(),
            "version": ".".join(map(str, new)), "whole": is_whole, "complete": is_read,
            "share_read": self.steps.offset / max(self.steps.size, 1), "damaged_lines": self.steps.damaged,
            "curves": curves | (_curves(self.measured.series, 0) if is_measured_new else {}),
            "samples": self.measured.samples if is_measured_new else None,
        }  # fmt: skip

    def _version(self) -> tuple[int, ...]:
        steps, memory = self.steps, self.memory
        return (
            steps.generation, steps.stride, memory.generation, memory.stride, steps.step, memory.step, self.measured.tag,
        )  # fmt: skip

    def _figures(self) -> Body:
        facts, tally = read_facts(self.run.folder), self.steps.tally
        return dataclasses.asdict(summary_of(self.run, facts)) | {
            "tokens": tally.tokens, "seconds": tally.seconds,
            "skipped": tally.skipped, "rollbacks": tally.rollbacks,
            "settings": settings_of(facts), "forecast": resources_of(facts, "forecast"),
            "measured": resources_of(facts, "measured"),
        }  # fmt: skip


def _curves(series: Mapping[str, Series], since: int) -> dict[str, list[list[float]]]:
    """Points as [stretch, last step, mean, least, most]."""
    return {name: [list(point) for point in item.points(since)] for name, item in series.items()}


def _changed(path: Path) -> int | None:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return None


def _parts(version: str) -> tuple[int, ...] | None:
    """A version as it was given out, or None for anything else."""
    parts = version.split(".")
    is_one = len(parts) == 7 and all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts)
    return tuple(map(int, parts)) if is_one else None


def _finite(value: Any) -> Any:
    """As JSON can say it: what is not finite is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
