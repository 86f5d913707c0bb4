"""Averages of the last checkpoints: how much better than the last weights, at a constant rate and after annealing.

Two runs a seed, one at a constant rate and one down a cosine, each read in several ways: as it ended, as the average of its
last six checkpoints, as that of its last six steps, and as an exponential average. Whatever differs between readings of one
run is the averaging and nothing else.

The peak rate was the best constant one of five on development seed 0; lines are those of the design, but that of the twin,
which was set there at a third of what was seen.
"""

from __future__ import annotations

import functools

import torch

from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect, Within
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.planted_bugs import Bug, planted
from almanac.evidence.outcome import Outcome
from almanac.evidence.train import text_runs
from almanac.evidence.train.text_runs import Size
from almanac.train.averaging.average import AverageRule, Averaging, State, Weights, averaged
from almanac.train.averaging.ema import Ema, means
from almanac.train.averaging.lawa import KEPT, Lawa
from almanac.train.events.event import Event, StepDone
from almanac.train.schedules.cosine import Cosine
from almanac.train.schedules.linear import Linear

LATEST, EXPONENTIAL, LAST = "last six checkpoints", "exponential", "last weights"
ADJACENT, ANNEALED, ANNEALED_LATEST = "last six steps", "annealed", "annealed, last six checkpoints"
ALIASED, FIRST, INVERTED = "copies are the weights themselves", "the first six are kept", "the decay is one less itself"
SIZES = {"quick": Size(steps=200, rate=6e-3), "full": Size(steps=400, rate=6e-3)}

CARD = Card(
    name="train.averaging.lawa",
    title="The average of the last checkpoints is better than the last, while the rate is high",
    claim=(
        "averaging the weights of the latest checkpoints speeds up training: the same loss is reached many epochs "
        "earlier"
    ),
    source="Kaddour 2022, arXiv 2209.14981, abstract; Tarvainen 2017, arXiv 1703.01780 (both said in our words)",
    toy_claim=(
        "at a constant rate the average of six checkpoints, spread over the last seventh of a run, has an nll on "
        "held-out text at least 0.015 lower than the weights it ends with, and so has an exponential average; after a "
        "cosine to zero there is no difference beyond 0.01"
    ),
    scope=(
        "saved epochs at the paper's scale; that averaging replaces annealing: at the same peak rate the annealed run "
        "here is the worse one, being short; averages of separate runs"
    ),
    tier="real",
    arms=(
        Arm(name=LATEST, role=METHOD, what="constant rate, the average of the last six checkpoints"),
        Arm(name=EXPONENTIAL, role=METHOD, what="constant rate, an exponential average over about 30 steps"),
        Arm(name=LAST, role=BASELINE, what="constant rate, the weights as they are at the end"),
        Arm(
            name=ADJACENT,
            role=TWIN,
            what="constant rate, the average of the last six steps: as many weights, no spread",
        ),
        Arm(name=ANNEALED, role=CONTROL, what="a cosine to zero, the weights at the end"),
        Arm(name=ANNEALED_LATEST, role=CONTROL, what="a cosine to zero, the average of the last six checkpoints"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="nll", arm=LATEST, over=LAST),
            expected=-0.045,
            fail=-0.015,
            says="the average of six checkpoints is better than the last weights",
        ),
        AtMost(
            effect=Effect(metric="nll", arm=EXPONENTIAL, over=LAST),
            expected=-0.045,
            fail=-0.015,
            says="so is an exponential average",
        ),
        AtMost(
            effect=Effect(metric="nll", arm=LATEST, over=ADJACENT),
            expected=-0.03,
            fail=-0.01,
            says="it takes checkpoints that lie apart",
        ),
        Within(
            effect=Effect(metric="nll", arm=ANNEALED_LATEST, over=ANNEALED),
            expected=0.001,
            margin=0.01,
            says="after annealing nothing is gained",
        ),
    ),
    gates=(
        Gate(arm=LAST, metric="nll", at_most=2.35, why="the last weights have learned more than pairs of letters"),
        Gate(arm=ANNEALED, metric="nll", at_most=2.4, why="so has the annealed run"),
    ),
    null=LAST,
    equal="flops",
    budget_arms=(LATEST, EXPONENTIAL, LAST, ADJACENT, ANNEALED, ANNEALED_LATEST),
    mutants=(
        Mutant(name=ALIASED, what="what is kept are the live weights, so that all copies are the last"),
        Mutant(name=FIRST, what="new checkpoints do not take the place of old ones"),
        Mutant(name=INVERTED, what="the exponential average goes to the weights by its decay", arms=(EXPONENTIAL,)),
    ),
    plot=Plot(metric="nll", lines=True, x="training step", y="nll on held-out text (nats a character)"),
)


