"""``almanac run``: the training runs below a folder, and how each of them stands. Nothing is written."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from almanac.cli.options import Json
from almanac.cli.printing import duration, emit, line, size, table
from almanac.core.errors import NotFoundError, RequestError

if TYPE_CHECKING:
    from almanac.train.events.curves import Point
    from almanac.train.events.found_runs import FoundRun, Summary

WIDE, HIGH = 64, 12  # characters of a plot
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column
SHOWN_SAMPLE = 400  # characters
READ_BYTES = 1 << 24  # of a log at a time


def run(action: Literal["list", "show"] = "list", /, *folders: Path, json: Json = False) -> int:
    """List training runs, or show how one of them stands.

    Shown are its settings, its forecast against what was measured, its curves and a sample. A run is found wherever it lies
    below the folders, and may be under way meanwhile. `almanac serve --runs FOLDER` shows the same on a page that keeps
    up with it.

    ```
    almanac run list
    almanac run list runs/ my-model --json
    almanac run show my-model
    ```

    Args:
        action: `list` all of them, or `show` what there is to know of each.
        folders: Where to look; by default the current folder.
    """
    from almanac.train.events.found_runs import find_runs, summary_of

    places = folders or (Path(),)
    found = [(item, summary_of(item)) for place in places for item in find_runs(place)]
    if action == "show":
        if not found:
            raise NotFoundError(
                f"There is no run in {_told(places)}", remedy="`almanac run list FOLDER` shows where there are."
            )
        if len(found) > 1 and not json:
            names = ", ".join(str(item.folder) for item, _ in found[:5])
            raise RequestError(f"There are {len(found)} runs in {_told(places)}", remedy=f"Name one: {names}.")
        shown = [_facts(item, summary) for item, summary in found]
        if json:
            emit({"runs": shown})
        else:
            _show(shown[0])
        return 0
    newest = sorted(found, key=lambda pair: -(pair[1].changed_at or 0))
    if json:
        emit({"runs": [dataclasses.asdict(summary) | {"folder": str(item.folder)} for item, summary in newest]})
    elif newest:
        table(HEADER, [_row(summary) for _, summary in newest])
    else:
        line(f"There are no runs in {_told(places)}.")
    return 0


HEADER = ("run", "state", "step", "loss", "tokens/s", "left", "last save")


def _row(summary: Summary) -> Sequence[str]:
    steps = "" if summary.steps is None else f" of {summary.steps:,}"
    rate = summary.tokens_per_second
    return (
        summary.name,
        summary.state,
        f"{summary.step:,}{steps}",
        "-" if summary.loss is None else f"{summary.loss:.4g}",
        "-" if rate is None else f"{rate:,.0f}",
        "-" if summary.seconds_left is None else duration(summary.seconds_left),
        "-" if summary.saved is None else f"step {summary.saved:,}, {_ago(summary.saved_at)}",
    )


def _ago(at: float | None) -> str:
    return "" if at is None else f"{duration(max(0.0, time.time() - at))} ago"


def _told(places: Sequence[Path]) -> str:
    return ", ".join(str(place.absolute() if place == Path() else place) for place in places)


def _facts(found: FoundRun, summary: Summary) -> dict[str, Any]:
    """All there is to show, JSON-ready."""
    from almanac.train.events.curves import Curves, of_step
    from almanac.train.events.found_runs import read_facts, resources_of, settings_of
    from almanac.train.events.measurements import Measurements
    from almanac.train.run_folder import METRICS

    curves = Curves(found.folder / METRICS, of_step)
    while not curves.read(READ_BYTES):
        pass
    measured = Measurements(found.folder)
    measured.read()
    facts = read_facts(found.folder)
    series = {
        name: [list(point) for point in item.points()] for name, item in {**curves.series, **measured.series}.items()
    }
    return dataclasses.asdict(summary) | {
        "folder": str(found.folder), "tokens": curves.tally.tokens, "seconds": curves.tally.seconds,
        "skipped": curves.tally.skipped, "rollbacks": curves.tally.rollbacks, "damaged_lines": curves.damaged,
        "settings": dict(settings_of(facts)), "forecast": resources_of(facts, "forecast"),
        "measured": resources_of(facts, "measured"), "curves": series, "samples": measured.samples,
    }  # fmt: skip


def _show(facts: dict[str, Any]) -> None:
    steps = "" if facts["steps"] is None else f" of {facts['steps']:,}"
    left = "" if facts["seconds_left"] is None else f", {duration(facts['seconds_left'])} left"
    line(f"{facts['title']}: {facts['state']}, step {facts['step']:,}{steps}{left}")
    line(f"{facts['tokens']:,.0f} tokens in {duration(facts['seconds'])} of steps; {facts['folder']}")
    if facts["saved"] is not None:
        line(f"last checkpoint: step {facts['saved']:,}, {_ago(facts['saved_at'])}")
    for name, words in (("skipped", "steps without an update"), ("rollbacks", "returns to a checkpoint")):
        if facts[name]:
            line(f"{words}: {facts[name]:,}")
    for name, words in (("loss", "training loss"), ("held_out_loss", "loss on held-out text")):
        if len(facts["curves"].get(name, [])) > 1:
            line(f"\n{words}, nats a token")
            line("\n".join(plot(facts["curves"][name])))
    rows = _resources(facts)
    if rows:
        line()
        table(("", "forecast", "measured"), rows)
    if facts["samples"]:
        sample = facts["samples"][0]
        line(f"\nhow it writes after step {sample['step']:,}\n{sample['text'][:SHOWN_SAMPLE].strip()}")
    if facts["settings"]:
        line()
        table(("setting", "value"), facts["settings"].items())


def _resources(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    kinds = (
        ("time", "seconds", duration),
        ("peak memory", "peak_bytes", size),
        ("energy", "watt_hours", "{:.3g} Wh".format),
    )
    found = []
    for words, name, told in kinds:
        pair = [(facts[section] or {}).get(name) for section in ("forecast", "measured")]
        texts = ["-" if value is None or not math.isfinite(value) else told(value) for value in pair]
        if texts != ["-", "-"]:
            found.append((words, *texts))
    return found


def plot(points: Sequence[Point] | Sequence[Sequence[float]]) -> list[str]:
    """A curve's means as lines of braille dots, with the ends of both scales.

    Args:
        points: (stretch, step, mean, least, most), in order of steps.
    """
    values, last = [float(point[2]) for point in points], max(float(points[-1][1]), 1.0)
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    cells = [[0] * WIDE for _ in range(HIGH)]
    place: tuple[int, int] | None = None
    for point, value in zip(points, values, strict=True):
        column = round(float(point[1]) / last * (2 * WIDE - 1))
        row = round((high - value) / span * (4 * HIGH - 1))
        for x, y in _between(place or (column, row), (column, row)):
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
        place = (column, row)
    ends = {0: f"{high:.4g}", HIGH - 1: f"{low:.4g}"}
    wide = max(len(text) for text in ends.values())
    rows = [
        f"{ends.get(index, ''):>{wide}} ┤{''.join(chr(0x2800 + cell) for cell in row)}"
        for index, row in enumerate(cells)
    ]
    label = f"step {last:,.0f}"
    return [*rows, f"{'':>{wide}} └{'─' * WIDE}", f"{'':>{wide}}  0{label:>{WIDE - 1}}"]


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Every dot of a straight line."""
    count = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (start[0] + round((end[0] - start[0]) * step / count), start[1] + round((end[1] - start[1]) * step / count))
        for step in range(count + 1)
    ]
