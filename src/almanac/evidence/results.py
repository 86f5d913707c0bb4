"""Stored results: what was observed, with the card as it was, judged again each time it is read.

``docs/evidence/results/<name>.json`` is the latest full result; ``<name>@<version>.json`` those of earlier versions of the
card, which stay. A result is INVALID if its card is another now, if its seeds are not the ones that card and release give,
or if its own numbers do not bear out the verdict that it states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almanac.core.errors import FileFormatError, NotFoundError, UnsupportedError
from almanac.evidence.card import Card
from almanac.evidence.claim import Verdict
from almanac.evidence.experiment import card_of
from almanac.evidence.judge import By, Judgement, judge, judge_null
from almanac.evidence.outcome import Outcome
from almanac.evidence.seeds import verdict_seeds
from almanac.files.store import write_json
from almanac.files.strict_json import read_json

FOLDER = Path("docs/evidence")
SURVIVED = "survived"
SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of an experiment. ``killed``: mutant -> "oracle", "experiment" or "survived"."""

    name: str
    card: Mapping[str, Any]
    digest: str
    code: str
    release: str
    rotation: int
    profile: str
    seeds: tuple[int, ...]
    outcomes: Mapping[str, tuple[Outcome, ...]]
    killed: Mapping[str, str]
    verdict: str
    seconds: float  # processor time of all arms, seeds and mutants of this run; what came from the cache is not counted
    date: str
    machine: str

    def to_dict(self) -> dict[str, Any]:
        plain = {field: getattr(self, field) for field in self.__dataclass_fields__}
        outcomes = {arm: [outcome.to_dict() for outcome in found] for arm, found in self.outcomes.items()}
        return {"schema": SCHEMA, **plain, "seeds": list(self.seeds), "outcomes": outcomes}

    @property
    def weak(self) -> bool:
        """Whether a planted bug went unnoticed, which demotes the badge."""
        return SURVIVED in self.killed.values()

    @property
    def by(self) -> By:
        """A quick run gives the direction only."""
        return By.SIGN if self.profile == "quick" else By.INTERVAL

    def judgement(self, card: Card) -> Judgement:
        """The verdict that the stored numbers bear out; quick runs give the direction only."""
        return judge(card, self.outcomes, self.by)

    def null(self, card: Card) -> Judgement:
        """The verdict with the method replaced by the null arm; it must not be REPRODUCED."""
        return judge_null(card, self.outcomes, self.by)


def read(path: Path) -> Result:
    """A stored result. Raises FileFormatError if it is none."""
    remedy = "Run the experiment again."
    found = read_json(path)
    fields = Result.__dataclass_fields__
    if not isinstance(found, dict) or set(found) != {*fields, "schema"} or found["schema"] != SCHEMA:
        raise FileFormatError(f"{path} is no result of an experiment", remedy=remedy)
    kinds: dict[str, Any] = {
        "card": dict, "outcomes": dict, "killed": dict, "seeds": list, "rotation": int, "seconds": int | float
    }  # fmt: skip
    if wrong := [name for name in fields if not isinstance(found[name], kinds.get(name, str))]:
        raise FileFormatError(f"{path} has no valid {wrong[0]}", remedy=remedy)
    if found["name"] != path.stem.partition("@")[0]:
        raise FileFormatError(f"{path} is a result of {found['name']}", remedy="Give the file back its name.")
    count = len(found["seeds"])
    outcomes = {arm: tuple(Outcome.from_dict(item) for item in items) for arm, items in found["outcomes"].items()}
    if not count or any(len(items) != count for items in outcomes.values()):
        raise FileFormatError(f"{path} lacks outcomes of some seeds", remedy=remedy)
    values = {name: found[name] for name in fields}
    return Result(**{**values, "seeds": tuple(found["seeds"]), "outcomes": outcomes})


def fault_of(result: Result, card: Card) -> str:
    """Why a stored result counts for nothing, or ""."""
    if result.digest != card.digest() or dict(result.card) != card.to_dict():
        return "the card has changed since the run"
    seeds = verdict_seeds(card, len(result.seeds), release=result.release, rotation=result.rotation)
    if list(result.seeds) != seeds:
        return "the seeds are not those of card and release"
    if set(result.killed) != {mutant.name for mutant in card.mutants}:
        return "the mutants are not those of the card"
    try:
        found = result.judgement(card)
    except (KeyError, ZeroDivisionError, ValueError) as error:
        return f"the stored numbers do not fit the card ({error})"
    if found.verdict == Verdict.INVALID:
        return found.fault
    return "" if found.verdict == result.verdict else "the stored numbers do not bear out the verdict"


def verdict_of(result: Result, card: Card) -> Verdict:
    """The verdict that counts."""
    return Verdict.INVALID if fault_of(result, card) else Verdict(result.verdict)


def store(result: Result, folder: Path) -> Path:
    """Writes a result; one of an earlier version of the card is kept beside it.

    Raises UnsupportedError if the stored result is of the same version with other text: a changed line is a new version.
    """
    target = folder / "results" / f"{result.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        earlier = read(target)
        version = earlier.card.get("version", 1)
        if version != result.card.get("version", 1):
            write_json(target.with_name(f"{result.name}@{version}.json"), earlier.to_dict())
        elif earlier.digest != result.digest:
            raise UnsupportedError(
                f"The card of {result.name} was changed after a run, and still is version {version}",
                remedy="Raise the card's version: both histories stay to be seen.",
            )
    write_json(target, result.to_dict())
    return target


def stored(folder: Path) -> dict[str, list[Result]]:
    """All stored results by experiment, the latest first. Raises NotFoundError for results of no experiment."""
    found: dict[str, list[Result]] = {}
    for path in sorted((folder / "results").glob("*.json")):
        result = read(path)
        card_of(result.name)
        found.setdefault(result.name, []).append(result)
    return {name: sorted(items, key=lambda item: -int(item.card.get("version", 1))) for name, items in found.items()}


def require_result(name: str, folder: Path) -> Result:
    """The latest result of an experiment. Raises NotFoundError."""
    path = folder / "results" / f"{name}.json"
    if not path.is_file():
        raise NotFoundError(f"{name} has no stored result", remedy=f"Run `almanac evidence {name} --profile full`.")
    return read(path)