Readings = tuple[dict[str, float], dict[str, list[tuple[float, float]]]]
"""Final nll by arm, and the curve by arm."""


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The nll of one reading of a run, and how it went."""
    size = SIZES["quick" if profile == "quick" else "full"]
    ends, curves = readings(size, seed, arm in (ANNEALED, ANNEALED_LATEST), mutant)
    return Outcome(
        metrics={"nll": ends[arm]},
        budget=text_runs.budget(text_runs.network(size, seed), size),
        curves={"nll": curves[arm]},
        data=text.digest(),
    )


@functools.lru_cache(maxsize=4)
def readings(size: Size, seed: int, annealed: bool, mutant: str | None) -> Readings:
    """Trains once; every reading at the end, and at a tenth of the run and every tenth after it."""
    model = text_runs.network(size, seed)
    rules = {LATEST: rule(size), ADJACENT: Lawa(last=6, every=1), EXPONENTIAL: Ema(decay=1 - 12 / size.steps)}
    averages = {name: Averaging(made, name=name) for name, made in rules.items()}
    names = {LATEST: ANNEALED_LATEST, LAST: ANNEALED} if annealed else {name: name for name in (LAST, *rules)}
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names.values()}

    def look(event: Event) -> None:
        if not isinstance(event, StepDone) or event.step % (size.steps // 10):
            return
        for name, shown in names.items():
            if name == LAST:
                found = text_runs.held_out_nll(model, size)
            else:
                with averaged(model, averages[name].weights()):
                    found = text_runs.held_out_nll(model, size)
            curves[shown].append((float(event.step), found))
        model.train()

    chosen = text_runs.settings(size, seed, schedule=Cosine() if annealed else Linear(floor=1.0))
    with planted(mutant, BUGS):
        text_runs.trained(model, chosen, text_runs.windows(size, seed), listeners=(*averages.values(), look))
    return {name: points[-1][1] for name, points in curves.items()}, curves


def rule(size: Size) -> Lawa:
    """Six checkpoints over about a seventh of the run."""
    return Lawa(last=6, every=max(1, size.steps // 40))


def check(mutant: str | None) -> None:
    """Averages of a walk of known weights: of the last six checkpoints, and by the sum that an exponential one is."""
    with planted(mutant, BUGS):
        weight = torch.zeros(1)
        latest: State = {}
        exponential: State = {}
        expected = 0.0
        for step in range(1, 101):
            weight += 1.0  # in place, as an optimizer does it
            Lawa(last=6, every=10).take(latest, {"w": weight}, (step, 100))
            Ema(decay=0.8).take(exponential, {"w": weight}, (step, 100))
            decay = min(0.8, step / (9 + step)) if step > 1 else 0.0
            expected = decay * expected + (1 - decay) * step
        assert float(Lawa(last=6, every=10).mean(latest)["w"]) == 75.0, "not 50, 60, 70, 80, 90 and 100"
        assert abs(float(means(exponential)["w"]) - expected) < 1e-4, "not the sum"


_take_lawa, _take_ema = Lawa.take, Ema.take


def _aliased(self: Lawa, state: State, weights: Weights, progress: tuple[int, int]) -> None:
    if progress[0] % self.every == 0:
        slot = progress[0] // self.every % self.last
        state.update({f"{KEPT}{slot}/{name}": weight for name, weight in weights.items()})


def _first(self: Lawa, state: State, weights: Weights, progress: tuple[int, int]) -> None:
    if progress[0] <= self.every * self.last:
        _take_lawa(self, state, weights, progress)


def _inverted(self: AverageRule, state: State, weights: Weights, progress: tuple[int, int]) -> None:
    assert isinstance(self, Ema)
    _take_ema(Ema(decay=1 - self.decay), state, weights, progress)


BUGS = {
    ALIASED: Bug(Lawa, "take", _aliased),
    FIRST: Bug(Lawa, "take", _first),
    INVERTED: Bug(Ema, "take", _inverted),
}
