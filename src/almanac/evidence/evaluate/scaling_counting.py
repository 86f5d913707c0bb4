"""Kaplan's 0.73 and Chinchilla's 0.50 from one law: counted without embeddings, small models seem to grow faster."""

from __future__ import annotations

import functools

import numpy as np

import almanac.evaluate.scaling_counting as technique
from almanac.evaluate.scaling import REFIT, Law, bootstrap, fit, law_of
from almanac.evaluate.scaling_counting import (
    KAPLAN_SIZES,
    apparent_exponent,
    budget_of,
    local_exponent,
    non_embedding_parameters,
    total_parameters,
)
from almanac.evaluate.scaling_descent import Array
from almanac.evaluate.scaling_kaplan import KAPLAN, KaplanLaw
from almanac.evaluate.scaling_law import Points
from almanac.evidence.card import BASELINE, CEILING, CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot, Published
from almanac.evidence.claim import AtLeast, Effect, Within
from almanac.evidence.evaluate.scaling import points
from almanac.evidence.fixtures.planted_bugs import Bug, Bugs, planted
from almanac.evidence.outcome import Outcome

FORGOTTEN = "embeddings are forgotten"
MIXED = "the budget counts embeddings, the size does not"
LARGE = "Chinchilla's sizes instead of Kaplan's"
UNDIVIDED = "Kaplan's exponents are not divided"

CARD = Card(
    name="evaluate.scaling_counting",
    title="Kaplan and Chinchilla reconciled: what is counted decides how models seem to grow",
    claim=(
        "much of the discrepancy (N in proportion to C^0.73 against C^0.50) can be attributed to Kaplan counting "
        "non-embedding rather than total parameters, combined with their analysis being performed at small scale"
    ),
    source="Pearce 2024, arXiv 2406.12907, abstract; Kaplan 2020, arXiv 2001.08361; Hoffmann 2022, arXiv 2203.15556",
    toy_claim=(
        "Chinchilla's law, fitted to its own points drawn again with replacement, gives a study of Kaplan's sizes that "
        "counts no embeddings a power near 0.73, one that counts all parameters about 0.51, and one of large models about "
        "the same as that"
    ),
    scope="that the two studies differed in nothing else (learning rates, warm-up, last layer), nor that either law is true",
    tier="points",
    arms=(
        Arm(
            name="without embeddings",
            role=METHOD,
            what="sizes of Kaplan's study, embeddings counted in neither N nor C",
        ),
        Arm(name="all parameters", role=BASELINE, what="the same study with all parameters counted"),
        Arm(name="large models", role=CONTROL, what="no embeddings counted, models of 10^10 to 10^13 parameters"),
        Arm(name="brute force", role=CEILING, what="the frontier searched on a grid of simulated runs"),
    ),
    claims=(
        Within(
            effect=Effect(metric="exponent", arm="without embeddings"),
            expected=0.78,
            centre=0.73,
            margin=0.12,
            says="counted as Kaplan did, the power is near his",
        ),
        AtLeast(
            effect=Effect(metric="exponent", arm="without embeddings", over="all parameters"),
            expected=0.27,
            fail=0.15,
            says="the count makes the difference",
        ),
        Within(
            effect=Effect(metric="exponent", arm="large models", over="all parameters"),
            expected=0.01,
            margin=0.04,
            says="for large models it makes none",
        ),
    ),
    gates=(
        Gate(
            arm="brute force", metric="distance", at_most=0.03, why="the formula agrees with a search of the frontier"
        ),
    ),
    null="all parameters",
    mutants=(
        Mutant(name=FORGOTTEN, what="a model has no more parameters than those beside its embeddings"),
        Mutant(name=MIXED, what="C is 6 times all parameters times D while N leaves embeddings out"),
        Mutant(name=LARGE, what="the study is of 44 million to 16 billion parameters"),
        Mutant(
            name=UNDIVIDED, what="the term of the size in Kaplan's law has the power alpha_N, not alpha_N / alpha_D"
        ),
    ),
    seeds=5,
    plot=Plot(
        metric="exponent",
        y="power of the best size by the budget",
        published=(Published(label="Kaplan", value=0.73), Published(label="Chinchilla", value=0.50)),
    ),
)
CHINCHILLA_SIZES = (4.4e7, 1.6e10)
LARGE_SIZES = (1e10, 1e13)
STUDIED = 40  # sizes of the searched study


