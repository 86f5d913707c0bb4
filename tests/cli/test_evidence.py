"""``almanac evidence`` runs one experiment and reports a failure as one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass(frozen=True)
class Outcome:
    verdict: str
    seed: int
    profile: str

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A runner of two experiments, one of which fails; pages that are stale."""
    state = SimpleNamespace(current=False)
    module = ModuleType("almanac.evidence.runner")
    verdicts = {"adapt.lora": "REPRODUCED", "compress.int8": "NOT REPRODUCED"}
    vars(module).update(
        names=lambda: list(verdicts),
        run=lambda name, *, profile="quick", seed=0, folder=None: Outcome(verdicts[name], seed, profile),
        render=lambda check: state.current,
    )
    monkeypatch.setitem(sys.modules, "almanac.evidence.runner", module)
    monkeypatch.setattr("almanac.evidence.runner", module, raising=False)
    return state


def test_the_exit_code_is_the_verdict(almanac: Callable[..., Any], runner: SimpleNamespace) -> None:
    result = almanac("evidence", "adapt.lora", "--profile", "full", "--seed", "7", "--json")
    assert (result.code, json.loads(result.out)) == (0, {"verdict": "REPRODUCED", "seed": 7, "profile": "full"})
    result = almanac("evidence", "compress.int8")
    assert result.code == 1 and "verdict: NOT REPRODUCED" in result.out


def test_names_are_listed_and_a_near_one_is_offered(almanac: Callable[..., Any], runner: SimpleNamespace) -> None:
    assert almanac("evidence", "--list").out == "adapt.lora\ncompress.int8\n"
    assert json.loads(almanac("evidence", "--list", "--json").out) == {"experiments": ["adapt.lora", "compress.int8"]}
    result = almanac("evidence", "adapt.lore")
    assert result.code == 2 and "Did you mean adapt.lora?" in result.err


def test_check_tells_whether_the_pages_are_current(almanac: Callable[..., Any], runner: SimpleNamespace) -> None:
    assert almanac("evidence", "--check").code == 1
    runner.current = True
    assert json.loads(almanac("evidence", "--check", "--json").out) == {"current": True}
    assert almanac("evidence", "--check").code == 0


@pytest.mark.parametrize("words", [[], ["adapt.lora", "--list"], ["--list", "--check"]])
def test_exactly_one_thing_is_asked(words: list[str], almanac: Callable[..., Any], runner: SimpleNamespace) -> None:
    assert almanac("evidence", *words).code == 2
