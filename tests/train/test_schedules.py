"""Learning rates at the points where they are known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers

from almanac.core.errors import UnsupportedError
from almanac.core.value import Value
from almanac.train.schedules.cosine import Cosine
from almanac.train.schedules.cosine_restarts import CosineRestarts
from almanac.train.schedules.inverse_square_root import InverseSquareRoot, timescale_after
from almanac.train.schedules.linear import Linear
from almanac.train.schedules.polynomial import Polynomial
from almanac.train.schedules.schedule import Schedule, learning_rate
from almanac.train.schedules.stable import Exponential, SquareRootFall, Stable
from almanac.train.settings import TrainSettings


def rates(schedule: Schedule, *, steps: int = 100, warmup: float = 0.1) -> list[float]:
    return [learning_rate(step, steps, peak=2.0, warmup=warmup, schedule=schedule) for step in range(steps)]


FALLING = [
    Cosine(),
    Linear(),
    Cosine(floor=0.1),
    Linear(floor=0.1),
    Polynomial(power=2.0),
    Polynomial(power=0.5, floor=0.2),
    InverseSquareRoot(),
    Exponential(),
    SquareRootFall(),
    Stable(),
    Stable(decay=0.4, tail=Exponential(floor=0.01)),
    CosineRestarts(cycles=1),
]


@pytest.mark.parametrize("schedule", FALLING)
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


WARM, STEPS = 10, 100
PEERS: dict[str, tuple[Schedule, Callable[..., Any]]] = {
    "cosine": (Cosine(), partial(transformers.get_cosine_schedule_with_warmup, num_training_steps=STEPS)),
    "linear": (Linear(), partial(transformers.get_linear_schedule_with_warmup, num_training_steps=STEPS)),
    "restarts": (
        CosineRestarts(cycles=3),
        partial(
            transformers.get_cosine_with_hard_restarts_schedule_with_warmup, num_training_steps=STEPS, num_cycles=3
        ),
    ),
    "polynomial": (
        Polynomial(power=2.0, floor=0.05),
        partial(
            transformers.get_polynomial_decay_schedule_with_warmup, num_training_steps=STEPS, lr_end=0.1, power=2.0
        ),
    ),
    "inverse square root": (InverseSquareRoot(timescale=timescale_after(0.1)), transformers.get_inverse_sqrt_schedule),
    "inverse square root, slower": (
        InverseSquareRoot(timescale=40 / 90),
        partial(transformers.get_inverse_sqrt_schedule, timescale=40),
    ),
    "stable, line": (
        Stable(decay=18 / 90, tail=Linear(floor=0.1)),
        partial(
            transformers.get_wsd_schedule,
            num_decay_steps=18,
            num_stable_steps=72,
            decay_type="linear",
            min_lr_ratio=0.1,
        ),
    ),
    "stable, cosine": (
        Stable(decay=18 / 90, tail=Cosine()),
        partial(transformers.get_wsd_schedule, num_decay_steps=18, num_stable_steps=72, decay_type="cosine"),
    ),
    "stable, root": (
        Stable(decay=18 / 90, tail=SquareRootFall()),
        partial(transformers.get_wsd_schedule, num_decay_steps=18, num_stable_steps=72, decay_type="1-sqrt"),
    ),
}


@pytest.mark.parametrize(("schedule", "peer"), PEERS.values(), ids=PEERS)
def test_after_warm_up_it_is_that_of_transformers(schedule: Schedule, peer: Callable[..., Any]) -> None:
    """Warm-up differs by intent: ours never gives a step the rate 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = peer(optimizer, num_warmup_steps=WARM)
    theirs = []
    for _ in range(STEPS):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(schedule)[WARM:] == pytest.approx(theirs[WARM:], abs=1e-12)


def test_restarts_begin_at_the_peak_and_grow() -> None:
    """Lengths 1, 2, 4 of 7: restarts after 1/7 and 3/7 of the run, the middle of each cycle at one half."""
    schedule = CosineRestarts(cycles=3, growth=2.0, floor=0.1)
    for start, length in ((0, 1), (1, 2), (3, 4)):
        assert schedule.factor(start / 7 + 1e-12) == pytest.approx(1.0)
        assert schedule.factor((start + length / 2) / 7) == pytest.approx(0.55)
        assert schedule.factor((start + length) / 7 - 1e-12) == pytest.approx(0.1)
    assert CosineRestarts(cycles=1).factor(0.3) == Cosine().factor(0.3)


def test_a_stable_run_can_be_prolonged() -> None:
    """Runs of other lengths have the same rate until the shorter one decays: 10 of 100 steps and 10 of 200."""
    short = [learning_rate(s, 100, peak=1.0, warmup=0.05, schedule=Stable(decay=10 / 95)) for s in range(90)]
    long = [learning_rate(s, 200, peak=1.0, warmup=0.025, schedule=Stable(decay=10 / 195)) for s in range(90)]
    assert short == long
    assert Stable(decay=0.0).factor(0.999) == 1.0


def test_known_points_of_the_others() -> None:
    assert InverseSquareRoot(timescale=0.1).factor(0.3) == pytest.approx(0.5)
    assert Exponential(floor=0.25).factor(0.5) == pytest.approx(0.5)
    assert Polynomial(power=2.0, floor=0.2).factor(0.5) == pytest.approx(0.4)
    assert SquareRootFall(floor=0.5).factor(0.25) == pytest.approx(0.75)
    assert Value.from_dict(Stable(tail=Exponential()).to_dict()) == Stable(tail=Exponential())


@pytest.mark.parametrize(
    "make",
    [
        lambda: CosineRestarts(cycles=0),
        lambda: CosineRestarts(growth=0.0),
        lambda: Stable(decay=1.1),
        lambda: Exponential(floor=0.0),
        lambda: InverseSquareRoot(timescale=0.0),
        lambda: Polynomial(power=-1.0),
    ],
)
def test_schedules_that_mean_nothing_are_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(UnsupportedError):
        make()