@functools.cache
def _drawn(seed: int) -> tuple[Law, str]:
    """Chinchilla's law fitted to its points drawn again."""
    found, digest = points()
    law = fit(found)
    return law_of(bootstrap(found, law, resamples=1, seed=seed)[0]), digest


def searched(law: Law, seed: int) -> float:
    """The power as a study finds it: the best of ``STUDIED`` simulated sizes for every budget, and a line through them."""
    rng = np.random.default_rng(seed)
    low, high = np.log(KAPLAN_SIZES)
    inside = np.exp(np.sort(rng.uniform(low, high, STUDIED)))
    ends = np.log(budget_of(law, np.array(KAPLAN_SIZES)))
    budgets = np.exp(np.linspace(*ends, 200))
    tokens = budgets[:, None] / (6 * inside)
    losses = law.E + law.A / total_parameters(inside) ** law.alpha + law.B / tokens**law.beta
    best = inside[losses.argmin(axis=1)]
    return float(np.polyfit(np.log(budgets), np.log(best), 1)[0])


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The power that one study finds, of a law that the seed drew."""
    law, digest = _drawn(seed)
    with planted(mutant, BUGS):
        sizes = CHINCHILLA_SIZES if mutant == LARGE else KAPLAN_SIZES
        if arm == "brute force":
            found = searched(law, seed)
            return Outcome({"exponent": found, "distance": abs(found - apparent_exponent(law))}, data=digest)
        if arm == "all parameters":
            return Outcome({"exponent": apparent_exponent(law, sizes, omega=0.0)}, data=digest)
        return Outcome(
            {"exponent": apparent_exponent(law, LARGE_SIZES if arm == "large models" else sizes)}, data=digest
        )


def _alone(non_embedding: Array | float, omega: float = 0.0) -> Array:
    return np.asarray(non_embedding, dtype=np.float64)


def _mixed(law: Law, non_embedding: Array | float, omega: float = technique.OMEGA) -> Array:
    return budget_of(law, non_embedding, omega) * total_parameters(non_embedding, omega) / np.asarray(non_embedding)


def _undivided(self: KaplanLaw, parameters: float, tokens: float, unique: float | None = None) -> float:
    return ((self.N_c / parameters) ** self.alpha_N + self.D_c / tokens) ** self.alpha_D


BUGS: Bugs = {
    FORGOTTEN: Bug(technique, "total_parameters", _alone),
    MIXED: Bug(technique, "budget_of", _mixed),
    LARGE: (),  # see `run`
    UNDIVIDED: Bug(KaplanLaw, "loss", _undivided),
}


def check(mutant: str | None) -> None:
    """Closed forms against search: the budget of a size, its slope, the inverse count, and the limits of Kaplan's law."""
    with planted(mutant, BUGS):
        inside = np.geomspace(1e3, 1e10, 8)
        total = technique.total_parameters(inside)
        assert np.allclose(non_embedding_parameters(total), inside, rtol=1e-6)
        for size in inside:
            budget = float(technique.budget_of(REFIT, size))
            near = size * np.geomspace(0.97, 1.03, 61)
            losses = [REFIT.loss(float(n + technique.OMEGA * np.cbrt(n)), budget / 6 / float(n)) for n in near]
            assert abs(int(np.argmin(losses)) - 30) <= 1, (
                f"{budget:.3g} FLOPs are not best spent on {size:.3g} parameters"
            )
            ends = np.log(technique.budget_of(REFIT, size * np.array([0.999, 1.001])))
            slope = np.log(1.001 / 0.999) / (ends[1] - ends[0])
            assert abs(slope - float(local_exponent(REFIT, size))) < 1e-4, slope
        for size, tokens in ((1e8, 1e30), (1e40, 1e10), (1e9, 1e11)):
            alone = max((KAPLAN.N_c / size) ** KAPLAN.alpha_N, (KAPLAN.D_c / tokens) ** KAPLAN.alpha_D)
            found = KAPLAN.loss(size, tokens)
            assert alone <= found * (1 + 1e-9) and (max(size, tokens) < 1e12 or found < alone * 1.01), found
            both = KAPLAN.log_loss(KAPLAN.theta()[None], Points.of([size], [tokens], [1.0]))[0]
            assert abs(float(both[0, 0]) - np.log(found)) < 1e-9
