"""``almanac scaling``: plans, fits and a tiny sweep, told to people and to machines; what cannot be done is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from almanac.evaluate.scaling import REFIT
from almanac.pretrain.plan import plan

WORDS = "lamp ship stone river quiet seven under the of blue far old sea over light and a small house by water".split()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    dice = random.Random(0)
    sizes = [(10**4 * 2**i, 10**5 * 2**j) for i in range(4) for j in range(4)]
    rows = [f"{n},{n // 2},{d},{REFIT.loss(n, d) * dice.gauss(1, 0.002)}\n" for n, d in sizes]
    path.write_text("params,non_embedding,tokens,loss\n" + "".join(rows))
    return path


def test_a_plan_is_that_of_the_library_and_its_model_is_one(almanac: Callable[..., Any], tmp_path: Path) -> None:
    expected = plan(1e17, vocab_size=8000, corpus_tokens=10**8)
    told = almanac(
        "scaling", "plan", "--flops", "1e17", "--vocab-size", "8000", "--corpus-tokens", "100000000", "--json"
    )
    found = json.loads(told.out)
    assert {name: found[name] for name in ("hidden", "tokens", "loss")} == {
        "hidden": expected.shape.hidden, "tokens": expected.tokens, "loss": expected.forecast.loss,
    }  # fmt: skip
    spec = tmp_path / "planned.json"
    shown = almanac("scaling", "plan", "--flops", "1e15", "--vocab-size", "300", "--spec", spec, "--context", "32")
    assert shown.code == 0 and "expected loss" in shown.out and str(spec) in shown.out
    described = almanac("describe", spec)
    parameters = plan(1e15, vocab_size=300).shape.parameters
    assert described.code == 0 and f"{parameters:,}" in described.out


def test_minutes_and_euros_are_worth_what_the_machine_makes_of_them(
    almanac: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("almanac.pretrain.plan_machine.TRIED", (16, 32))
    timed = almanac("scaling", "plan", "--minutes", "2", "--vocab-size", "300", "--watts", "30", "--json")
    found = json.loads(timed.out)
    assert found["seconds"] == pytest.approx(120) and found["watt_hours"] == pytest.approx(1.0)
    assert found["euros"] == pytest.approx(0.0003)
    paid = almanac("scaling", "plan", "--euros", "0.3", "--watts", "1000", "--vocab-size", "300", "--json")
    assert json.loads(paid.out)["seconds"] == pytest.approx(3600)
    assert "GFLOP/s" in paid.err


@pytest.mark.parametrize("form", ["chinchilla", "kaplan"])
def test_a_fit_is_told_and_planned_with(almanac: Callable[..., Any], runs: Path, tmp_path: Path, form: str) -> None:
    law = tmp_path / "law.json"
    shown = almanac("scaling", "fit", runs, "--form", form, "--output", law)
    assert shown.code == 0 and "16 runs" in shown.out and ("beta" in shown.out) == (form == "chinchilla")
    planned = almanac("scaling", "plan", "--flops", "6e11", "--vocab-size", "300", "--law", law)
    assert planned.code == 0 and " to " in planned.out


def test_a_sweep_is_told_and_goes_on(
    almanac: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    dice = random.Random(0)
    text.write_text("\n".join(" ".join(dice.choice(WORDS) for _ in range(9)) + "." for _ in range(10_000)))
    monkeypatch.setattr("almanac.pretrain.sweep_settings.TOKENS_PER_PARAMETER", 0.5)
    monkeypatch.setattr("almanac.pretrain.sweep_settings.LEAST_STEPS", 5)
    result = almanac("scaling", "sweep", text, "--output", out, "--flops", "4e10", "--vocab-size", "280")
    assert result.code == 0, result.err
    assert "forecast by chinchilla's form" in result.out and str(out / "report.html") in result.out
    again = almanac("scaling", "sweep", text, "--output", out, "--flops", "4e10", "--vocab-size", "280", "--json")
    assert json.loads(again.out.splitlines()[-1])["verdict"]["found"] > 0
    fit = almanac("scaling", "fit", out)
    assert fit.code == 0, fit.err
    other = almanac("scaling", "sweep", text, "--output", out, "--flops", "4e10", "--vocab-size", "290")
    assert other.code == 1 and "another sweep" in other.err


def test_what_cannot_be_done_is_refused(almanac: Callable[..., Any], runs: Path, tmp_path: Path) -> None:
    for words, told in (
        (("plan",), "One budget"),
        (("plan", "--flops", "1e15", "--minutes", "3"), "One budget"),
        (("plan", runs, "--flops", "1e15"), "no inputs"),
        (("plan", "--flops", "1e15", "--law", tmp_path / "none.json"), "none.json"),
        (("fit",), "without inputs"),
        (("fit", tmp_path), "no run"),
        (("sweep", runs, "--flops", "1e12"), "without a folder"),
        (("sweep", runs, "--output", tmp_path / "out"), "One budget"),
        (("sweep", runs, "--output", tmp_path / "out", "--euros", "1"), "--flops or --minutes"),
    ):
        refused = almanac("scaling", *words)
        assert refused.code == 2 and told in refused.err, words
    few = tmp_path / "few.csv"
    few.write_text("".join(runs.read_text().splitlines(keepends=True)[:5]))
    refused = almanac("scaling", "fit", few)
    assert refused.code == 2 and "4 runs for a law with 5 unknowns" in refused.err
    assert almanac("scaling", "plan", "--flops", "-1").code == 2
