"""Learning rates at the points where they are known."""

from __future__ import annotations

import pytest

from almanac.core.value import Value
from almanac.train.schedules.cosine import Cosine
from almanac.train.schedules.linear import Linear
from almanac.train.schedules.schedule import Schedule, learning_rate
from almanac.train.settings import TrainSettings


def rates(schedule: Schedule, *, steps: int = 100, warmup: float = 0.1) -> list[float]:
    return [learning_rate(step, steps, peak=2.0, warmup=warmup, schedule=schedule) for step in range(steps)]


@pytest.mark.parametrize("schedule", [Cosine(), Linear(), Cosine(floor=0.1), Linear(floor=0.1)])
def test_rises_in_a_line_peaks_once_and_falls(schedule: Schedule) -> None:
    found = rates(schedule)
    assert found[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert found[9] == found[10] == max(found) == 2.0
    assert found[10:] == sorted(found[10:], reverse=True)
    assert min(found) > 0


def test_known_points() -> None:
    assert Cosine().factor(0.5) == pytest.approx(0.5)
    assert Cosine(floor=0.2).factor(1.0) == pytest.approx(0.2)
    assert Cosine().factor(1 / 3) == pytest.approx(0.75)
    assert Linear().factor(0.25) == 0.75
    assert Linear(floor=1.0).factor(0.9) == 1.0
    assert rates(Linear(), steps=4, warmup=0.0) == [2.0, 1.5, 1.0, 0.5]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_even_the_shortest_run_has_a_rate(steps: int, warmup: float) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(Cosine(floor=0.1), steps=steps, warmup=warmup))


def test_settings_survive_json() -> None:
    settings = TrainSettings(learning_rate=1e-3, schedule=Linear(floor=0.5), steps=7)
    assert Value.from_dict(settings.to_dict()) == settings
    assert settings.rate(0, 1) == 1e-3
