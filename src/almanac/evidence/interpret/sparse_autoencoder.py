"""Planted features come back as columns of a sparse dictionary; reconstruction error would choose the wrong one."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import almanac.interpret.sparse_autoencoder as technique
from almanac.evidence.card import BASELINE, CONTROL, METHOD, TWIN, Arm, Card, Gate, Mutant, Plot
from almanac.evidence.claim import AtLeast, Effect
from almanac.evidence.fixtures.fitting import count, flops
from almanac.evidence.outcome import Outcome
from almanac.interpret.sparse_autoencoder import Learning, SparseAutoencoder, objective, recovery, unexplained

FREE = "the columns' norms are free"
CHOSEN = "the penalty is chosen by reconstruction error"
MEAN = "the penalty is a mean over the features"

CARD = Card(
    name="interpret.sparse_autoencoder",
    title="A sparse autoencoder finds planted features that a dense one does not",
    claim=(
        "sparse autoencoders learn features that are more interpretable and monosemantic than directions identified by "
        "alternative approaches; on toy data they recover the ground truth features"
    ),
    source="Cunningham 2023, arXiv 2309.08600, abstract and section 2; Bricken 2023",
    toy_claim=(
        "of 96 random directions in 32 dimensions, about 3 active at a time, a dictionary of 96 columns with penalty 1.5 "
        "finds nearly all; the same autoencoder without the penalty does hardly better than random columns, though it "
        "reconstructs the data better"
    ),
    scope="that the activations of a language model are such sums, or that the features found there mean anything",
    tier="planted",
    arms=(
        Arm(name="sparse", role=METHOD, what="penalty 1.5, unit columns, dead units revived"),
        Arm(name="dense", role=TWIN, what="the same with penalty 0"),
        Arm(name="random", role=BASELINE, what="as many random directions"),
        Arm(name="principal", role=CONTROL, what="the principal components of the data"),
    ),
    claims=(
        AtLeast(
            effect=Effect(metric="recovery", arm="sparse", over="dense"),
            expected=0.5,
            fail=0.3,
            says="planted directions are found by the penalty",
        ),
        AtLeast(
            effect=Effect(metric="recovery", arm="sparse"), expected=0.98, fail=0.8, says="nearly all of them are found"
        ),
        AtLeast(
            effect=Effect(metric="found", arm="sparse"), expected=0.97, fail=0.7, says="share with a cosine above 0.9"
        ),
        AtLeast(
            effect=Effect(metric="unexplained", arm="sparse", over="dense"),
            expected=0.1,
            fail=0.02,
            says="the right dictionary reconstructs worse",
        ),
    ),
    gates=(
        Gate(arm="dense", metric="unexplained", at_most=0.05, why="the dense autoencoder is trained"),
        Gate(arm="random", metric="recovery", at_most=0.6, why="random directions are no match"),
    ),
    null="random",
    equal="flops",
    budget_arms=("sparse", "dense"),
    mutants=(
        Mutant(name=FREE, what="columns are neither projected nor normalised, so that the penalty is evaded"),
        Mutant(name=CHOSEN, what="of the penalties 0 and 1.5 the one of lower reconstruction error is kept"),
        Mutant(name=MEAN, what="λ is divided by the number of features"),
    ),
    seeds=5,
    plot=Plot(metric="path", lines=True, x="share of variance not reconstructed", y="mean max cosine with the truth"),
)
PLANTED, HIDDEN, ACTIVE = 96, 32, 3
PENALTY = {"sparse": 1.5, "dense": 0.0}
STEPS = {"quick": 1500, "full": 3000, "gpu": 20_000}
ROWS, SAMPLES, TESTED = 256, 40_000, 4_000


@functools.cache
def _world(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(true directions [k, d], training activations [n, d], test activations)."""
    generator = torch.Generator().manual_seed(seed)
    truth = F.normalize(torch.randn(PLANTED, HIDDEN, generator=generator), dim=-1)
    active = torch.rand(SAMPLES + TESTED, PLANTED, generator=generator) < ACTIVE / PLANTED
    strength = 0.5 + torch.rand(SAMPLES + TESTED, PLANTED, generator=generator)
    activations = (active * strength) @ truth
    return truth, activations[:SAMPLES], activations[SAMPLES:]


def run(arm: str, seed: int, profile: str, mutant: str | None) -> Outcome:
    """One dictionary, scored against the planted directions and on held-out activations."""
    truth, train, test = _world(seed)
    if arm == "random":
        generator = torch.Generator().manual_seed(seed + 1_000_003)
        return _scored(truth, torch.randn(PLANTED, HIDDEN, generator=generator), 1.0)
    if arm == "principal":
        return _scored(truth, torch.linalg.svd(train - train.mean(dim=0), full_matrices=False).Vh, 0.0)
    penalties = (1.5, 0.0) if mutant == CHOSEN else (PENALTY[arm] / (PLANTED if mutant == MEAN else 1),)
    found = []
    for penalty in penalties:
        learning = Learning(sparsity=penalty, steps=STEPS[profile], rows=ROWS, rate=0.01, revive_every=300, seed=seed)
        path: list[tuple[float, float]] = []

        def note(step: int, learned: SparseAutoencoder, path: list[tuple[float, float]] = path) -> None:
            if (step + 1) % (STEPS[profile] // 30) == 0:
                path.append((unexplained(learned, test), float(recovery(truth, learned.decoder.detach().T).mean())))

        with _broken(mutant):
            learned = technique.train_dictionary(train, PLANTED, learning, on_step=note)
        found.append((unexplained(learned, test), learned, path))
    error, learned, path = min(found, key=lambda item: item[0])
    outcome = _scored(truth, learned.decoder.detach().T, error)
    step = flops(lambda: objective(learned, train[:ROWS], 1.5)[0].backward())
    budget = {"flops": step * STEPS[profile] * len(penalties), "parameters": count(learned)}
    with torch.no_grad():
        active = float((learned.encode(test) > 0).float().sum(dim=-1).mean())
    return Outcome({**outcome.metrics, "active": active}, budget, {"path": path})


def _scored(truth: Tensor, dictionary: Tensor, error: float) -> Outcome:
    cosine = recovery(truth, dictionary)
    metrics = {
        "recovery": float(cosine.mean()),
        "found": float((cosine > 0.9).float().mean()),
        "unexplained": error,
    }
    return Outcome(metrics)


def check(mutant: str | None) -> None:
    """Columns stay at unit norm while training, and the objective is what the paper writes."""
    _, train, _ = _world(0)
    with _broken(mutant):
        learned = technique.train_dictionary(train[:256], PLANTED, Learning(steps=20, rate=0.02))
    norms = learned.decoder.norm(dim=0)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5), "columns have left the unit sphere"


@contextmanager
def _broken(mutant: str | None) -> Iterator[None]:
    """Without the two functions that hold the columns at unit norm."""
    names = ("normalise_columns", "project_gradient") if mutant == FREE else ()
    healthy: dict[str, Any] = {name: vars(technique)[name] for name in names}
    for name in names:
        setattr(technique, name, lambda autoencoder: None)
    try:
        yield
    finally:
        for name, function in healthy.items():
            setattr(technique, name, function)
