"""The planner against brute force over real shapes and over a continuum, its worth of repeated text, time and energy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from almanac.core.errors import RequestError, UnsupportedError
from almanac.evaluate.scaling import REFIT, Law
from almanac.evaluate.scaling_kaplan import KAPLAN
from almanac.evaluate.scaling_law import Points, fitted
from almanac.evaluate.scaling_repeated import MUENNIGHOFF
from almanac.pretrain.plan import plan, repeating
from almanac.pretrain.plan_machine import Machine, Noise, probe
from almanac.pretrain.plan_shape import Shape, ladder, nearest, shape_of

MACHINE = Machine(((1e4, 1e9), (1e6, 4e9)), 10.0, "made up")


@pytest.mark.parametrize("shape", [ladder(512)[place] for place in (0, 5, 14, 23, 31)] + [ladder(32_000)[60]])
def test_a_shape_counts_the_parameters_that_its_spec_builds(shape: Shape) -> None:
    with torch.device("meta"):
        network = shape.spec(64).build()
    assert sum(parameter.numel() for parameter in network.parameters()) == shape.parameters
    tables = shape.hidden * shape.vocab_size * (1 if shape.tied else 2)
    assert shape.parameters - tables == shape.non_embedding


def test_shapes_are_sound_and_grow() -> None:
    shapes = ladder(1000)
    assert all(a.parameters < b.parameters and a.layers <= b.layers for a, b in itertools.pairwise(shapes))
    assert all(shape.hidden % shape.heads == 0 for shape in shapes)
    assert shapes[0].parameters < 30_000 and shapes[-1].parameters > 3e11
    assert nearest(shapes[7].parameters * 1.01, 1000) == shapes[7]
    with pytest.raises(RequestError, match="multiple of 16"):
        shape_of(40, 1000)


@pytest.mark.parametrize("flops", [1e16, 1e19, 5.76e23])
@pytest.mark.parametrize("corpus", [None, 3e8])
def test_the_plan_is_the_best_of_all_shapes_and_near_the_best_of_all_sizes(flops: float, corpus: float | None) -> None:
    found = plan(flops, vocab_size=8000, corpus_tokens=corpus)
    law = REFIT if corpus is None else MUENNIGHOFF.with_(base=REFIT)
    losses = {shape.hidden: law.loss(shape.parameters, flops / 6 / shape.parameters, corpus) for shape in ladder(8000)}
    assert found.shape.hidden == min(losses, key=lambda hidden: losses[hidden])
    assert found.forecast.loss == pytest.approx(losses[found.shape.hidden], rel=1e-6)
    assert 6 * found.shape.parameters * found.tokens == pytest.approx(flops, rel=1e-3)
    sizes = np.geomspace(1e5, 1e12, 4001)
    best = min(law.loss(float(n), flops / 6 / float(n), corpus) for n in sizes)
    assert best <= found.forecast.loss * (1 + 1e-9) and found.forecast.loss < best * 1.005


def test_a_small_corpus_makes_the_model_no_larger_and_is_told() -> None:
    free, bound = plan(1e19, vocab_size=8000), plan(1e19, vocab_size=8000, corpus_tokens=1e8)
    assert bound.shape.parameters < free.shape.parameters
    assert bound.forecast.loss > free.forecast.loss
    assert bound.epochs == pytest.approx(bound.tokens / 1e8, rel=1e-6)
    assert any("read" in note for note in bound.notes) and not any("read" in note for note in free.notes)
    plenty = plan(1e19, vocab_size=8000, corpus_tokens=1e14)
    assert plenty.forecast.loss == pytest.approx(
        MUENNIGHOFF.with_(base=REFIT).loss(plenty.shape.parameters, plenty.tokens), rel=1e-9
    )
    assert repeating(MUENNIGHOFF) is MUENNIGHOFF


def test_time_is_spent_where_the_machine_is_fast() -> None:
    found = plan(seconds=3600, machine=MACHINE, vocab_size=512)
    speed = MACHINE.flops_per_second(found.shape.parameters)
    assert found.seconds == pytest.approx(3600)
    assert found.flops == pytest.approx(3600 * speed)
    assert found.watt_hours == pytest.approx(10.0)
    assert found.euros(0.4) == pytest.approx(0.004)
    assert MACHINE.flops_per_second(1e5) == pytest.approx(2e9)  # half way in logarithms
    assert (MACHINE.flops_per_second(1), MACHINE.flops_per_second(1e9)) == pytest.approx((1e9, 4e9))
    even = Machine(((1e4, 4e9), (1e6, 4e9)), 10.0, "made up")
    assert plan(seconds=3600, machine=even, vocab_size=512).shape == plan(3600 * 4e9, vocab_size=512).shape
    assert found.shape.parameters >= plan(3600 * 4e9 / 4, vocab_size=512).shape.parameters


def test_a_law_with_its_runs_gives_an_interval_and_says_how_far_it_reaches() -> None:
    law = Law(E=1.2, A=40.0, B=300.0, alpha=0.4, beta=0.35)
    sizes, amounts = (part.ravel() for part in np.meshgrid(np.geomspace(1e4, 4e5, 4), np.geomspace(1e5, 4e6, 4)))
    dice = np.random.default_rng(0)
    losses = [
        law.loss(n, d) * float(np.exp(0.005 * dice.standard_normal())) for n, d in zip(sizes, amounts, strict=True)
    ]
    known = fitted(REFIT, Points.of(sizes.tolist(), amounts.tolist(), losses), resamples=40)
    near = plan(6 * 2e5 * 2e6, law=known, vocab_size=512)
    assert near.forecast.low < near.forecast.loss < near.forecast.high
    assert not any("far outside" in note for note in near.notes)
    assert any("far outside" in note for note in plan(1e19, law=known, vocab_size=512).notes)
    bound = plan(6 * 2e5 * 2e6, law=known, vocab_size=512, corpus_tokens=1e5)
    assert bound.forecast.low < bound.forecast.loss < bound.forecast.high
    assert bound.forecast.loss > near.forecast.loss


def test_kaplans_law_is_asked_without_embeddings() -> None:
    found = plan(1e18, law=KAPLAN, vocab_size=32_000)
    assert found.forecast.loss == pytest.approx(KAPLAN.loss(found.shape.non_embedding, found.tokens), rel=1e-6)
    with pytest.raises(UnsupportedError, match="repeated"):
        plan(1e18, law=KAPLAN, corpus_tokens=1e9)


def test_budgets_that_are_none() -> None:
    for arguments in ({}, {"flops": 0.0}, {"flops": -1.0}, {"flops": 1e12, "seconds": 5.0}, {"seconds": 5.0}):
        with pytest.raises(RequestError, match="budget"):
            plan(**arguments)
    with pytest.raises(RequestError, match="corpus"):
        plan(1e18, corpus_tokens=0)
    with pytest.raises(RequestError, match="one token"):
        plan(1e5)
    with pytest.raises(RequestError, match="machine"):
        Machine(((1e4, 0.0),), 1.0, "broken")


def test_a_probe_trains_and_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("almanac.pretrain.plan_machine.TRIED", (16, 32))
    told: list[int] = []
    found = probe(300, window=16, tell=lambda shape, speed: told.append(shape.hidden))
    assert told == [16, 32] and [size for size, _ in found.speeds] == [shape_of(w, 300).parameters for w in (16, 32)]
    assert all(speed > 1e6 for _, speed in found.speeds) and found.watts >= 0
    noise = Noise(torch.arange(10))
    assert noise.num_tokens == 10 and noise.ends.tolist() == [10] and noise.read(2, 3).tolist() == [2, 3, 4]
