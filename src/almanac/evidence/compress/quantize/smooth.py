"""SmoothQuant: rounding weights and activations to 6 bits, with and without handing large channels over to the weights.

Planting multiplies a channel's inputs and divides the weights that read it, so the scales of every alpha take it back
exactly: which alpha is best is a matter of the model itself, and is shown without a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from almanac.compress.quantize import smooth
from almanac.compress.quantize.round_to_nearest import Grid, RoundToNearest
from almanac.compress.quantize.smooth import Smooth
from almanac.core.technique import Attachment, initialise
from almanac.evidence.card import Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect, Within
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.outliers import BENCH, bench, compressed, gap, plant
from almanac.evidence.fixtures.tiny import Tiny, spec
from almanac.evidence.outcome import Outcome
from almanac.nn.stack import Decoder

METHOD, NAIVE, TWIN = "SmoothQuant", "no migration", "scales of other channels"
NONE, ALL = "all difficulty left to activations", "all difficulty handed to weights"
PLAIN_METHOD, PLAIN_NAIVE = "SmoothQuant, plain model", "no migration, plain model"
BITS = 6
ALPHAS = {METHOD: 0.5, TWIN: 0.5, NONE: 0.0, ALL: 1.0, NAIVE: 0.5, PLAIN_METHOD: 0.5, PLAIN_NAIVE: 0.5}
WEIGHTS = RoundToNearest(grid=Grid(bits=BITS, group_size=0, symmetric=True))

CARD = Card(
    name="compress.quantize.smooth",
    title="Outlier channels must be smoothed away before activations are rounded (planted outliers)",
    claim="activations and weights of 8 bits throughout, up to 530 billion parameters, with negligible loss in accuracy",
    source="Xiao 2022, arXiv 2211.10438, abstract and equation 4",
    toy_claim=(
        "of a trained character model with 4 of 96 channels planted 20 times as large, rounding weights (per row) and "
        "activations (per token) to 6 bits costs at most a quarter as much with half of the difficulty migrated; the result "
        "is that of the model without outliers"
    ),
    scope="models that grew outliers themselves: the plain model, shown, has none; integer arithmetic, which is simulated",
    tier="planted",
    arms=(
        Arm(name=METHOD, role="method", what="inputs divided, weights multiplied by max|x|^0.5 / max|w|^0.5"),
        Arm(name=NAIVE, role="baseline", what="the same rounding, nothing migrated"),
        Arm(name=TWIN, role="twin", what="the same scales, dealt to channels at random"),
        Arm(name=NONE, role="control", what="alpha 0: only the weights are evened out"),
        Arm(name=ALL, role="control", what="alpha 1: only the activations are evened out"),
        Arm(name=PLAIN_METHOD, role="control", what="SmoothQuant on the model without planted outliers"),
        Arm(name=PLAIN_NAIVE, role="control", what="nothing migrated, on the model without planted outliers"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="gap", arm=METHOD, over=NAIVE, ratio=True),
            expected=0.05,
            fail=0.25,
            says="smoothing divides the loss by 4 or more",
        ),
        Within(
            effect=Effect(metric="gap", arm=METHOD, over=PLAIN_METHOD),
            expected=0.0,
            margin=0.002,
            says="with smoothing, planting outliers makes no difference",
        ),
    ),
    bench=BENCH,
    null=NAIVE,
    gates=(
        Gate(arm=NAIVE, metric="nll before", at_most=2.6, why="the model has learned the text"),
        Gate(arm=NAIVE, metric="gap", at_least=0.01, why="outliers hurt where nothing is done"),
    ),
    equal="bits",
    budget_arms=(METHOD, NAIVE, TWIN),
    mutants=(
        Mutant(name="smoothed after rounding", what="weights are rounded first, then scaled"),
        Mutant(name="weights are not scaled", what="inputs are divided, nothing is multiplied"),
        Mutant(name="scales upside down", what="large channels are made larger"),
        Mutant(name="activations are not rounded", what="6-bit activations are claimed and floats are used"),
        Mutant(name="calibrated on the test", what="the evaluation text is the calibration text"),
    ),
    plot=Plot(metric="gap", y="nll above the float model (nats a character)"),
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The gap of one arm with weights and activations of 6 bits."""
    found = bench(seed, profile)
    calibration = (found.test,) if mutant == "calibrated on the test" else found.calibration
    network = found.plain if arm in (PLAIN_METHOD, PLAIN_NAIVE) else found.planted
    with _broken(mutant), _scaled(arm, seed):
        cost = gap(found, lambda used: compressed(network, _steps(ALPHAS[arm], mutant), used), calibration=calibration)
    return Outcome({"gap": cost, "nll before": found.nll}, {"bits": float(BITS)}, data=text.digest())


