"""What every tracker obeys: a value that makes a listener, which shows a run in somebody else's viewer.

A tracker is told of steps, of what was measured on held-out text with its sample, of the settings, and of the forecast beside
what came. It is a copy for looking at: the run folder stays the record, and what the tracker lacks of it (it was switched on
late, or the run was killed before its queue was written) is made good from ``metrics.jsonl`` when the run goes on. A step
that is done again after a crash is not told twice: a resumed run repeats itself exactly, so what was told stands.

Nothing leaves the machine unless ``offline`` is False.
"""

from __future__ import annotations

import json
import secrets
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from almanac.core.catalog import resolve
from almanac.core.errors import AlmanacError, MissingExtraError, RequestError
from almanac.core.value import Value
from almanac.files.store import write_json
from almanac.files.strict_json import read_json
from almanac.train.events.event import Ended, Event, Listener, Saving, Started, StepDone
from almanac.train.events.metrics import line_of
from almanac.train.run_folder import METRICS, read_run

NAMES = {
    "tensorboard": "train.events.tensorboard.TensorBoard",
    "trackio": "train.events.trackio.Trackio",
    "wandb": "train.events.wandb.Wandb",
}
"""What a user calls a tracker -> its kind."""
MEASURED = "measured.jsonl"  # beside the run folder: a line of JSON per measurement
SAMPLE = "sample"
_HIDDEN_RUN = "run"  # what the run folder inside an output folder is called

Numbers = Mapping[str, float]
Texts = Mapping[str, str]


class Sink(Protocol):
    """An open run of a tracker; ``known`` is the last step that it has from before."""

    known: int

    def write(self, step: int, numbers: Numbers, texts: Texts) -> None:
        """Everything of one step; steps come in order, each once."""

    def flush(self) -> None:
        """What was written must outlive the process."""

    def summarise(self, step: int, numbers: Numbers, texts: Texts) -> None:
        """What the run came to, so far."""

    def close(self) -> None:
        """Ends this part of the run."""


@dataclass(frozen=True)
class Opening:
    """What a tracker is told when a run begins or goes on.

    - ``folder``: of the run; ``name``: what people call it; ``key``: of this run alone, 32 hex digits, kept over restarts
    - ``settings``: of the run, flat; ``step``: done already
    """

    folder: Path
    name: str
    key: str
    settings: Mapping[str, Any]
    step: int


@dataclass(frozen=True, kw_only=True)
class Tracker(Value):
    """Where a run is shown.

    - ``project``: under which the viewer files the run
    - ``offline``: nothing is sent anywhere
    """

    project: str = "almanac"
    offline: bool = True

    @abstractmethod
    def open(self, opening: Opening) -> Sink:
        """The tracker's run. Raises MissingExtraError where its package is not installed, RequestError."""

    def build(self, folder: str | Path) -> Listener:
        """A listener for the run in ``folder``, which the loop has made before it starts.

        Measurements are read from ``measured.jsonl`` in the folder or beside it, so whoever writes them must come before this
        listener in the list. Raises as `open`, when the run starts.
        """
        return Tracking(self, Path(folder))


def named(name: str) -> Tracker:
    """The tracker that users call ``name``. Raises RequestError for a name that is none."""
    if name not in NAMES:
        raise RequestError(f"No tracker is called {name!r}", remedy=f"There are {', '.join(NAMES)}.")
    return resolve(NAMES[name], of=Tracker)()


def missing(package: str) -> MissingExtraError:
    """What is said where a tracker's package is not installed."""
    return MissingExtraError(
        f"Tracking with {package} needs the package {package}",
        remedy=f"Run pip install 'almanac-lm[track]', or pip install {package}.",
    )


