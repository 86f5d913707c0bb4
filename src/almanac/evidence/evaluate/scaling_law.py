"""A law fitted to small finished runs foretells the loss of the largest; with their sizes shuffled it does not."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import almanac.evaluate.scaling_law as technique
from almanac.core.technique import initialise
from almanac.evaluate.scaling import REFIT, Law
from almanac.evaluate.scaling_kaplan import KAPLAN
from almanac.evaluate.scaling_law import Points, ScalingLaw
from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.fitting import fit, next_nll
from almanac.evidence.outcome import Outcome
from almanac.pretrain.plan_shape import shape_of

SWAPPED = "parameters and tokens are swapped"
LOGGED = "the logarithm of the loss is fitted as if it were the loss"
NARROW = "one size alone"

CARD = Card(
    name="evaluate.scaling_law",
    title="A scaling law of our own: the largest run foretold by the smaller ones",
    claim="we can accurately predict the final pre-training loss by modelling it as a parametric function of N and D",
    source="Hoffmann 2022, arXiv 2203.15556, approach 3 (section 3.3), and section 3.1 on schedules that fit their runs",
    toy_claim=(
        "L = E + A / N^alpha + B / D^beta, fitted to character models of 8 to 190 thousand parameters on Python's "
        "docstrings, each with a schedule of its own length, foretells the loss of the largest and longest run within 6 %; "
        "with the sizes shuffled it does not"
    ),
    scope="that the law holds a thousandfold further out, or for other text and tokenizers; learning rates were not tuned",
    tier="real",
    arms=(
        Arm(name="finished", role=METHOD, what="the law of all runs but the largest, each with its cosine finished"),
        Arm(name="nearest", role=BASELINE, what="no law: the loss of the run of the same size with half of the data"),
        Arm(name="shuffled", role=TWIN, what="the same runs and losses; sizes change places among runs of one length"),
        Arm(
            name="unfinished",
            role=CONTROL,
            what="shorter runs are read from the middle of the longest, rate not come down",
        ),
        Arm(name="kaplan", role=CONTROL, what="Kaplan's form on the same finished runs, embeddings not counted"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="error", arm="finished"),
            expected=0.02,
            fail=0.06,
            says="distance of the forecast from the loss that came, as a share of it",
        ),
        AtLeast(
            effect=Effect(metric="error", arm="nearest", over="finished"),
            expected=0.06,
            fail=0.02,
            says="the law knows more than the nearest run",
        ),
        AtLeast(
            effect=Effect(metric="error", arm="shuffled", over="finished"),
            expected=0.05,
            fail=0.02,
            says="it is the sizes that it knows it from",
        ),
    ),
    gates=(
        Gate(
            arm="finished",
            metric="loss",
            at_most=2.6,
            why="the largest model has learned more than which letters are common",
        ),
    ),
    null="nearest",
    mutants=(
        Mutant(name=SWAPPED, what="the columns of parameters and tokens change places for the fit"),
        Mutant(name=LOGGED, what="log L is handed over where L belongs"),
        Mutant(name=NARROW, what="all runs have the largest size: the law must refuse and not guess"),
    ),
    seeds=5,
    budget_minutes=35.0,
    plot=Plot(metric="error", y="distance of the forecast from the loss that came"),
)


@dataclass(frozen=True)
class Grid:
    """Widths, steps of each length, rows of a step and tokens of a row."""

    widths: tuple[int, ...] = (16, 32, 48, 64, 96)
    steps: tuple[int, ...] = (300, 600, 1200, 2400)
    rows: int = 8
    time: int = 64
    rate: float = 5e-3  # for width 96; others get it times the root of 96 / width


GRIDS = {
    "quick": Grid(widths=(16, 32, 48), steps=(150, 300, 600)),
    "full": Grid(),
    "gpu": Grid(widths=(16, 32, 64, 128, 256), steps=(600, 1200, 2400, 4800, 9600), rows=16),
}


@dataclass(frozen=True)
class Found:
    """One run: its size, its tokens, its loss, and the loss in the middle, by the tokens seen until then."""

    parameters: int
    non_embedding: int
    tokens: int
    loss: float
    middle: dict[int, float]


def _train(width: int, steps: int, grid: Grid, seed: int) -> Found:
    shape = shape_of(width, text.VOCAB)
    network = initialise(shape.spec(grid.time).build(), seed=seed)
    each = grid.rows * (grid.time - 1)
    middle: dict[int, float] = {}

    def loss(step: int) -> Tensor:
        if step in grid.steps:  # before its update, `step` steps are done
            middle[step * each] = _held_out(network, grid)
        return next_nll(network, text.windows("train", rows=grid.rows, time=grid.time, seed=seed * 100_003 + step))

    network.train()
    fit(network.parameters(), loss, steps=steps, rate=grid.rate * (96 / width) ** 0.5)
    return Found(shape.parameters, shape.non_embedding, steps * each, _held_out(network, grid), middle)


@torch.no_grad()
def _held_out(network: torch.nn.Module, grid: Grid) -> float:
    before = network.training
    network.eval()
    value = float(next_nll(network, text.held_out(rows=256, time=grid.time)))
    network.train(before)
    return value


@functools.lru_cache(maxsize=2)
def runs(seed: int, profile: str) -> tuple[Found, ...]:
    """All runs of a seed, the largest and longest last; trained once for all arms."""
    grid = GRIDS[profile]
    return tuple(_train(width, steps, grid, seed) for width in grid.widths for steps in grid.steps)


def unfinished(found: tuple[Found, ...]) -> tuple[Found, ...]:
    """The same sizes and lengths, the shorter ones read from the middle of the longest run of their size."""
    longest = {
        run.parameters: max((r for r in found if r.parameters == run.parameters), key=lambda r: r.tokens)
        for run in found
    }
    return tuple(
        Found(
            run.parameters, run.non_embedding, run.tokens, longest[run.parameters].middle.get(run.tokens, run.loss), {}
        )
        for run in found
    )


def shuffled(found: tuple[Found, ...], seed: int) -> tuple[Found, ...]:
    """The same runs with sizes that changed places among those of one length; the last run keeps its own."""
    dice = np.random.default_rng(seed)
    *others, largest = found
    sizes: list[tuple[int, int]] = [(run.parameters, run.non_embedding) for run in others]
    for tokens in {run.tokens for run in others}:
        places = [place for place, run in enumerate(others) if run.tokens == tokens]
        moved = [sizes[place] for place in np.roll(places, int(dice.integers(1, max(2, len(places)))))]
        for place, size in zip(places, moved, strict=True):
            sizes[place] = size
    return (*(replace(run, parameters=n, non_embedding=x) for run, (n, x) in zip(others, sizes, strict=True)), largest)


def foretold(law: ScalingLaw, others: tuple[Found, ...], largest: Found, mutant: str | None) -> technique.Forecast:
    """What the others say of the largest."""
    bare = isinstance(law, type(KAPLAN))
    size = (lambda run: run.non_embedding) if bare else (lambda run: run.parameters)
    columns = [
        [float(size(run)) for run in others],
        [float(run.tokens) for run in others],
        [run.loss for run in others],
    ]
    if mutant == SWAPPED:
        columns[0], columns[1] = columns[1], columns[0]
    if mutant == LOGGED:
        columns[2] = np.log(columns[2]).tolist()
    if mutant == NARROW:
        columns[0] = [float(size(largest))] * len(others)
    return technique.fitted(law, Points.of(*columns)).forecast(size(largest), largest.tokens)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One forecast of the seed's largest run, and how far it was off."""
    found = runs(seed, profile)
    *others, largest = found
    if arm == "nearest":
        last = others[-1].loss
        forecast = technique.Forecast(last, last, last)
    else:
        changed = {"unfinished": unfinished, "shuffled": functools.partial(shuffled, seed=seed)}
        used = changed[arm](found) if arm in changed else found
        forecast = foretold(KAPLAN if arm == "kaplan" else REFIT, used[:-1], largest, mutant)
    metrics = {
        "error": abs(largest.loss / forecast.loss - 1),
        "inside": float(forecast.holds(largest.loss)),
        "forecast": forecast.loss,
        "loss": largest.loss,
        "interval": (forecast.high - forecast.low) / forecast.loss,
    }
    budget = {"tokens": float(sum(item.tokens for item in found))}
    return Outcome(metrics, budget, data=text.digest())


def check(mutant: str | None) -> None:
    """A planted law without noise is foretold to a thousandth, ten times beyond its runs; bad runs are refused."""
    law = Law(E=1.2, A=40.0, B=300.0, alpha=0.4, beta=0.35)
    sizes, amounts = np.meshgrid(np.geomspace(1e4, 2e5, 5), np.geomspace(1e5, 1e6, 4))
    grid = [(float(n), float(d)) for n, d in zip(sizes.ravel(), amounts.ravel(), strict=True)]
    others = tuple(Found(round(n), round(n), round(d), law.loss(round(n), round(d)), {}) for n, d in grid)
    largest = Found(2_000_000, 2_000_000, 10_000_000, law.loss(2e6, 1e7), {})
    found = foretold(REFIT, others, largest, mutant)
    assert abs(found.loss / largest.loss - 1) < 1e-3, found
