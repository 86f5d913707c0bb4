"""``almanac evidence`` runs one experiment and reports a failure as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from almanac.evidence import runner


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A runner of two experiments, one of which fails; its pages are stale."""
    state = SimpleNamespace(current=False, drawn=0, folder=tmp_path / "evidence")

    def run(name: str, *, profile: str = "quick", seed: int = 0, folder: Path | None = None) -> runner.Result:
        verdict = runner.REPRODUCED if name == "adapt.lora" else runner.NOT_REPRODUCED
        return runner.Result(
            name=name, verdict=verdict, value=0.5, threshold=1.0, details={"baseline": 2}, mutants={"sign": True},
            card="", profile=profile, seed=seed, seconds=1.0, date="2026-01-01", machine="",
        )  # fmt: skip

    def render(check: bool = False) -> bool:
        state.drawn += not check
        return state.current

    monkeypatch.setattr(runner, "names", lambda: ["adapt.lora", "compress.int8"])
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "render", render)
    monkeypatch.setattr(runner, "FOLDER", state.folder)
    return state


def test_the_exit_code_is_the_verdict(almanac: Callable[..., Any], fakes: SimpleNamespace) -> None:
    result = almanac("evidence", "adapt.lora", "--profile", "full", "--seed", "7", "--json")
    found = json.loads(result.out)
    assert (result.code, found["verdict"], found["seed"], found["profile"]) == (0, "REPRODUCED", 7, "full")
    result = almanac("evidence", "compress.int8")
    assert result.code == 1
    assert result.out.splitlines() == [
        "compress.int8: NOT REPRODUCED", "  figure 0.5, threshold 1 (quick, seed 0)", "  baseline: 2",
        "  mutant sign: killed",
    ]  # fmt: skip


def test_pages_are_drawn_where_results_are_stored(almanac: Callable[..., Any], fakes: SimpleNamespace) -> None:
    almanac("evidence", "adapt.lora")
    assert fakes.drawn == 0
    fakes.folder.mkdir()
    almanac("evidence", "adapt.lora")
    assert fakes.drawn == 1


def test_names_are_listed_and_a_near_one_is_offered(almanac: Callable[..., Any], fakes: SimpleNamespace) -> None:
    assert almanac("evidence", "--list").out == "adapt.lora\ncompress.int8\n"
    assert json.loads(almanac("evidence", "--list", "--json").out) == {"experiments": ["adapt.lora", "compress.int8"]}
    result = almanac("evidence", "adapt.lore")
    assert result.code == 2 and "Did you mean adapt.lora?" in result.err


def test_check_tells_whether_the_pages_are_current(almanac: Callable[..., Any], fakes: SimpleNamespace) -> None:
    assert almanac("evidence", "--check").code == 1
    fakes.current = True
    assert json.loads(almanac("evidence", "--check", "--json").out) == {"current": True}
    assert almanac("evidence", "--check").code == 0


@pytest.mark.parametrize("words", [[], ["adapt.lora", "--list"], ["--list", "--check"]])
def test_exactly_one_thing_is_asked(words: list[str], almanac: Callable[..., Any], fakes: SimpleNamespace) -> None:
    assert almanac("evidence", *words).code == 2
