"""Wanda against magnitude pruning, compared row by row, on a model with planted outliers and on the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from almanac.compress.prune import wanda
from almanac.compress.prune.magnitude import Magnitude
from almanac.compress.prune.pattern import PerLayer, PerRow
from almanac.compress.prune.sparsegpt import SparseGpt
from almanac.compress.prune.wanda import Wanda
from almanac.core.site import Leaf, select
from almanac.core.technique import Attachment
from almanac.evidence.card import Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtMost, Effect, Within
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.outliers import BENCH, bench, compressed, gap
from almanac.evidence.outcome import Outcome

METHOD, BY_ROW, BY_LAYER = "Wanda", "magnitude, by row", "magnitude, by layer"
TWIN, SURGEON = "Wanda, norms of other channels", "SparseGPT"
PLAIN_METHOD, PLAIN_ROW = "Wanda, plain model", "magnitude by row, plain model"
STEPS: dict[str, Attachment] = {
    METHOD: Wanda(),
    TWIN: Wanda(),
    PLAIN_METHOD: Wanda(),
    BY_ROW: Magnitude(),
    PLAIN_ROW: Magnitude(),
    BY_LAYER: Magnitude(pattern=PerLayer()),
    SURGEON: SparseGpt(),
}

CARD = Card(
    name="compress.prune.wanda",
    title="A small weight on a large input is not a small one (planted outliers)",
    claim="removing weights by size times input norm, within each row, beats removing them by size, without retraining",
    source="Sun 2023, arXiv 2306.11695, table 3 (LLaMA-2-7B at 50 %: perplexity 14.89 by magnitude, 6.42 Wanda, 5.12 dense)",
    toy_claim=(
        "of a trained character model with 4 of 96 channels planted 20 times as large, removing half of each row costs at "
        "most 0.9 times as much by Wanda as by magnitude within the same rows; and Wanda's result is that of the model "
        "without outliers"
    ),
    scope="models that grew outliers themselves: the plain model, shown, has none; or retraining",
    tier="planted",
    arms=(
        Arm(name=METHOD, role="method", what="half of each row removed, by weight times input norm"),
        Arm(name=BY_ROW, role="baseline", what="half of each row removed, by weight"),
        Arm(name=TWIN, role="twin", what="the same norms, dealt to channels at random"),
        Arm(name=BY_LAYER, role="control", what="half of each map removed by weight, wherever it falls"),
        Arm(name=SURGEON, role="control", what="half removed by saliency, the rest adjusted"),
        Arm(name=PLAIN_METHOD, role="control", what="Wanda on the model without planted outliers"),
        Arm(name=PLAIN_ROW, role="control", what="magnitude by row on the model without planted outliers"),
    ),
    claims=(
        AtMost(
            effect=Effect(metric="gap", arm=METHOD, over=BY_ROW, ratio=True),
            expected=0.75,
            fail=0.9,
            says="input norms tell what may go",
        ),
        AtMost(
            effect=Effect(metric="gap", arm=METHOD, over=TWIN, ratio=True),
            expected=0.5,
            fail=0.9,
            says="they must be those of the right channels",
        ),
        Within(
            effect=Effect(metric="gap", arm=METHOD, over=PLAIN_METHOD),
            expected=0.0,
            margin=0.002,
            says="to Wanda, planting outliers makes no difference",
        ),
    ),
    bench=BENCH,
    null=BY_ROW,
    gates=(
        Gate(arm=BY_ROW, metric="nll before", at_most=2.6, why="the model has learned the text"),
        Gate(arm=BY_ROW, metric="gap", at_least=0.02, why="pruning costs something"),
        Gate(arm=METHOD, metric="zeros", at_least=0.5, why="half of the weights are gone"),
    ),
    equal="kept",
    budget_arms=(METHOD, BY_ROW, TWIN, BY_LAYER, SURGEON),
    mutants=(
        Mutant(name="the norm is forgotten", what="scores are the weights alone"),
        Mutant(
            name="norms of the wrong side", what="rows are weighed by their outputs' size, not columns by their inputs'"
        ),
        Mutant(name="one mask for the layer", what="rows compete with each other"),
        Mutant(name="the least are kept", what="the mask is upside down"),
        Mutant(name="calibrated on the test", what="the evaluation text is the calibration text"),
    ),
    plot=Plot(metric="gap", y="nll above the dense model (nats a character)"),
)


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """The gap of one arm with half of the weights gone."""
    found = bench(seed, profile)
    calibration = (found.test,) if mutant == "calibrated on the test" else found.calibration
    network = found.plain if arm in (PLAIN_METHOD, PLAIN_ROW) else found.planted
    model = None

    def make(used: Any) -> Any:
        nonlocal model
        model = compressed(network, [STEPS[arm]], used)
        return model

    with _broken(mutant), _dealt(arm, seed):
        cost = gap(found, make, calibration=calibration)
    assert model is not None
    weights = [leaf.dense_weight() for leaf in select(model, "layers.**", of=Leaf).values()]
    total, kept = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    metrics = {"gap": cost, "nll before": found.nll, "zeros": 1 - kept / total}
    return Outcome(metrics, {"kept": float(kept)}, data=text.digest())


SCORES = wanda.scores


@contextmanager
def _dealt(arm: str, seed: int) -> Iterator[None]:
    """The twin: the norm of one channel is taken for another's."""
    if arm != TWIN:
        yield
        return

    def scores(weight: Tensor, squares: Tensor) -> Tensor:
        order = torch.randperm(len(squares), generator=torch.Generator().manual_seed(seed))
        return SCORES(weight, squares[order])

    with patch.object(wanda, "scores", scores):
        yield


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """The code under test with one planted bug."""

    def by_output(weight: Tensor, squares: Tensor) -> Tensor:
        return weight.detach().abs() * (weight.detach().square() @ squares).sqrt().unsqueeze(1)

    def of_layer(self: PerRow, scores: Tensor) -> Tensor:
        return PerLayer(sparsity=self.sparsity).mask(scores)

    planted: dict[str, tuple[Any, str, Any]] = {
        "the norm is forgotten": (wanda, "scores", lambda weight, squares: weight.detach().abs()),
        "norms of the wrong side": (wanda, "scores", by_output),
        "one mask for the layer": (PerRow, "mask", of_layer),
        "the least are kept": (wanda, "scores", lambda weight, squares: -SCORES(weight, squares)),
    }
    if mutant in planted:
        owner, name, broken = planted[mutant]
        with patch.object(owner, name, broken):
            yield
    else:
        yield


def check(mutant: str | None) -> None:
    """The mask is that of sorting each row; scaling inputs and unscaling weights changes no mask."""
    with _broken(mutant):
        generator = torch.Generator().manual_seed(0)
        weight, inputs = torch.randn(6, 10, generator=generator), torch.randn(30, 10, generator=generator)
        scale = torch.exp(2 * torch.randn(10, generator=generator))
        first = PerRow().mask(wanda.scores(weight, inputs.square().sum(dim=0)))
        second = PerRow().mask(wanda.scores(weight / scale, (inputs * scale).square().sum(dim=0)))
        assert torch.equal(first, second), "the mask does not depend on how a channel is scaled"
        for row, kept in zip(weight, first, strict=True):
            size = [float(w.abs() * x.norm()) for w, x in zip(row, inputs.T, strict=True)]
            best = sorted(range(10), key=lambda place, size=size: -size[place])[:5]
            assert sorted(best) == kept.nonzero().flatten().tolist(), "the largest of each row are kept"
