"""Experiments whose outcome is known, to test the engine with: a method that gains ``EFFECT`` over a baseline at 0.5."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import almanac.evidence
from almanac.evidence import experiment as experiments
from almanac.evidence.card import BASELINE, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.outcome import Outcome

NAME = "pretended"
CARD = Card(
    name=NAME,
    title="A pretended method gains what we say it gains",
    claim="the method is better than the baseline",
    source="nobody, nowhere",
    toy_claim="the accuracy of the method is at least 0.2 above the baseline's",
    scope="anything at all",
    tier="planted",
    arms=(
        Arm(name="method", role=METHOD, what="gains"),
        Arm(name="baseline", role=BASELINE, what="does not"),
        Arm(name="twin", role=TWIN, what="gains nothing either"),
    ),
    claims=(
        AtLeast(effect=Effect(metric="accuracy", arm="method", over="baseline"), expected=0.4, says="gains", fail=0.2),
        AtLeast(effect=Effect(metric="accuracy", arm="method", over="twin"), expected=0.4, says="and why", fail=0.2),
    ),
    null="baseline",
    gates=(Gate(arm="baseline", metric="accuracy", why="the baseline plays", at_least=0.4),),
    equal="flops",
    budget_arms=("method", "baseline"),
    mutants=(Mutant(name="sign", what="the gain is a loss"), Mutant(name="nothing", what="no gain")),
    plot=Plot(metric="accuracy"),
)


class Pretended:
    """What the pretended experiment does; tests change its fields."""

    def __init__(self) -> None:
        self.gain, self.noise, self.flops = 0.4, 0.02, {"method": 100.0, "baseline": 100.0, "twin": 100.0}
        self.base = 0.5
        self.mutants: dict[str, float] = {"sign": -0.4, "nothing": 0.0}
        self.calls: list[tuple[str, int, str, str | None]] = []
        self.before: Callable[[str, int], None] = lambda arm, seed: None

    def run(self, arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
        self.before(arm, seed)
        self.calls.append((arm, seed, profile, mutant))
        wobble = random.Random(f"{seed}/{arm}").uniform(-self.noise, self.noise)
        gain = self.mutants[mutant] if mutant else self.gain
        accuracy = self.base + wobble + (gain if arm == "method" else 0.0)
        return Outcome({"accuracy": accuracy}, {"flops": self.flops[arm]}, {"course": [(1, 0.1), (2, accuracy)]})


def install(monkeypatch: pytest.MonkeyPatch, pretended: Pretended, card: Card = CARD, **names: Any) -> ModuleType:
    """Makes ``almanac.evidence.<name of the card>`` an experiment, run in this process; the only one there is."""
    path = f"{almanac.evidence.__name__}.{card.name}"
    module = ModuleType(path)
    module.CARD, module.run = card, pretended.run  # type: ignore[attr-defined]
    for name, value in names.items():
        setattr(module, name, value)

    def find(name: str) -> ModuleType:
        if name != card.name:
            raise experiments.NotFoundError(f"No experiment is called {name!r}", remedy="None.")
        return module

    monkeypatch.setitem(sys.modules, path, module)
    for owner in ("experiment", "runner"):
        monkeypatch.setattr(f"almanac.evidence.{owner}.experiment", find)
    for owner in ("experiment", "pages"):
        monkeypatch.setattr(f"almanac.evidence.{owner}.names", lambda: [card.name])
    for owner in ("results", "pages", "experiment"):
        monkeypatch.setattr(f"almanac.evidence.{owner}.card_of", lambda name: find(name).CARD)
    for owner in ("experiment", "runner"):
        monkeypatch.setattr(f"almanac.evidence.{owner}.digest_of", lambda name: "0" * 64)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    return module
