"""AWQ: which channels are worth protecting, and what protecting them by scaling gains, on a model with planted outliers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from almanac.compress.calibrate import observe
from almanac.compress.quantize import awq
from almanac.compress.quantize.awq import Awq
from almanac.compress.quantize.round_to_nearest import Grid, RoundToNearest, rounded, store
from almanac.core.site import select
from almanac.evidence.card import Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, AtMost, Effect
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.outliers import BENCH, bench, compressed, gap
from almanac.evidence.outcome import Outcome
from almanac.nn.linear import Linear
from almanac.nn.stack import Decoder

METHOD, NEAREST, TWIN = "AWQ", "rounding to nearest", "AWQ, scaled by weight size"
BY_INPUT, BY_WEIGHT, BY_CHANCE = "large inputs kept", "large weights kept", "random channels kept"
PLAIN_METHOD, PLAIN_NEAREST = "AWQ, plain model", "rounding to nearest, plain model"
GRID = Grid(bits=4, group_size=0)
KEPT = 24  # one channel in this many is kept in float: 4 of 96

CARD = Card(
    name="compress.quantize.awq",
    title="What large inputs meet must be rounded finely (planted outliers)",
    claim="protecting 1 % of the weights, chosen by activation and not by weight, recovers most of what rounding costs",
    source="Lin 2023, arXiv 2306.00978, tables 1-3 (OPT-6.7B at 3 bits: perplexity 43.2 to 13.0)",
    toy_claim=(
        "of a trained character model with 4 of 96 channels planted 20 times as large, 4-bit rounding per row costs at most "
        "0.75 times as much with AWQ's searched scales, or with the 4 % of channels of largest input kept in float; with as "
        "many channels kept by weight or at random it costs at least 0.85 times as much"
    ),
    scope="models that grew outliers themselves: the plain model, shown, has none; scales cost 32 bits per input channel",
    tier="planted",
    arms=(
        Arm(
            name=METHOD,
            role="method",
            what="channels scaled up before rounding by a searched power of their input size",
        ),
        Arm(name=BY_INPUT, role="method", what="rounded to nearest, but channels of large inputs kept in float"),
        Arm(name=NEAREST, role="baseline", what="the same grid, nothing protected"),
        Arm(name=BY_WEIGHT, role="twin", what="as many channels kept, those of the largest weights"),
        Arm(name=BY_CHANCE, role="twin", what="as many channels kept, drawn at random"),
        Arm(name=TWIN, role="control", what="the same search over powers of the weights' size"),
        Arm(name=PLAIN_METHOD, role="control", what="AWQ on the model without planted outliers"),
        Arm(name=PLAIN_NEAREST, role="control", what="rounding to nearest on the model without planted outliers"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="gap", arm=METHOD, over=NEAREST, ratio=True),
            expected=0.2,
            fail=0.75,
            says="scaling by activation removes a quarter of the loss or more",
        ),
        AtMost(
            effect=Effect(metric="gap", arm=BY_INPUT, over=NEAREST, ratio=True),
            expected=0.5,
            fail=0.75,
            says="keeping channels of large inputs removes a quarter of the loss or more",
        ),
        AtLeast(
            effect=Effect(metric="gap", arm=BY_WEIGHT, over=NEAREST, ratio=True),
            expected=1.0,
            fail=0.85,
            says="keeping channels of large weights does not",
        ),
        AtLeast(
            effect=Effect(metric="gap", arm=BY_CHANCE, over=NEAREST, ratio=True),
            expected=0.96,
            fail=0.85,
            says="keeping random channels does not",
        ),
    ),
    bench=BENCH,
    null=NEAREST,
    gates=(
        Gate(arm=NEAREST, metric="nll before", at_most=2.6, why="the model has learned the text"),
        Gate(arm=NEAREST, metric="gap", at_least=0.005, why="rounding costs something"),
    ),
    equal="code bits",
    budget_arms=(METHOD, NEAREST, TWIN),
    mutants=(
        Mutant(name="the scale is not undone", what="the inverse scale is never applied", arms=(METHOD,)),
        Mutant(name="scaled the wrong way", what="channels of large inputs are scaled down", arms=(METHOD,)),
        Mutant(name="no search", what="the power is always 0", arms=(METHOD,)),
        Mutant(name="calibrated on the test", what="the evaluation text is the calibration text"),
    ),
    plot=Plot(metric="gap", y="nll above the float model (nats a character)"),
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The gap of one arm at 4 bits."""
    found = bench(seed, profile)
    calibration = (found.test,) if mutant == "calibrated on the test" else found.calibration
    network = found.plain if arm in (PLAIN_METHOD, PLAIN_NEAREST) else found.planted

    def make(used: Sequence[Tensor]) -> Decoder:
        if arm in (BY_INPUT, BY_WEIGHT, BY_CHANCE):
            return _protected(network, used, by=arm, seed=seed)
        technique = RoundToNearest(grid=GRID) if arm in (NEAREST, PLAIN_NEAREST) else Awq(grid=GRID)
        return compressed(network, [technique], used)

    with _broken(mutant), _by_weight(arm):
        cost = gap(found, make, calibration=calibration)
    budget = {"code bits": float(GRID.bits), "calibration tokens": float(sum(batch.numel() for batch in calibration))}
    return Outcome({"gap": cost, "nll before": found.nll}, budget, data=text.digest())


