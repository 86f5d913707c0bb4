"""The claims audit: its arithmetic against sums done another way, its units, and that the page says what they give."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from almanac.adapt.lora import Lora, LowRank
from almanac.core.site import select
from almanac.evidence import audit
from almanac.nn.linear import Linear


@pytest.mark.parametrize("run", audit.TRAININGS, ids=lambda run: run.name)
def test_a_printed_row_follows_from_its_inputs(run: audit.Training) -> None:
    joules = run.device_hours * 3600 * run.watts * run.pue
    assert run.kwh == pytest.approx(joules / 3.6e6)
    assert run.kg == pytest.approx(joules / 3.6e6 * run.kg_per_kwh)
    assert run.off_by <= audit.CLOSE
    assert any(letter.isdigit() for letter in run.source)


def test_pounds_hours_and_megawatt_hours_are_told_apart() -> None:
    bert, llama = audit.TRAININGS[0], audit.TRAININGS[3]
    assert bert.printed_kg == pytest.approx(652.3, abs=0.1)  # not 1,438, which are pounds, and not 79, which are hours
    assert bert.kwh * 0.954 == pytest.approx(1438, rel=audit.CLOSE)  # pounds
    assert llama.kg / 1000 == pytest.approx(173, abs=0.5)  # tonnes; 449 are MWh
    assert llama.kwh / 1000 == pytest.approx(449, rel=0.003)


def test_a_unit_taken_for_another_is_off_by_far() -> None:
    bert = audit.TRAININGS[0]
    for wrong in ({"printed_kg": 1438}, {"printed_kg": 79}, {"pue": 1.58**2}, {"watts": 12.04151}):
        assert dataclasses.replace(bert, **wrong).off_by > 10 * audit.CLOSE


def test_days_and_utilisation() -> None:
    assert audit.megatron_days() == pytest.approx(33.9, abs=0.1)
    share = audit.utilisation(flop=audit.GPT3_FLOP, devices=10_000, days=34, peak_flop_per_second=audit.V100_PEAK)
    assert 0.08 < share < 0.09
    again = audit.training_days(flop=audit.GPT3_FLOP, devices=10_000, flop_per_second=share * audit.V100_PEAK)
    assert again == pytest.approx(34)


def test_the_formula_of_lora_counts_what_is_trained() -> None:
    network = torch.nn.Sequential(
        *(Linear.Spec(in_features=a, out_features=b).build() for a, b in ((9, 6), (6, 9)) * 3)
    )
    Lora(rank=2, targets="**").attach(network)
    counted = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    formula = audit.Adapted(name="", parameters=1.0, layers=3, maps=((9, 6), (6, 9)), rank=2)
    assert counted == formula.trained
    assert all(isinstance(site.chain[0], LowRank) for site in select(network, "**", of=Linear).values())
    square = audit.Adapted(name="", parameters=64.0**2, layers=1, maps=((64, 64),), rank=4)
    assert square.ratio == 64 / (2 * 4)
    assert audit.ADAPTED[0].ratio == pytest.approx(10_000, rel=0.1)


def test_the_slope_of_a_softmax_against_autograd() -> None:
    for gap in (0.0, 5.0, 10.0):
        logits = torch.tensor([gap, 0.0], dtype=torch.float64, requires_grad=True)
        logits.softmax(0)[0].backward()
        assert logits.grad is not None
        assert audit.softmax_slope(gap) == pytest.approx(float(logits.grad[0]))
    assert math.isclose(audit.softmax_slope(0.0), 0.25)


def test_the_page_is_the_same_each_time_and_says_what_was_computed() -> None:
    text = audit.page()
    assert text == audit.page() and text.startswith("# Claims audit\n") and text.endswith("\n")
    for said in ("173 t", "652 kg", "**MWh**", "33.9 days", "8.6%", "10,000", "8,192", "SmolLM2-135M"):
        assert said in text, said
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
