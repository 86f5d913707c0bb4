"""R12: steps that go wrong are left out, then given up with what came before them, then end the run; killed or not, alike."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from train import small_run
from train.test_loop import Spoilt, adapters, recorded, spoilt_gradient, spoilt_loss, steps_of

from almanac.core.errors import TrainingError, UnsupportedError
from almanac.train.checkpoint import Checkpoints
from almanac.train.events.event import Event, StepDone
from almanac.train.loop import Outcome, train
from almanac.train.spikes import SMOOTHING, LossStatistics, Spikes

NAN = float("nan")


def go(folder: Path | None, spoil: Any, *, events: list[Event], stop_at: int = 0, **changes: Any) -> Any:
    """One micro-batch a step, counted by step. Returns outcome and weights."""
    network = small_run.adapted(dropout=0.1)
    chosen = small_run.settings(**{"steps": 30, "micro_tokens": 512, "max_bad_steps": 3, "save_every": 4, **changes})
    stop = threading.Event()

    def halt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == stop_at:
            stop.set()

    outcome = train(
        network,
        chosen.batches(small_run.doubling_rows()),
        settings=chosen,
        criterion=spoil,
        listeners=(recorded(events), halt),
        run_folder=folder,
        stop=stop,
    )
    return outcome, adapters(network)


@pytest.mark.parametrize("kind", [spoilt_loss, spoilt_gradient])
def test_after_several_bad_steps_the_run_goes_back_and_on(kind: Any, tmp_path: Path) -> None:
    events: list[Event] = []
    states: dict[int, dict[str, Tensor]] = {}
    network = small_run.adapted()
    chosen = small_run.settings(steps=20, micro_tokens=512, max_bad_steps=3, save_every=4)

    def listener(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone):
            states[event.step] = adapters(network)

    outcome = train(
        network,
        chosen.batches(small_run.doubling_rows()),
        settings=chosen,
        criterion=Spoilt(spoil=kind(NAN, {11, 12, 13})),
        listeners=(listener,),
        run_folder=tmp_path,
    )
    steps = steps_of(events)
    assert [step.rolled_back_to for step in steps] == [8 if step.step == 13 else None for step in steps]
    assert all(torch.equal(states[13][name], states[8][name]) for name in states[8])
    assert not all(torch.equal(states[12][name], states[8][name]) for name in states[8])
    assert (outcome.step, outcome.skipped, outcome.rollbacks, outcome.finished) == (20, 3, 1, True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert [line["step"] for line in lines if "rolled_back_to" in line] == [13]
    assert steps[-1].loss < 0.7 * steps[0].loss


def test_a_checkpoint_among_bad_steps_is_none_to_go_back_to(tmp_path: Path) -> None:
    events: list[Event] = []
    go(tmp_path, Spoilt(spoil=spoilt_loss(NAN, {11, 12, 13})), events=events, save_every=3)
    assert [step.rolled_back_to for step in steps_of(events) if step.rolled_back_to] == [9]  # and not 12


def test_moments_and_dice_after_a_return_are_decided_by_the_run_alone(tmp_path: Path) -> None:
    """Stopped in between, also among the bad steps, before and after the return: the same end, bit for bit."""
    bad = {11, 12, 13, 18}
    events: list[Event] = []
    expected, weights = go(tmp_path / "whole", Spoilt(spoil=spoilt_gradient(NAN, bad)), events=events)
    assert expected.rollbacks == 1
    for stops in ((9,), (10,), (11,), (12,), (13,), (14,), (9, 10, 11, 12)):
        folder = tmp_path / "-".join(map(str, stops))
        found: Outcome | None = None
        for stop_at in (*stops, 0):
            done = found.step if found else 0
            spoil = spoilt_gradient(NAN, {step - done for step in bad})
            found, resumed = go(folder, Spoilt(spoil=spoil), events=[], stop_at=stop_at)
        assert found == expected
        assert all(torch.equal(resumed[name], weights[name]) for name in weights)
        logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", folder.name)]
        assert [{**json.loads(line), "seconds": 0} for line in logs[0]] == [
            {**json.loads(line), "seconds": 0} for line in logs[1]
        ]


def test_what_does_not_pass_ends_the_run_with_a_report(tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(TrainingError, match=r"3 steps in a row had no finite loss.* step 18, after 2 returns"):
        go(tmp_path, Spoilt(spoil=spoilt_loss(NAN, set(range(10, 99)))), events=events)
    returns = [step.rolled_back_to for step in steps_of(events) if step.skipped and step.step % 3 == 0]
    assert returns == [8, 12, None]  # 12 was saved after the return and is 8 again
    last = Checkpoints(tmp_path / "checkpoints").load()
    assert last is not None and last[0].facts["counters"]["rollbacks"] == 2 and not last[1]


def test_without_a_folder_it_ends_at_once() -> None:
    with pytest.raises(TrainingError, match="3 steps in a row had no finite loss, the last was step 6"):
        go(None, Spoilt(spoil=spoilt_loss(NAN, set(range(4, 99)))), events=[])


@pytest.mark.parametrize("background", [False, True])
def test_a_spike_is_left_out_and_costs_little(tmp_path: Path, background: bool) -> None:
    """Batches whose loss is ten times as large, one alone and then three in a row: within 2 % of the clean run's floor."""

    def larger(when: set[int]) -> Any:
        return lambda count, loss, network: loss * 10 if count in when else loss

    ends = []
    for name, when in (("clean", set[int]()), ("hurt", {30, 41, 42, 43})):
        events: list[Event] = []
        spikes = Spikes(patience=10)
        outcome, _ = go(
            tmp_path / name, Spoilt(spoil=larger(when)), events=events, steps=90, spikes=spikes, learning_rate=1e-2,
            background_saves=background,
        )  # fmt: skip
        skipped = {step.step: step.skipped for step in steps_of(events) if step.skipped}
        assert skipped == dict.fromkeys(when, "spike")
        assert outcome.rollbacks == (1 if when else 0)
        ends.append(np.mean([step.loss for step in steps_of(events)[-15:]]))
    assert abs(ends[1] - ends[0]) < 0.02 * steps_of(events)[0].loss


