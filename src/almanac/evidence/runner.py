"""Runs experiments, stores what they found, and draws the pages from what is stored; nothing else is ever drawn.

An experiment is a module below ``evidence`` at the path of what it backs, with ``CARD`` and ``measure(profile, seed, mutant)
-> Measurement``. Its verdict is REPRODUCED only if the metric holds *and* every mutant of the card makes it fail.
"""

from __future__ import annotations

import datetime
import importlib
import os
import pkgutil
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import almanac.evidence
from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError
from almanac.evidence.card import Card
from almanac.files.store import write_atomic, write_json
from almanac.files.strict_json import read_json

REPRODUCED, NOT_REPRODUCED, INVALID = "REPRODUCED", "NOT REPRODUCED", "INVALID"
FOLDER = Path("docs/evidence")


@dataclass(frozen=True)
class Measurement:
    """The primary figure (smaller is better), whether it holds, and whatever else was counted."""

    value: float
    holds: bool
    details: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What one run of an experiment found."""

    name: str
    verdict: str
    value: float
    threshold: float
    details: dict[str, Any]
    mutants: dict[str, bool]  # killed?
    card: str
    profile: str
    seed: int
    seconds: float
    date: str
    machine: str

    def to_dict(self) -> dict[str, Any]:
        return {field: getattr(self, field) for field in self.__dataclass_fields__}


def names() -> list[str]:
    """The experiments that exist, by the catalog name of what they back."""
    prefix = f"{almanac.evidence.__name__}."
    found = pkgutil.walk_packages(almanac.evidence.__path__, prefix)
    modules = (importlib.import_module(info.name) for info in found if not info.ispkg)
    return sorted(card.name for module in modules if isinstance(card := vars(module).get("CARD"), Card))


def run(name: str, *, profile: str = "quick", seed: int = 0, folder: Path | None = None) -> Result:
    """Runs an experiment with all its mutants and stores the result below ``folder`` (default: docs/evidence, if there).

    Raises NotFoundError if there is no such experiment.
    """
    module = experiment(name)
    card: Card = module.CARD
    started = time.monotonic()
    found: Measurement = module.measure(profile, seed, None)
    killed = {mutant: kills(module, mutant, profile=profile, seed=seed) for mutant in card.mutants}
    result = Result(
        name=name,
        verdict=REPRODUCED if found.holds and all(killed.values()) else NOT_REPRODUCED,
        value=found.value,
        threshold=card.threshold,
        details=found.details,
        mutants=killed,
        card=card.digest(),
        profile=profile,
        seed=seed,
        seconds=round(time.monotonic() - started, 1),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine(),
    )
    target = folder or (FOLDER if FOLDER.is_dir() else None)
    if target is not None:
        (target / "results").mkdir(parents=True, exist_ok=True)
        write_json(target / "results" / f"{name}.json", result.to_dict())
    return result


def kills(module: ModuleType, mutant: str, *, profile: str, seed: int) -> bool:
    """Whether an experiment notices a mutant: its figure no longer holds, or the broken code refuses to go on."""
    try:
        return not module.measure(profile, seed, mutant).holds
    except AlmanacError:
        return True


def experiment(name: str) -> ModuleType:
    """The module of an experiment. Raises NotFoundError."""
    if name not in names():
        raise NotFoundError(
            f"No experiment is called {name!r}", remedy="`almanac evidence --list` shows those there are."
        )
    return importlib.import_module(f"{almanac.evidence.__name__}.{name}")


def machine() -> str:
    """The machine in words that name nobody: system, processor family and its instructions, cores, threads, torch."""
    processor = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{platform.system()} {processor}, {cores}, torch {torch.__version__}"


def render(check: bool = False, *, folder: Path = FOLDER) -> bool:
    """Draws the pages from the stored results; with ``check`` only tells whether they are what they would be."""
    results = {path.stem: _stored(path) for path in sorted((folder / "results").glob("*.json"))}
    pages = {"index.md": _index(results), **{f"{name}.md": _page(name, found) for name, found in results.items()}}
    current = all((folder / name).is_file() and (folder / name).read_text() == text for name, text in pages.items())
    if not check:
        for name, text in pages.items():
            write_atomic(folder / name, text.encode())
    return current or not check


def _stored(path: Path) -> dict[str, Any]:
    """A stored result; INVALID if its card is another now, or if what it counted does not bear its verdict out."""
    found = read_json(path)
    kinds = {"value": float, "threshold": float, "seconds": float, "details": dict, "mutants": dict}
    fields = Result.__dataclass_fields__
    if not isinstance(found, dict) or set(found) != set(fields) or found["name"] != path.stem:
        raise FileFormatError(f"{path} is no result of {path.stem}", remedy="Run the experiment again.")
    if wrong := [name for name in fields if not isinstance(found[name], kinds.get(name, str | int))]:
        raise FileFormatError(f"{path} has no valid {wrong[0]}", remedy="Run the experiment again.")
    card: Card = experiment(path.stem).CARD
    is_current = (found["card"], found["threshold"]) == (card.digest(), card.threshold)
    bears_out = found["value"] <= card.threshold and found["mutants"] == dict.fromkeys(card.mutants, True)
    if not is_current or (found["verdict"] == REPRODUCED and not bears_out):
        found["verdict"] = INVALID
    return found


def _index(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Evidence",
        "",
        "Each line is an experiment that can fail, with the figure it found, drawn from stored results.",
        "",
        "| experiment | verdict | figure | threshold | mutants killed | seconds | date |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        killed = f"{sum(found['mutants'].values())} of {len(found['mutants'])}"
        cells = (
            f"{found['verdict']} | {found['value']:.3g} | {found['threshold']:.3g} | {killed} | {found['seconds']:.0f}"
        )
        lines.append(f"| [{name}]({name}.md) | {cells} | {found['date']} |")
    return "\n".join([*lines, ""])


def _page(name: str, found: dict[str, Any]) -> str:
    card: Card = experiment(name).CARD
    rows = [f"| {key.replace('_', ' ')} | {value} |" for key, value in found["details"].items()]
    mutants = [f"| {mutant} | {'killed' if killed else 'SURVIVED'} |" for mutant, killed in found["mutants"].items()]
    return "\n".join(
        [
            f"# {card.title}",
            "",
            f"**{found['verdict']}**: {card.metric} {found['value']:.3g}, threshold {card.threshold:.3g}.",
            "",
            f"The claim: {card.claim} ({card.source})",
            "",
            f"What is tested: {card.toy_claim}",
            "",
            f"Expected: {card.expected}. Does not show: {card.scope}",
            "",
            "| counted | |",
            "|---|---|",
            *rows,
            "",
            "| mutant | |",
            "|---|---|",
            *mutants,
            "",
            f"Profile {found['profile']}, seed {found['seed']}, {found['seconds']:.0f} s, {found['date']},",
            f"{found['machine']}. Card `{found['card'][:16]}`.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(0 if render(check="--check" in sys.argv) else 1)
