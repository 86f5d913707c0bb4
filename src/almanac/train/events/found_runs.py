"""Run folders as an onlooker finds them: which there are below a folder, and how each of them stands.

Nothing is written, no lock is kept, no link is followed, and work is bounded whatever lies there: a folder may be huge, half
written, hostile, or in the middle of a run.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError
from almanac.files.strict_json import parse_json
from almanac.train.events.curves import Tally, last_lines, number, open_plain
from almanac.train.events.standing import STANDING
from almanac.train.events.tracker import title_of
from almanac.train.run_folder import CHECKPOINTS, METRICS, RUN

MAX_DEPTH, MAX_ENTRIES, MAX_RUNS = 6, 20_000, 500
MAX_FILE_BYTES = 4 << 20
TAIL_BYTES = 1 << 16
LOCK = ".lock"
SETTINGS, SETTING_CHARACTERS = 200, 200


class State(StrEnum):
    """Of a run, to the eye."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class FoundRun:
    """A run folder; ``name`` is its path below where it was looked for, ``title`` what people call it."""

    name: str
    title: str
    folder: Path


@dataclass(frozen=True)
class Summary:
    """How a run stands; what is not known is None.

    ``loss``: of the last step; ``saved``: step of the last checkpoint; ``saved_at``, ``changed_at``: seconds since 1970.
    """

    name: str
    title: str
    state: State
    step: int
    steps: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    saved: int | None
    saved_at: float | None
    changed_at: float | None


def find_runs(root: Path) -> list[FoundRun]:
    """The run folders at or below ``root``, by name.

    Raises NotFoundError where there is no such folder. Links, and names that cannot be printed, are passed over.
    """
    if not root.is_dir():
        raise NotFoundError(f"{root} is no folder", remedy="Name a folder with runs in it.")
    base = root.resolve()
    found: list[FoundRun] = []
    for folder in _folders(base):
        name = folder.relative_to(base).as_posix()
        if _is_run(folder):
            found.append(FoundRun(base.name if name == "." else name, title_of(folder), folder))
        if len(found) >= MAX_RUNS:
            break
    return sorted(found, key=lambda run: run.name)


def _folders(base: Path) -> Iterator[Path]:
    """Folders from the top down; those inside a run are its own affair."""
    pending, entries = [(base, 0)], 0
    while pending:
        folder, depth = pending.pop()
        yield folder
        if depth >= MAX_DEPTH or _is_run(folder):
            continue
        try:
            with os.scandir(folder) as items:
                for item in items:
                    entries += 1
                    if entries > MAX_ENTRIES:
                        return
                    if item.name.isprintable() and item.is_dir(follow_symlinks=False):
                        pending.append((Path(item.path), depth + 1))
        except OSError:
            continue  # not ours to read


def _is_run(folder: Path) -> bool:
    file = folder / RUN
    return file.is_file() and not file.is_symlink()


def summary_of(run: FoundRun, facts: Mapping[str, Any] | None = None) -> Summary:
    """How a run stands, from the ends of its files alone; ``facts`` are its run.json where that has been read."""
    facts = read_facts(run.folder) if facts is None else facts
    lines = list(last_lines(run.folder / METRICS, TAIL_BYTES))
    tally = Tally()
    for line in lines:
        tally.add(line)
    step = lines[-1]["step"] if lines else standing_step(facts)
    steps = steps_of(facts)
    loss = next((value for line in reversed(lines) if (value := number(line.get("loss"))) == value), None)
    saved, saved_at = _saved(run.folder / CHECKPOINTS)
    state = state_of(run.folder, facts, step)
    rate = tally.seconds_per_step
    left = rate * max(0, steps - step) if rate is not None and steps is not None and state == State.RUNNING else None
    return Summary(
        run.name, run.title, state, step, steps, loss, tally.tokens_per_second, left, saved, saved_at,
        _changed(run.folder / METRICS) or _changed(run.folder / RUN),
    )  # fmt: skip


