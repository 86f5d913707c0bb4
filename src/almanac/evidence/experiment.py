"""Experiments: finding them, and running one arm of one, once: what was run before with the same code is not run again.

An experiment is a module below ``evidence``, at the path of what it backs, with

- ``CARD``: the frozen `Card`;
- ``run(arm, seed, profile, mutant) -> Outcome``: everything about that arm, for ``profile`` "quick", "full" or "gpu";
- optionally ``check(mutant)``: a cheap exact check (an oracle) of the code under test. It passes for None, and for a mutant
  that it can see it raises AssertionError or an error of ours.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import cast

import torch

import almanac.evidence
from almanac.core.errors import AlmanacError, NotFoundError
from almanac.evidence.card import Card
from almanac.evidence.code import code_digest
from almanac.evidence.outcome import Outcome
from almanac.files.store import remove_partials, write_json
from almanac.files.strict_json import read_json

PROFILES = ("quick", "full", "gpu")
Tell = Callable[[str, int, int], None]
"""(what, done, total)."""


@functools.cache
def names() -> list[str]:
    """The experiments that exist, by the catalog name of what they back."""
    prefix = f"{almanac.evidence.__name__}."
    found = pkgutil.walk_packages(almanac.evidence.__path__, prefix)
    modules = (importlib.import_module(info.name) for info in found if not info.ispkg)
    return sorted(card.name for module in modules if isinstance(card := vars(module).get("CARD"), Card))


def experiment(name: str) -> ModuleType:
    """The module of an experiment. Raises NotFoundError."""
    path = f"{almanac.evidence.__name__}.{name}"
    try:
        module = importlib.import_module(path) if importlib.util.find_spec(path) else None
    except ModuleNotFoundError:
        module = None
    card = vars(module).get("CARD") if module else None
    if module is None or not isinstance(card, Card) or card.name != name:
        raise NotFoundError(
            f"No experiment is called {name!r}", remedy="`almanac evidence --list` shows those there are."
        )
    return module


def card_of(name: str) -> Card:
    """The card of an experiment. Raises NotFoundError."""
    return cast("Card", experiment(name).CARD)


@functools.cache
def digest_of(name: str) -> str:
    """The digest of the code that an experiment runs, as it was when this process first asked."""
    return code_digest(f"{almanac.evidence.__name__}.{name}")


def cache_folder() -> Path:
    """Where finished arms are kept between runs: ``$XDG_CACHE_HOME/almanac/evidence`` or ``~/.cache/almanac/evidence``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "almanac" / "evidence"


def run_arm(name: str, arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One arm, from the cache if the same code has run it with the same seed, profile and mutant."""
    module = experiment(name)
    key = f"{profile}-{seed}-{_plain(arm)}" + (f"-{_plain(mutant)}" if mutant else "")
    path = cache_folder() / name / digest_of(name)[:16] / f"{key}.json"
    if path.is_file():
        return Outcome.from_dict(read_json(path))
    outcome = cast("Outcome", module.run(arm, seed, profile, mutant))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, outcome.to_dict())
    return outcome


def _plain(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)


Job = tuple[str, int, str, str | None, tuple[str, ...]]
"""(experiment, seed, profile, mutant, arms)."""


def run_seed(job: Job) -> dict[str, Outcome] | str:
    """All arms of one seed; or what went wrong, where the code under test refuses to go on (a mutant may make it)."""
    name, seed, profile, mutant, arms = job
    try:
        return {arm: run_arm(name, arm, seed, profile, mutant) for arm in arms}
    except AlmanacError as error:
        return f"{type(error).__name__}: {error}"


def observe(jobs: Sequence[Job], *, parallel: bool, tell: Tell) -> list[dict[str, Outcome] | str]:
    """Runs jobs over the cores, one thread each (or one after the other with all threads), in the order given."""
    for name in {job[0] for job in jobs}:  # here and not beside other workers, whose files are partial while they write
        for folder in (cache_folder() / name).glob("*"):
            remove_partials(folder)
    found: list[dict[str, Outcome] | str | None] = [None] * len(jobs)
    workers = min(os.cpu_count() or 1, len(jobs)) if parallel else 0
    if workers < 2:
        for place, job in enumerate(jobs):
            found[place] = run_seed(job)
            tell(job[0], place + 1, len(jobs))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            waiting = {pool.submit(run_seed, job): place for place, job in enumerate(jobs)}
            for done, future in enumerate(as_completed(waiting), 1):
                found[waiting[future]] = future.result()
                tell(jobs[waiting[future]][0], done, len(jobs))
    return [item for item in found if item is not None]


def _one_thread() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
