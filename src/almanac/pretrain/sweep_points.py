"""Runs to fit a law to, read from wherever they are: folders of runs, a table, or lines of JSON.

A folder is one that `pretrain` or a sweep wrote, or holds such folders. A run that is not finished has a learning rate that
has not come down, and its loss is no point of any law (Hoffmann 2022, arXiv 2203.15556, section 3.1): it is refused by name.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.core.errors import FileFormatError, NotFoundError, PreflightError
from almanac.evaluate.scaling_law import Points
from almanac.files.quoting import quoted
from almanac.files.strict_json import parse_json, read_json
from almanac.pretrain.run import RUN as PRETRAIN_RUN
from almanac.pretrain.run import WORK
from almanac.pretrain.settings import PretrainSettings
from almanac.pretrain.sweep_run import RESULT, RUN

NAMES = {
    "parameters": ("parameters", "params", "n"),
    "tokens": ("tokens", "d", "training_tokens"),
    "loss": ("loss", "l"),
    "unique": ("unique", "unique_tokens", "u"),
    "non_embedding": ("non_embedding",),
}
"""What a column may be called, in lower case."""
NEEDED = ("parameters", "tokens", "loss")


@dataclass(frozen=True)
class Runs:
    """``rows``: the runs' numbers by the names of `NAMES`; ``whence``: where each was found."""

    rows: tuple[Mapping[str, float], ...]
    whence: tuple[str, ...]

    def points(self, *, size: str = "parameters") -> Points:
        """As a fit wants them; ``size``: parameters, or non_embedding where a law counts no embeddings.

        Raises FileFormatError where the runs do not tell that size; ShapeError for numbers that no run can have.
        """
        if missing := [whence for row, whence in zip(self.rows, self.whence, strict=True) if size not in row]:
            raise FileFormatError(
                f"{missing[0]} does not tell its {size}", remedy=f"Add a column {size}, or choose another form."
            )
        repeated = [row.get("unique", row["tokens"]) for row in self.rows]
        unique = repeated if any(row["tokens"] > u for row, u in zip(self.rows, repeated, strict=True)) else None
        sizes, tokens, losses = ([row[name] for row in self.rows] for name in (size, "tokens", "loss"))
        return Points.of(sizes, tokens, losses, unique)


def read_runs(places: Sequence[str | Path]) -> Runs:
    """The finished runs at ``places``: folders, .csv, .json or .jsonl files.

    Raises:
        NotFoundError: a place that is not there. FileFormatError: a file without parameters, tokens and loss.
        PreflightError: a run that is not finished, or no run at all.
    """
    rows: list[Mapping[str, float]] = []
    whence: list[str] = []
    for place in map(Path, places):
        for where, record in _records(place):
            rows.append(_row(record, where))
            whence.append(where)
    if not rows:
        raise PreflightError("There is no run there", remedy="Name folders of runs, or a .csv or .jsonl file of them.")
    return Runs(tuple(rows), tuple(whence))


def _records(place: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if place.is_dir():
        yield from _folder(place)
        return
    if not place.is_file():
        raise NotFoundError(f"{quoted(place, limit=200)} is not there", remedy="Name folders or files of runs.")
    if place.suffix == ".csv":
        lines = place.read_text(encoding="utf-8-sig").splitlines()
        yield from ((f"{place.name}, line {number}", row) for number, row in enumerate(csv.DictReader(lines), 2))
        return
    data = read_json(place) if place.suffix == ".json" else _lines(place)
    if not isinstance(data, list):
        data = [data]
    for number, row in enumerate(data, 1):
        if not isinstance(row, dict):
            raise FileFormatError(
                f"{place.name}: item {number} is no object", remedy="Give one JSON object for every run."
            )
        yield f"{place.name}, run {number}", row


def _lines(place: Path) -> list[object]:
    lines = place.read_bytes().splitlines()
    return [parse_json(line, source=f"{place.name}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]


def _folder(place: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A run's own folder, or those below it, in the order of their names."""
    if (found := _of_run(place)) is not None:
        yield str(place), found
        return
    for below in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _folder(below)


def _of_run(place: Path) -> Mapping[str, Any] | None:
    if (place / RESULT).is_file():
        found = read_json(place / RESULT)
        return found if isinstance(found, dict) else {}
    if (place / "pretraining.json").is_file():
        facts: Any = read_json(place / "pretraining.json")
        try:
            return _pretrained(facts)
        except (KeyError, TypeError, IndexError) as error:
            raise FileFormatError(
                f"{place}/pretraining.json is not what pretrain writes: {error}", remedy="Make it again."
            ) from error
    if (place / RUN / "run.json").is_file() or (place / WORK / PRETRAIN_RUN / "run.json").is_file():
        raise PreflightError(
            f"The run in {quoted(place, limit=200)} is not finished: its learning rate has not come down, so its loss is no "
            "point of a law",
            remedy="Run its command again to its end, or leave it out.",
        )
    return None


def _pretrained(facts: Any) -> Mapping[str, Any]:
    settings = PretrainSettings.from_dict(facts["settings"])
    learned = facts["train"]
    return {
        "parameters": learned["parameters"], "tokens": learned["steps"] * settings.rows * (settings.time - 1),
        "loss": learned["measured"][-1]["loss"], "unique": facts["tokens"]["training"]["tokens"],
    }  # fmt: skip


def _row(record: Mapping[str, Any], where: str) -> Mapping[str, float]:
    lower = {str(name).strip().lower(): value for name, value in record.items()}
    row: dict[str, float] = {}
    for name, known in NAMES.items():
        found = next((lower[key] for key in known if key in lower and lower[key] not in (None, "")), None)
        if found is None and name in NEEDED:
            raise FileFormatError(
                f"{where} has no {name}", remedy=f"Give every run {', '.join(NEEDED)} (one of {', '.join(known)})."
            )
        if found is not None:
            try:
                row[name] = float(found)
            except (TypeError, ValueError) as error:
                raise FileFormatError(f"{where}: {name} is {found!r}", remedy="Give numbers, without units.") from error
    return row