def _protected(network: Decoder, calibration: Sequence[Tensor], *, by: str, seed: int) -> Decoder:
    """Rounded to nearest, but for one channel in `KEPT` of every map."""
    model = compressed(network, [], calibration)
    sites = select(model, "layers.**", of=Linear)
    seen = observe(model, sites, calibration)
    generator = torch.Generator().manual_seed(seed)
    for path, site in sites.items():
        weight = site.dense_weight().detach()
        importance = {
            BY_INPUT: seen[path].absolute,
            BY_WEIGHT: weight.abs().mean(dim=0),
            BY_CHANCE: torch.rand(site.shape[1], generator=generator),
        }[by]
        kept = importance.topk(site.shape[1] // KEPT).indices
        changed = rounded(weight, GRID)
        changed[:, kept] = weight[:, kept]
        site.set_weight(nn.Parameter(changed))
    return model


SEARCH, SCALES = awq.search, awq.scales


@contextmanager
def _by_weight(arm: str) -> Iterator[None]:
    if arm != TWIN:
        yield
        return

    def search(weight: Tensor, importance: Tensor, gram: Tensor, **more: Any) -> Tensor:
        return SEARCH(weight, weight.detach().abs().mean(dim=0), gram, **more)

    with patch.object(awq, "search", search):
        yield


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The code under test with one planted bug."""

    def left_in(weight: Tensor, grid: Grid, *, columns: Tensor | None = None) -> Any:
        return store(weight if columns is None else weight * columns, grid)

    planted: dict[str, tuple[str, Any]] = {
        "the scale is not undone": ("store", left_in),
        "scaled the wrong way": ("scales", lambda importance, exponent: SCALES(importance, -exponent)),
        "no search": ("scales", lambda importance, exponent: SCALES(importance, 0.0)),
    }
    if mutant in planted:
        with patch.object(awq, *planted[mutant]):
            yield
    else:
        yield


@functools.cache
def _layer() -> tuple[Tensor, Tensor]:
    """W [12, 16] and inputs [200, 16], two channels of which are 20 times as large as the others."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 16, generator=generator)
    inputs[:, [3, 11]] *= 20
    return torch.randn(12, 16, generator=generator), inputs


def check(mutant: str | None) -> None:
    """Scaling changes nothing before rounding; channels of large inputs err less after it; the search never loses."""
    with _broken(mutant):
        weight, inputs = _layer()
        gram, importance = inputs.T @ inputs, inputs.abs().mean(dim=0)
        found = awq.search(weight, importance, gram, grid=Grid(bits=3, group_size=0), steps=20)
        fine = awq.store(weight, Grid(bits=8, group_size=0), columns=found).dense()
        assert float((fine - weight).abs().max()) < 0.05, "scaling must be undone"
        coarse = awq.store(weight, Grid(bits=3, group_size=0), columns=found).dense()
        plain = rounded(weight, Grid(bits=3, group_size=0))
        assert awq.output_error(coarse - weight, gram) < 0.5 * awq.output_error(plain - weight, gram), "no gain"