def state_of(folder: Path, facts: Mapping[str, Any], step: int) -> State:
    """Running while somebody holds the folder's lock; finished when all steps are done."""
    if is_locked(folder):
        return State.RUNNING
    standing = facts.get(STANDING)
    if isinstance(standing, dict) and standing.get("finished") is True:
        return State.FINISHED
    steps = steps_of(facts)
    return State.FINISHED if steps is not None and step >= steps else State.STOPPED


def steps_of(facts: Mapping[str, Any]) -> int | None:
    """The steps of the whole run: as the run says, else as its settings name them."""
    places = (facts.get(STANDING), _section(facts.get("identity"), "settings"))
    for place in places:
        steps = place.get("steps") if isinstance(place, dict) else None
        if type(steps) is int and steps > 0:
            return steps
    return None


def standing_step(facts: Mapping[str, Any]) -> int:
    """The last step that run.json tells of."""
    step = _section(facts, STANDING).get("step")
    return step if type(step) is int and step >= 0 else 0


def _section(facts: object, name: str) -> Mapping[str, Any]:
    found = facts.get(name) if isinstance(facts, dict) else None
    return found if isinstance(found, dict) else {}


def settings_of(facts: Mapping[str, Any]) -> list[list[str]]:
    """The run's settings as names and texts, nested ones with dots, as many as a page can bear."""
    pending: list[tuple[str, Any]] = [("", _section(facts.get("identity"), "settings"))]
    found: list[list[str]] = []
    while pending and len(found) < SETTINGS:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}.{key}" if name else str(key), item) for key, item in reversed(list(value.items()))]
        elif value is not None:
            found.append([name[:SETTING_CHARACTERS], str(value)[:SETTING_CHARACTERS]])
    return found


def resources_of(facts: Mapping[str, Any], section: str) -> dict[str, float] | None:
    """``forecast`` or ``measured`` of run.json: seconds, bytes at the peak, watt hours; NaN for what it does not say."""
    found = facts.get(section)
    if not isinstance(found, dict):
        return None
    energy = found.get("energy")
    watt_hours = energy.get("watt_hours") if isinstance(energy, dict) else None
    return {name: number(found.get(name)) for name in ("seconds", "peak_bytes")} | {"watt_hours": number(watt_hours)}


def read_facts(folder: Path) -> dict[str, Any]:
    """run.json, or an empty object where it is none. No link is followed."""
    try:
        found = parse_json(read_plain(folder / RUN), source=RUN)
    except AlmanacError:
        return {}
    return found if isinstance(found, dict) else {}


def read_plain(path: Path) -> bytes:
    """A regular file that is no link. Raises NotFoundError, FileFormatError for one that is too large."""
    opened = open_plain(path)
    if opened is None:
        raise NotFoundError(f"There is no file {path.name} to read", remedy="Look at the folder.")
    with opened as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise FileFormatError(f"{path.name} is larger than {MAX_FILE_BYTES} bytes", remedy="It is not one of ours.")
    return content


def is_locked(folder: Path) -> bool:
    """Whether somebody is writing in a folder (see ``files.store.Lock``).

    The lock is tried, shared, and given back at once; a run that starts in those few microseconds would be told that the
    folder is in use, and is to be started again.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _saved(checkpoints: Path) -> tuple[int | None, float | None]:
    """Step and time of the generation that the pointer names."""
    pointer = checkpoints / "latest.json"
    try:
        found = parse_json(read_plain(pointer), source="latest.json")
    except AlmanacError:
        return None, None
    name = str(found.get("generation", "")) if isinstance(found, dict) else ""
    digits = name.removeprefix("step-")
    is_ours = digits.isascii() and digits.isdigit() and len(digits) < 16
    return (int(digits), _changed(pointer)) if is_ours else (None, None)


def _changed(path: Path) -> float | None:
    try:
        return path.lstat().st_mtime
    except OSError:
        return None