class Tracking:
    """Listener that keeps a tracker's run in step with a run folder."""

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        self.tracker, self.folder = tracker, folder
        self._measured = Measured(folder)
        self._sink: Sink | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, StepDone):
            self._step(json.loads(line_of(event)))
        elif isinstance(event, Saving) and self._sink is not None:
            self._sink.flush()
        elif isinstance(event, Ended) and self._sink is not None:
            self._sink.summarise(event.step, *_resources(read_run(self.folder)))
            self._sink.close()
            self._sink = None

    def _start(self, event: Started) -> None:
        identity = read_run(self.folder)["identity"]
        settings = dict(_flat("", identity.get("settings", {}))) | {"trainable": event.trainable, "steps": event.steps}
        self._sink = self.tracker.open(
            Opening(self.folder, title_of(self.folder), _key(self.folder), settings, event.step)
        )
        if self._sink.known < 0:
            self._sink.write(0, *_measurement(self._measured.at(0)))
        for line in _history(self.folder / METRICS, self._sink.known, event.step):
            self._step(line)

    def _step(self, line: Mapping[str, Any]) -> None:
        assert self._sink is not None, "the loop starts before it steps"
        step = line["step"]
        if step > self._sink.known:
            numbers, texts = _measurement(self._measured.at(step))
            self._sink.write(step, {**numbers_of(line), **numbers}, texts)


class Measured:
    """What was measured at which step, where whoever runs the run takes measurements; read again when there are more."""

    def __init__(self, folder: Path) -> None:
        self.places = (folder / MEASURED, folder.parent / MEASURED)
        self._seen: tuple[int, int] | None = None
        self._found: dict[int, Mapping[str, Any]] = {}

    def at(self, step: int) -> Mapping[str, Any]:
        """The measurement after ``step`` steps; empty where there is none."""
        path = next((place for place in self.places if place.is_file()), None)
        if path is not None:
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._seen = seen
                self._found = {item["step"]: item for item in map(json.loads, path.read_text().splitlines())}
        return self._found.get(step, {})


def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The curves that a line of ``metrics.jsonl`` belongs to; what is not a number there is left out."""
    found = {f"train/{name}": line.get(name) for name in ("loss", "learning_rate", "gradient_norm")}
    found |= {f"train/{name}": value for name, value in line.get("metrics", {}).items()}
    seconds = line.get("seconds") or 0.0
    if seconds > 0:
        found["train/tokens_per_second"] = line["tokens"] / seconds
    if line.get("skipped") is not None:
        found["train/skipped"] = 1.0
    return {name: float(value) for name, value in found.items() if value is not None}


def title_of(folder: Path) -> str:
    """What people call the run in a folder: the folder's name, or that of the output folder it is hidden in."""
    parts = [part for part in folder.absolute().parts if not part.startswith(".")]
    is_hidden = folder.name == _HIDDEN_RUN and folder.absolute().parent.name.startswith(".")
    return parts[-2] if is_hidden and len(parts) > 1 else parts[-1]


def _measurement(found: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    told = ("loss", "bits_per_byte", "accuracy")
    numbers = {f"held_out/{name}": float(found[name]) for name in told if found.get(name) is not None}
    return numbers, {SAMPLE: found["sample"]} if found.get("sample") else {}


def _history(path: Path, known: int, step: int) -> Iterator[Mapping[str, Any]]:
    """The logged steps that a tracker lacks, up to ``step``."""
    if known >= step or not path.exists():
        return
    with path.open("rb") as stream:
        for text in stream:
            line = json.loads(text)
            if known < line["step"] <= step:
                yield line


def _resources(run: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Forecast and measured, as far as run.json has them."""
    numbers, rows = {}, []
    for name in ("seconds", "peak_bytes"):
        pair = [run.get(section, {}).get(name) for section in ("forecast", "measured")]
        numbers |= {
            f"{section}/{name}": float(value)
            for section, value in zip(("forecast", "measured"), pair, strict=True)
            if value is not None
        }
        rows.append(f"| {name} | {' | '.join('-' if value is None else f'{value:.4g}' for value in pair)} |")
    text = "\n".join(["| | forecast | measured |", "|---|---|---|", *rows])
    return numbers, {"forecast": text} if numbers else {}


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Nested settings as ``optimizer.beta2``."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else str(name), item)
    else:
        yield prefix, value if isinstance(value, bool | int | float | str) or value is None else json.dumps(value)


def _key(folder: Path) -> str:
    """The run's own key, kept in its folder, which only ever holds one run."""
    path = folder / "tracked.json"
    try:
        found = read_json(path)
    except AlmanacError:
        found = None  # tracked for the first time
    if isinstance(found, dict) and isinstance(found.get("key"), str):
        return found["key"]
    key = secrets.token_hex(16)
    write_json(path, {"key": key})
    return key
