"""How a build shows where it is: bars on a terminal, one line per stage elsewhere, JSON lines for machines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from almanac.cli.printing import duration, emit, note, visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from almanac.files.stages import StageEvent

Report = Callable[["StageEvent"], None]


@contextmanager
def reporting(*, in_json: bool) -> Iterator[Report]:
    """What to give as ``report``, for the time of one build."""
    if in_json:
        yield _emit
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield Bars(bars)
    else:
        lines = Lines()
        try:
            yield lines
        finally:
            lines.close()


class Lines:
    """One line per stage, when the next one begins or the build ends."""

    def __init__(self) -> None:
        self._last: StageEvent | None = None
        self._units = ""

    def __call__(self, event: StageEvent) -> None:
        if self._last is not None and event.stage != self._last.stage:
            self.close()
        self._units = units(event, self._units)
        self._last = event

    def close(self) -> None:
        """Writes the line of the stage that is open, if any."""
        if self._last is not None:
            event = self._last
            counted = f" {self._units}" if self._units else ""
            note(f"{event.stage}:{counted} {event.note} ({duration(event.seconds)})")
        self._last, self._units = None, ""


class Bars:
    """A bar per stage with its rate and the time left, on stderr."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._task: TaskID | None = None
        self._stage = ""
        self._units = ""

    def __call__(self, event: StageEvent) -> None:
        if self._task is None or event.stage != self._stage:
            self._stage, self._units = event.stage, ""
            self._task = self.progress.add_task("", total=None, stage=event.stage, units="", pace="", note="")
        self._units = units(event, self._units)
        self.progress.update(
            self._task,
            completed=event.done,
            total=event.total,
            units=self._units,
            pace=pace(event) if event.total > 1 else duration(event.seconds),
            note=visible(event.note, sys.stderr),
        )


def units(event: StageEvent, before: str) -> str:
    """What to show as done: ``3/24``; a stage ends with an event of one unit, which means all of those before."""
    if event.total > 1:
        return f"{event.done}/{event.total}"
    total = before.rpartition("/")[2]
    return f"{total}/{total}" if total and event.done >= event.total else before


def pace(event: StageEvent) -> str:
    """The rate of a stage so far and the time left if it stays: ``3.2/s, 0:12 left``; empty before the first unit."""
    if event.done <= 0 or event.seconds <= 0:
        return ""
    rate = event.done / event.seconds
    speed = f"{rate:.1f}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each"
    return f"{speed}, {duration((event.total - event.done) / rate)} left"


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    def column(name: str) -> TextColumn:
        return TextColumn(f"{{task.fields[{name}]}}", markup=False)

    columns = (column("stage"), BarColumn(bar_width=24), column("units"), column("pace"), column("note"))
    return Progress(*columns, console=Console(stderr=True))


def _emit(event: StageEvent) -> None:
    emit(
        {
            "event": "stage",
            "stage": event.stage,
            "done": event.done,
            "total": event.total,
            "note": event.note,
            "seconds": event.seconds,
        }
    )
