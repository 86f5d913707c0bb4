"""The card of states of fixed size: what it counts is what is there, and every planted bug shows in the experiment too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from almanac.core.errors import AlmanacError
from almanac.evidence.claim import Verdict
from almanac.evidence.judge import By, judge, judge_null
from almanac.evidence.nn.recurrent import state as card
from almanac.evidence.nn.recurrent.state import Touched, exponent, tensors_of
from almanac.evidence.outcome import Outcome
from almanac.nn.recurrent.state import RecurrentState

ARMS = ("mamba", "attention", "window")


@pytest.fixture(scope="module")
def healthy() -> dict[str, list[Outcome]]:
    return {arm.name: [card.run(arm.name, 0, "quick", None)] for arm in card.CARD.arms}


def test_a_quick_run_stands_and_is_nothing_without_its_method(healthy: dict[str, list[Outcome]]) -> None:
    assert judge(card.CARD, healthy, By.LINE).verdict == Verdict.REPRODUCED
    assert judge_null(card.CARD, healthy, By.LINE).verdict == Verdict.NOT_REPRODUCED
    growth = {arm: outcome.metrics["growth"] for arm, (outcome,) in healthy.items()}
    assert [arm for arm, value in growth.items() if value > 1] == ["attention", "window"]


def test_a_window_computes_no_more_and_keeps_little(healthy: dict[str, list[Outcome]]) -> None:
    (window,), (attention,) = healthy["window"], healthy["attention"]
    assert window.metrics["work_exponent"] == 0
    (_, some), (_, late) = window.curves["bytes"][-2:]
    assert late == some < attention.curves["bytes"][-1][1]


@pytest.mark.parametrize("mutant", list(card.BUGS))
def test_the_experiment_alone_sees_every_mutant(mutant: str, healthy: dict[str, list[Outcome]]) -> None:
    broken = {**healthy, "mamba": [card.run("mamba", 0, "quick", mutant)]}
    assert judge(card.CARD, broken, By.LINE).verdict != Verdict.REPRODUCED


@pytest.mark.parametrize("mutant", list(card.BUGS))
def test_the_oracle_sees_every_mutant(mutant: str) -> None:
    with pytest.raises((AssertionError, AlmanacError)):
        card.check(mutant)


def test_the_oracle_passes() -> None:
    card.check(None)


def test_tensors_are_found_wherever_a_state_holds_them_and_once() -> None:
    shared = torch.zeros(4)
    state = RecurrentState([shared, shared[1:], torch.ones(3)], [0])
    vars(state)["hidden"] = {"deep": [(torch.zeros(5),)]}
    found = list(tensors_of(state))
    assert sorted(tensor.untyped_storage().nbytes() for tensor in found) == [12, 16, 20]


def test_what_is_touched_is_read_and_written_and_no_view() -> None:
    def counted(x: Tensor) -> int:
        with Touched() as touched:
            x.view(2, 3).t()[0] + 1
            x[2:].fill_(0.0)
        return touched.total

    assert counted(torch.zeros(6)) == (2 + 2) + (4 + 4)


def test_exponents_are_slopes() -> None:
    assert exponent([(2.0, 8.0), (4.0, 64.0), (8.0, 512.0)]) == pytest.approx(3)
    assert exponent([(2.0, 0.0), (4.0, 0.0)]) == 0