def test_statistics_are_the_weighted_mean_and_variance() -> None:
    losses = np.random.default_rng(0).normal(3.0, 0.2, size=400)
    statistics = LossStatistics()
    for loss in losses:
        statistics.take(float(loss))
    weights = np.array([(1 - SMOOTHING) * SMOOTHING ** (len(losses) - 1 - n) for n in range(len(losses))])
    weights[0] = SMOOTHING ** (len(losses) - 1)
    mean = float(np.sum(weights * losses))
    variance = float(np.sum(weights * (losses - mean) ** 2))
    assert statistics.mean == pytest.approx(mean, rel=1e-9)
    assert statistics.variance == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "steps", "spike"),
    [
        (3.0 + 8.1 * 0.1, 50, True),
        (3.0 + 7.9 * 0.1, 50, False),
        (3.0 + 9 * 0.1, 49, False),  # too early to judge
        (2.0, 50, False),  # a loss far below is none
        (math.inf, 50, True),
    ],
)
def test_what_is_a_spike(loss: float, steps: int, spike: bool) -> None:
    assert Spikes().found_in(loss, LossStatistics(3.0, 0.01, steps)) is spike


def test_a_steady_loss_may_rise_a_little() -> None:
    assert not Spikes().found_in(1.09, LossStatistics(1.0, 1e-12, 100))
    assert Spikes().found_in(1.11, LossStatistics(1.0, 1e-12, 100))


@pytest.mark.parametrize("wrong", [{"deviations": 0.0}, {"rise": -1.0}, {"patience": 0}])
def test_wrong_dials_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="Spikes of"):
        Spikes(**wrong)
