"""The cards of the counting study, of our own law and of repeated text: oracles see their mutants, arms do what they say."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from almanac.core.errors import AlmanacError
from almanac.evidence.claim import Verdict
from almanac.evidence.evaluate import scaling_counting, scaling_law, scaling_repeated
from almanac.evidence.evaluate.scaling import FILE
from almanac.evidence.evaluate.scaling_law import Found
from almanac.evidence.judge import By, judge, judge_null

SEEN = [  # (card, mutant) that the oracle sees; the others change the experiment alone
    (scaling_counting, scaling_counting.FORGOTTEN),
    (scaling_counting, scaling_counting.MIXED),
    (scaling_counting, scaling_counting.UNDIVIDED),
    (scaling_law, scaling_law.SWAPPED),
    (scaling_law, scaling_law.LOGGED),
    (scaling_law, scaling_law.NARROW),
    (scaling_repeated, scaling_repeated.LINEAR),
]


@pytest.mark.parametrize(("module", "mutant"), SEEN, ids=[mutant for _, mutant in SEEN])
def test_an_oracle_sees_its_mutants_and_leaves_the_code_as_it_was(module: ModuleType, mutant: str) -> None:
    with pytest.raises((AssertionError, AlmanacError)):
        module.check(mutant)
    module.check(None)


def test_the_counting_card_reproduces_and_its_null_and_its_last_mutant_do_not() -> None:
    if not FILE.is_file():
        pytest.skip("the digitised points are not beside this repository")
    card = scaling_counting.CARD
    outcomes = {
        arm.name: [scaling_counting.run(arm.name, seed, "quick", None) for seed in range(3)] for arm in card.arms
    }
    assert judge(card, outcomes, By.LINE).verdict == Verdict.REPRODUCED
    assert judge_null(card, outcomes, By.LINE).verdict != Verdict.REPRODUCED
    broken = [scaling_counting.run("without embeddings", seed, "quick", scaling_counting.LARGE) for seed in range(3)]
    assert judge(card, outcomes | {"without embeddings": broken}, By.LINE).verdict != Verdict.REPRODUCED


def test_unfinished_points_come_from_the_middle_of_the_longest_run_of_their_size() -> None:
    runs = (
        Found(10, 5, 100, 3.0, {}),
        Found(10, 5, 200, 2.5, {100: 3.3}),
        Found(20, 9, 100, 2.8, {}),
        Found(20, 9, 200, 2.2, {100: 3.1}),
    )
    assert [run.loss for run in scaling_law.unfinished(runs)] == [3.3, 2.5, 3.1, 2.2]


def test_shuffled_runs_keep_lengths_and_losses_and_change_sizes_within_a_length() -> None:
    runs = tuple(Found(10 * n, n, d, n + d / 1000, {}) for n in (1, 2, 3, 4) for d in (100, 200, 300))
    moved = scaling_law.shuffled(runs, seed=3)
    assert moved[-1] == runs[-1] and [(r.tokens, r.loss) for r in moved] == [(r.tokens, r.loss) for r in runs]
    for tokens in (100, 200, 300):
        before, after = ([r.parameters for r in part[:-1] if r.tokens == tokens] for part in (runs, moved))
        assert sorted(before) == sorted(after) and all(a != b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("times", [1, 4, 32])
def test_a_text_is_read_as_often_as_the_arm_says(times: int) -> None:
    tiny = scaling_repeated.SIZES["quick"]
    wanted = tiny.steps * tiny.rows * tiny.time
    chosen = torch.arange(wanted // times)
    rows = scaling_repeated.order(chosen, tiny, seed=3)
    assert rows.shape == (tiny.steps, tiny.rows, tiny.time)
    counts = rows.flatten().bincount(minlength=len(chosen))
    assert counts.float().mean() == pytest.approx(times, rel=0.02) and counts.max() <= times + 1
    first = rows.flatten(0, 1)[: len(chosen) // tiny.time, 0]
    assert len(first.unique()) == len(first)  # all of it is read once before any of it twice