def _steps(alpha: float, mutant: str | None) -> list[Attachment]:
    smoothing = Smooth(alpha=alpha, bits=BITS)
    return [WEIGHTS, smoothing] if mutant == "smoothed after rounding" else [smoothing, WEIGHTS]


SCALES, ROUND = smooth.scales, smooth.round_activations


@contextmanager
def _scaled(arm: str, seed: int) -> Iterator[None]:
    """The baseline's scales are ones; the twin's belong to other channels."""

    def ones(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
        return torch.ones_like(largest)

    def dealt(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
        order = torch.randperm(len(largest), generator=torch.Generator().manual_seed(seed))
        return SCALES(largest, weight, alpha)[order]

    other = {NAIVE: ones, PLAIN_NAIVE: ones, TWIN: dealt}.get(arm)
    if other is None:
        yield
        return
    with patch.object(smooth, "scales", other):
        yield


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The code under test with one planted bug."""

    def lost(self: smooth.Rounded, following: Any, x: Tensor) -> Tensor:
        return following(ROUND(x / self.scale / self.scale, self.bits))

    planted: dict[str, tuple[Any, str, Any]] = {
        "weights are not scaled": (smooth.Rounded, "forward", lost),
        "scales upside down": (smooth, "scales", lambda *given: 1 / SCALES(*given)),
        "activations are not rounded": (smooth, "round_activations", lambda x, bits: x),
    }
    if mutant in planted:
        with patch.object(*planted[mutant]):
            yield
    else:
        yield


def check(mutant: str | None) -> None:
    """Smoothing alone changes nothing; rounded activations have the levels claimed; half-migrated maxima agree."""
    with _broken(mutant):
        generator = torch.Generator().manual_seed(0)
        inputs, weight = torch.randn(50, 8, generator=generator), torch.randn(5, 8, generator=generator)
        inputs[:, 2] *= 20
        scale = smooth.scales(inputs.abs().amax(dim=0), weight, 0.5)
        even = inputs.abs().amax(dim=0) / scale, (weight * scale).abs().amax(dim=0)
        assert torch.allclose(*even, rtol=1e-4), "at one half, inputs and weights share the difficulty"
        site = smooth.Rounded(scale, torch.ones(8), 0)
        found = site(lambda x: x @ (weight * scale).T, inputs)
        assert torch.allclose(found, inputs @ weight.T, rtol=1e-4, atol=1e-4), "smoothing changes nothing"
        levels = smooth.round_activations(inputs, BITS)[0].unique()
        steps = levels / (inputs[0].abs().max() / (2 ** (BITS - 1) - 1))
        assert torch.allclose(steps, steps.round(), atol=1e-3), "activations lie on their grid"
        plain = initialise(spec(Tiny(hidden=16, layers=1, heads=2)).build(), seed=0).eval()
        assert isinstance(plain, Decoder)
        tokens = torch.randint(0, text.VOCAB, (2, 32), generator=generator)
        with torch.no_grad():
            results = [
                compressed(model, _steps(0.5, mutant), [tokens])(tokens)
                for model in (plain, plant(plain, seed=0, factor=16.0))
            ]
        change = float((results[1] - results[0]).abs().max() / results[0].abs().max())
        assert change < 1e-3, "planting outliers makes no difference"
