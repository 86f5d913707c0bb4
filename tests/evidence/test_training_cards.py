"""The cards of training: oracles see their mutants, exact experiments see them too, and what is planted is what is said."""

from __future__ import annotations

import random
from types import ModuleType

import pytest
import torch

from almanac.core.errors import AlmanacError
from almanac.evidence.claim import Verdict
from almanac.evidence.data import pack
from almanac.evidence.judge import By, judge, judge_null
from almanac.evidence.outcome import Outcome
from almanac.evidence.train import activation_checkpointing, precision, recheck, spikes, step, text_runs
from almanac.evidence.train.averaging import lawa
from almanac.evidence.train.schedules import cosine, schedule

EXACT = (activation_checkpointing, step, recheck, pack)
CARDS = (*EXACT, spikes, lawa, schedule, cosine, precision)


@pytest.mark.parametrize(("module", "mutant"), [(m, mutant.name) for m in CARDS for mutant in m.CARD.mutants])
def test_an_oracle_sees_its_mutants_and_leaves_the_code_as_it_was(module: ModuleType, mutant: str) -> None:
    with pytest.raises((AssertionError, AlmanacError)):
        module.check(mutant)
    module.check(None)


@pytest.fixture(scope="module", params=EXACT, ids=lambda module: module.CARD.name)
def healthy(request: pytest.FixtureRequest) -> tuple[ModuleType, dict[str, list[Outcome]]]:
    module: ModuleType = request.param
    return module, {arm.name: [module.run(arm.name, 0, "quick", None)] for arm in module.CARD.arms}


def test_a_quick_run_stands_and_is_nothing_without_its_method(
    healthy: tuple[ModuleType, dict[str, list[Outcome]]],
) -> None:
    module, outcomes = healthy
    assert judge(module.CARD, outcomes, By.LINE).verdict == Verdict.REPRODUCED
    assert judge_null(module.CARD, outcomes, By.LINE).verdict == Verdict.NOT_REPRODUCED


def test_the_experiment_alone_sees_every_mutant(healthy: tuple[ModuleType, dict[str, list[Outcome]]]) -> None:
    module, outcomes = healthy
    for mutant in module.CARD.mutants:
        arms = module.CARD.mutated(mutant)
        broken = {**outcomes, **{arm: [module.run(arm, 0, "quick", mutant.name)] for arm in arms}}
        assert judge(module.CARD, broken, By.LINE).verdict != Verdict.REPRODUCED, mutant.name


def test_what_is_alive_after_a_forward_pass_is_counted_once_and_what_is_gone_not_at_all() -> None:
    with activation_checkpointing.Made() as made:
        kept = torch.zeros(8) + 1
        kept.view(2, 4).add_(1)
        assert float((kept * 2).sum()) == 32
    assert made.alive == 8 * 4


@pytest.mark.parametrize(("lowest", "highest"), [(0, 31), (18, 30)])
def test_one_bit_of_one_number_is_turned(lowest: int, highest: int) -> None:
    rng, right = random.Random(0), torch.randn(50, generator=torch.Generator().manual_seed(0))
    for _ in range(40):
        wrong = recheck.turned(right, rng, lowest=lowest, highest=highest)
        changed = (wrong.view(torch.int32) ^ right.view(torch.int32))[
            wrong.view(torch.int32) != right.view(torch.int32)
        ]
        assert len(changed) == 1 and (int(changed) & 0xFFFFFFFF).bit_count() == 1 and wrong.isfinite().all()


def test_noise_is_where_it_is_planted_and_the_same_again() -> None:
    size = spikes.Troubled(steps=20, bursts=(0.5,), burst=2, rows=2, time=16)
    plain = list(text_runs.windows(size, 3))
    noisy = spikes.Noisy(text_runs.windows(size, 3), size.noisy, 3)
    found = list(noisy)
    changed = [
        n for n, (a, b) in enumerate(zip(plain, found, strict=True)) if not torch.equal(a[0].tokens, b[0].tokens)
    ]
    assert changed == [10, 11]
    noisy.load({"seed": 3, "epoch": 0, "position": 10})
    assert torch.equal(next(noisy)[0].tokens, found[10][0].tokens)


def test_examples_are_found_by_their_tokens() -> None:
    rows = pack.examples(0)
    batches = pack.packed_batches(rows, 24 * 8)
    spans = [
        (batch, row, span)
        for batch in batches
        for row in range(len(batch.tokens))
        for span in pack.spans_of(batch, row, rows)
    ]
    found = sorted(tuple(batch.tokens[row, start:end].tolist()) for batch, row, (start, end) in spans)
    assert found == sorted(row.tokens for row in rows)


def test_rounding_counts_updates_that_come_back() -> None:
    model, lost = text_runs.network(text_runs.Size(hidden=8, layers=1, heads=2), 0), list[float]()
    rounding = precision.Rounding(model, lost)
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            weight.copy_(rounding.before[place])
        norm, bias = model.get_parameter("norm.weight"), model.get_parameter("norm.bias")
        norm += 2.0**-12  # far below a step of bfloat16 at 1
        bias += 0.5
    rounding.round()
    assert lost == [0.5] and bool((norm == 1).all()) and bool((bias == 0.5).all())
