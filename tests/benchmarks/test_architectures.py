"""The sweep over lengths: its fit, its count of live bytes, and what it finds of mixers whose costs are known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "architectures.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    found = importlib.util.spec_from_file_location("benchmark_architectures", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # where its dataclass looks itself up
    found.loader.exec_module(module)
    return module


def test_the_exponent_is_fitted_over_the_longer_half(script: ModuleType) -> None:
    assert script.exponent({n: 3.0 * n**1.5 for n in (2, 8, 32)}) == pytest.approx(1.5)
    assert script.exponent({16: 7.0, 32: 7.0}) == 0
    assert script.exponent({1: 100.0, 2: 100.0, 4: 4.0, 8: 8.0}) == pytest.approx(1.0)
    assert script.exponent({4: 1.0}) != script.exponent({4: 1.0}), "one length has no exponent"


def test_live_bytes_are_those_that_are_alive_at_once(script: ModuleType) -> None:
    def two_at_once() -> None:
        first = torch.zeros(1000)
        second = first.view(10, 100) + 1
        del first
        third = second * 2
        del second, third

    assert script.peak_bytes(two_at_once) == 2 * 4000


def test_costs_that_are_known_come_out(script: ModuleType) -> None:
    rows = {
        name: script.measured(name, script.spec_of(name, 16), [64, 128, 256], hidden=16, repeats=1)
        for name in ("full", "linear", "mamba")
    }
    assert script.exponent(rows["full"].operations) > 1.7
    assert script.exponent(rows["linear"].operations) == pytest.approx(1.0, abs=0.05)
    for name, grows in (("full", True), ("linear", False), ("mamba", False)):
        state = rows[name].state
        assert (state[256] > 3 * state[64]) == grows
        assert min(rows[name].seconds.values()) > 0 and min(rows[name].peak.values()) > 0
    text = script.table(list(rows.values()))
    assert text.count("\n") == 4 and "| mamba | 256 |" in text


def test_every_mixer_of_the_list_can_be_made(script: ModuleType) -> None:
    for name in script.MIXERS:
        assert script.spec_of(name, 64).build() is not None, name
