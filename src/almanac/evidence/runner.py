"""Runs experiments: verdict seeds over the cores, one doubling if the first look is inconclusive, then every mutant.

A run that was killed goes on where it was: every arm of every seed is kept as soon as it is done. A quick run gives the
direction of the effects only and is not stored; only ``full`` and ``gpu`` earn a verdict.
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from almanac.core.errors import AlmanacError, TrainingError
from almanac.evidence.card import Card, Mutant
from almanac.evidence.claim import Verdict
from almanac.evidence.experiment import Job, Tell, digest_of, experiment, observe
from almanac.evidence.judge import By, judge
from almanac.evidence.outcome import GateError, Outcome
from almanac.evidence.results import FOLDER, SURVIVED, Result, store
from almanac.evidence.seeds import development_seeds, release, verdict_seeds

MUTANT_SEEDS = 2
ORACLE, EXPERIMENT = "oracle", "experiment"


def run(
    name: str,
    *,
    profile: str = "quick",
    rotation: int = 0,
    development: bool = False,
    folder: Path | None = None,
    tell: Tell = lambda what, done, total: None,
) -> Result:
    """Runs an experiment with all its mutants; a full result is stored below ``folder`` (default: docs/evidence, if there).

    With ``development`` the seeds are 0, 1, ... and nothing is stored: that is for tuning, and gives no verdict.

    Raises:
        NotFoundError: there is no such experiment. UnsupportedError: its card was changed without a new version.
        TrainingError: the experiment itself cannot be run.
    """
    module = experiment(name)
    card: Card = module.CARD
    started = _processor_seconds()
    _require_sound(module, card)
    count = card.quick_seeds if profile == "quick" else card.seeds

    def seeds_of(number: int) -> list[int]:
        if development:
            return development_seeds(number)
        return verdict_seeds(card, number, release=release(), rotation=rotation)

    seeds = seeds_of(count)
    outcomes = _outcomes(card, seeds, profile, tell)
    found = judge(card, outcomes, By.SIGN if profile == "quick" else By.INTERVAL)
    if found.verdict == Verdict.INCONCLUSIVE:
        seeds = seeds_of(2 * count)
        outcomes = _outcomes(card, seeds, profile, tell)
        found = judge(card, outcomes)
    killed = {
        mutant.name: kill(module, card, mutant, outcomes, seeds=seeds[:MUTANT_SEEDS], profile=profile, tell=tell)
        for mutant in card.mutants
    }
    result = Result(
        name=name,
        card=card.to_dict(),
        digest=card.digest(),
        code=digest_of(name),
        release=release(),
        rotation=rotation,
        profile=profile,
        seeds=tuple(seeds),
        outcomes={arm: tuple(items) for arm, items in outcomes.items()},
        killed=killed,
        verdict=str(found.verdict),
        seconds=round(_processor_seconds() - started, 1),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine(),
    )
    target = folder or (FOLDER if FOLDER.is_dir() else None)
    if target is not None and profile != "quick" and not development:
        store(result, target)
    return result


def _outcomes(card: Card, seeds: Sequence[int], profile: str, tell: Tell) -> dict[str, list[Outcome]]:
    """arm -> one outcome a seed. Raises GateError or TrainingError where an arm could not be run."""
    arms = tuple(arm.name for arm in card.arms)
    jobs: list[Job] = [(card.name, seed, profile, None, arms) for seed in seeds]
    observed = observe(jobs, parallel=card.parallel, tell=tell)
    found: dict[str, list[Outcome]] = {arm: [] for arm in arms}
    for seed, item in zip(seeds, observed, strict=True):
        if isinstance(item, str):
            raise TrainingError(f"{card.name}, seed {seed}: {item}", remedy="The experiment is not sound as it stands.")
        for arm, outcome in item.items():
            found[arm].append(outcome)
    return found


def kill(
    module: ModuleType,
    card: Card,
    mutant: Mutant,
    healthy: dict[str, list[Outcome]],
    *,
    seeds: Sequence[int],
    profile: str,
    tell: Tell = lambda what, done, total: None,
) -> str:
    """How a planted bug is noticed: by the oracle, by the experiment (a claim or a gate no longer holds), or not at all."""
    if (check := vars(module).get("check")) is not None:
        try:
            check(mutant.name)
        except (AssertionError, AlmanacError):
            return ORACLE
    arms = card.mutated(mutant)
    jobs: list[Job] = [(card.name, seed, profile, mutant.name, arms) for seed in seeds]
    observed = observe(jobs, parallel=card.parallel, tell=tell)
    if any(isinstance(item, str) for item in observed):
        return EXPERIMENT
    broken = {arm: found[: len(seeds)] for arm, found in healthy.items()}
    broken |= {arm: [item[arm] for item in observed if isinstance(item, dict)] for arm in arms}
    verdict = judge(card, broken, By.SIGN if profile == "quick" else By.LINE).verdict
    return SURVIVED if verdict == Verdict.REPRODUCED else EXPERIMENT


def _require_sound(module: ModuleType, card: Card) -> None:
    """The oracle must pass on the code as it is. Raises GateError."""
    if (check := vars(module).get("check")) is not None:
        try:
            check(None)
        except AssertionError as error:
            raise GateError(f"The oracle of {card.name} fails: {error}", remedy="Mend the technique first.") from error


def machine() -> str:
    """The machine in words that name nobody: system, processor family and its instructions, cores, torch."""
    processor = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return f"{platform.system()} {processor}, {os.cpu_count()} cores, torch {torch.__version__}"


def _processor_seconds() -> float:
    """Of this process and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)
