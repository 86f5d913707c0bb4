"""A proxy of a reward, optimised harder and harder: the proxy keeps rising, what it stood for rises and then falls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from almanac.align import best_of_n
from almanac.evidence.card import CONTROL, METHOD, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import Always, AtLeast, Effect
from almanac.evidence.fixtures.preferences import Goldrush, goldrush, optimum, standard
from almanac.evidence.outcome import Outcome
from almanac.objectives.dpo import pair_losses

NOISY, LEARNED, GOLD = "noisy proxy", "learned proxy", "gold itself"


def _falls(metric: str, arm: str, what: str, expected: float) -> AtLeast:
    says = f"{what}: share of the most that gold had gained, lost again at the most KL"
    return AtLeast(effect=Effect(metric=metric, arm=arm), expected=expected, says=says, fail=0.1)


def _rises(arm: str) -> Always:
    says = "the smallest step of the proxy from one KL to the next, by either way: it never falls"
    return Always(effect=Effect(metric="proxy_step", arm=arm), expected=0.0, says=says, least=-1e-9)


CARD = Card(
    name="align.best_of_n",
    title="A proxy reward optimised too hard (planted noise; planted turn of the reward)",
    claim="optimising a proxy reward raises the gold reward up to a point and lowers it beyond, in best-of-n and in RL",
    source="Gao 2022, arXiv 2210.10760, figure 1 and equations 1-2",
    toy_claim=(
        "over a million answers (262,144 strings, four wordings of each), with laws known exactly, gold reward peaks "
        "between 0 and 10 nat of KL under best-of-n and "
        "under the closed-form optimum of reward less KL, while the proxy rises throughout: for a proxy with heavy-tailed "
        "noise, and for one fitted to preferences among strings as they are drawn, whose gold turns where few are drawn"
    ),
    scope="the published curves' shape or their growth with the reward model's size; proxies with Gaussian errors",
    tier="planted",
    arms=(
        Arm(
            name=NOISY,
            role=METHOD,
            what="proxy = gold + Student noise of two degrees of freedom, fixed for each answer, by rank",
        ),
        Arm(name=LEARNED, role=METHOD, what="a linear Bradley-Terry fit to pairs of drawn strings, labelled by gold"),
        Arm(name=GOLD, role=CONTROL, what="the gold reward as its own proxy"),
    ),
    claims=(
        _falls("fall_best_of_n", NOISY, "noisy proxy, best of n", 0.8),
        _falls("fall_tilted", NOISY, "noisy proxy, closed form", 0.8),
        _falls("fall_best_of_n", LEARNED, "learned proxy, best of n", 1.5),
        _falls("fall_tilted", LEARNED, "learned proxy, closed form", 1.5),
        _rises(NOISY),
        _rises(LEARNED),
    ),
    gates=(
        Gate(arm=GOLD, metric="fall_best_of_n", why="no fall is seen where there is no proxy", at_most=1e-6),
        Gate(arm=GOLD, metric="fall_tilted", why="no fall is seen where there is no proxy", at_most=1e-6),
        Gate(arm=NOISY, metric="correlation", why="the proxy stands for gold among strings as drawn", at_least=0.3),
        Gate(arm=LEARNED, metric="correlation", why="the proxy stands for gold among strings as drawn", at_least=0.3),
    ),
    null=GOLD,
    mutants=(
        Mutant(name="chosen by gold", what="the answer is chosen by the gold reward while the proxy is reported"),
        Mutant(name="one draw less", what="best of n is the best of n - 1"),
        Mutant(name="ties to the first", what="of equally good answers the first listed gets all"),
        Mutant(name="KL of log n", what="the distance of best of n is taken for log n"),
    ),
    plot=Plot(metric="gold, closed form", lines=True, x="KL to the reference (nat)", y="gold reward (deviations)"),
    budget_minutes=5,
)
LENGTH = {"quick": 8, "full": 9}
PAIRS = 2_000
MOST = 10.0  # nat
POINTS = 41


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """Gold and proxy along KL, by both ways of optimising."""
    world = goldrush(seed, length=LENGTH[profile])
    proxy = {NOISY: world.noisy, GOLD: world.gold}.get(arm)
    proxy = learned(world, seed) if proxy is None else proxy
    with broken(mutant):
        chosen_by = world.gold if mutant == "chosen by gold" else proxy
        ways = {
            name: [(kl, float(law @ world.gold), float(law @ proxy)) for kl, law in laws(chosen_by)]
            for name, laws in (("best_of_n", best_laws), ("tilted", tilted_laws))
        }
    metrics = {"correlation": float(torch.corrcoef(torch.stack([proxy, world.gold]))[0, 1])}
    curves = {}
    steps = []
    for way, points in ways.items():
        gold, proxies = [item[1] for item in points], [item[2] for item in points]
        peak = max(range(len(gold)), key=gold.__getitem__)
        metrics |= {
            f"fall_{way}": (gold[peak] - gold[-1]) / (gold[peak] - gold[0]),
            f"peak_{way}": gold[peak],
            f"peak_kl_{way}": points[peak][0],
            f"last_kl_{way}": points[-1][0],
        }
        steps += [after - before for before, after in itertools.pairwise(proxies)]
        name = "best of n" if way == "best_of_n" else "closed form"
        curves |= {
            f"gold, {name}": [(kl, value) for kl, value, _ in points],
            f"proxy, {name}": [(kl, value) for kl, _, value in points],
        }
    return Outcome(metrics | {"proxy_step": min(steps)}, curves=curves)


def check(mutant: str | None) -> None:
    """The law of best of n against every n-tuple of draws, with ties; and its KL without any."""
    p = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
    with broken(mutant):
        for rewards in (torch.tensor([1.0, 2.0, 1.0, 0.0]), torch.tensor([0.0, 3.0, 1.0, 2.0])):
            by_hand = torch.zeros_like(p)
            for draws in itertools.product(range(4), repeat=3):
                best = max(draws, key=lambda at: float(rewards[at]))  # the first drawn of equals
                by_hand[best] += math.prod(float(p[at]) for at in draws)
            assert torch.allclose(best_of_n.best_of_n_law(p, rewards, 3), by_hand, atol=1e-12), "the law of best of 3"
        even = torch.full((20_000,), 1 / 20_000, dtype=torch.float64)
        for n in (1, 2, 7, 40):
            law = best_of_n.best_of_n_law(even, torch.arange(20_000.0), n)
            assert abs(divergence(law) - best_of_n.kl_bound(n)) < 5e-3, f"KL of best of {n}"


def divergence(law: Tensor) -> float:
    """KL to all being equally probable, in nats."""
    return float(torch.special.xlogy(law, law * len(law)).sum())


def best_laws(reward: Tensor) -> Iterator[tuple[float, Tensor]]:
    """(KL, law) of best of n for n from 1 to where `MOST` is reached."""
    even = torch.full_like(reward, 1 / len(reward))
    last = -1.0
    for at in range(4 * POINTS):
        n = round(math.exp(at * MOST / (POINTS - 1)))
        law = best_of_n.best_of_n_law(even, reward, n)
        kl = divergence(law)
        if kl > MOST:
            break
        if kl > last:
            yield kl, law
        last = kl


def tilted_laws(reward: Tensor) -> Iterator[tuple[float, Tensor]]:
    """(KL, law) of the best policy for reward less beta KL, as beta falls from infinity to where `MOST` is reached.

    A reward of deviation 1 is some 1 / (2 beta²) nats away, if it is normal.
    """
    even = torch.full_like(reward, -math.log(len(reward)))
    yield 0.0, even.exp()
    for at in range(1, 10 * POINTS):
        law = optimum(even, reward, beta=(POINTS - 1) / (at * math.sqrt(2 * MOST))).exp()
        kl = divergence(law)
        if kl > MOST:
            break
        yield kl, law


def learned(world: Goldrush, seed: int) -> Tensor:
    """A linear reward fitted to `PAIRS` pairs of strings, each labelled by a draw of Bradley and Terry's law on gold."""
    generator = torch.Generator().manual_seed(seed + 20_000)
    first, second = torch.randint(0, len(world.features), (2, PAIRS), generator=generator)
    gold = world.gold[:: world.wordings]
    chance = (2 * (gold[first] - gold[second])).sigmoid()
    wins = torch.rand(PAIRS, generator=generator, dtype=torch.float64) < chance
    difference = torch.where(wins, 1.0, -1.0)[:, None] * (world.features[first] - world.features[second])
    weights = torch.zeros(world.features.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = pair_losses(difference @ weights).mean() + 1e-3 * weights.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return standard((world.features @ weights).detach()).repeat_interleave(world.wordings)


@contextmanager
def broken(mutant: str | None) -> Iterator[None]:
    """The code under test with one planted bug, put right again afterwards."""
    if mutant not in MUTANTS:
        yield
        return
    name, planted = MUTANTS[mutant]
    with patch.object(best_of_n, name, planted):
        yield


def _ties_to_first(p: Tensor, rewards: Tensor, n: int) -> Tensor:
    nudged = rewards.double() - 1e-9 * torch.arange(len(rewards), dtype=torch.float64)
    return HEALTHY(p, nudged, n)


HEALTHY = best_of_n.best_of_n_law
MUTANTS: dict[str | None, tuple[str, Any]] = {
    "one draw less": ("best_of_n_law", lambda p, rewards, n: HEALTHY(p, rewards, max(1, n - 1))),
    "ties to the first": ("best_of_n_law", _ties_to_first),
    "KL of log n": ("kl_bound", math.log),
}
