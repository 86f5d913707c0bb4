"""The order of a pipeline's work, on a simulated clock."""

from __future__ import annotations

import pytest

from almanac.train.parallel.pipeline import clock, idle_share, order


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 1), (2, 4), (4, 4), (4, 3), (4, 9)])
def test_the_bubble_is_as_the_formula_says(schedule: str, stages: int, micro_batches: int) -> None:
    length, _ = clock(stages, micro_batches, schedule)
    assert 1 - 3 * micro_batches / length == pytest.approx(idle_share(stages, micro_batches))


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 1), (4, 3), (4, 9)])
def test_one_forward_one_backward_keeps_at_most_as_many_as_there_are_stages(stages: int, micro_batches: int) -> None:
    _, held = clock(stages, micro_batches, "1f1b")
    assert held == [min(stages - stage, micro_batches) for stage in range(stages)]
    assert clock(stages, micro_batches, "gpipe")[1] == [micro_batches] * stages


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_everything_is_done_once_and_backward_after_forward(schedule: str) -> None:
    for stage in range(3):
        plan = order(stage, 3, 5, schedule)
        assert sorted(plan) == sorted((kind, index) for kind in "FB" for index in range(5))
        assert all(plan.index(("F", index)) < plan.index(("B", index)) for index in range(5))
