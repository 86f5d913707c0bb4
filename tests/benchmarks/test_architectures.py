"""The sweep over lengths: its fit, its count of live bytes, and what it finds of mixers whose costs are known."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "architectures.py"


def loaded() -> ModuleType:
    """The script as a module."""
    found = importlib.util.spec_from_file_location("benchmark_architectures", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # where its dataclass looks itself up
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    return loaded()


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

    assert script.counted(two_at_once) == (0.0, 2 * 4000)


def test_fused_attention_is_counted(script: ModuleType) -> None:
    q, k = torch.zeros(1, 4, 50, 8), torch.zeros(1, 4, 50, 8)
    found, live = script.counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True))
    assert found == 2 * 4 * 50 * 50 * (8 + 8), "both products, as if no pair were left out"
    assert live < 4 * 50 * 50 * 4, "scores of all pairs are not held"


def row_of(script: ModuleType, name: str, lengths: list[int]) -> Any:
    """What a mixer's own process would write, in this one."""
    row = script.Row(name)
    for found in script.figures(script.spec_of(name, 16), lengths, hidden=16, repeats=1):
        length = found.pop("length")
        for figure, value in {**found, "resident": 0}.items():
            getattr(row, figure)[length] = value
    return row


def test_costs_that_are_known_come_out(script: ModuleType) -> None:
    rows = {name: row_of(script, name, [64, 128, 256]) for name in ("full", "linear", "mamba")}
    assert script.exponent(rows["full"].operations) > 1.7
    assert script.exponent(rows["linear"].operations) == pytest.approx(1.0, abs=0.05)
    for name, grows in (("full", True), ("linear", False), ("mamba", False)):
        state = rows[name].state
        assert (state[256] > 3 * state[64]) == grows
        assert min(rows[name].seconds.values()) > 0 and min(rows[name].peak.values()) > 0
    text = script.table(list(rows.values()))
    assert text.count("\n") == 4 and "| mamba | 256 |" in text


@pytest.mark.parametrize("name", ["window", "multiscale", "mamba", "s4", "s4d", "quantum"])
def test_long_texts_hold_no_scores_of_all_pairs_and_no_states_of_all_tokens(script: ModuleType, name: str) -> None:
    row = row_of(script, name, [2048, 4096])
    assert row.peak[4096] < 2.6 * row.peak[2048]
    assert row.peak[4096] < 8 * 4096 * 4096, "not two bytes for a pair of every head"
    if name in ("window", "multiscale"):
        assert row.operations[4096] < 2.2 * row.operations[2048]
        assert script.exponent(row.state) == 0 or name == "multiscale"


def test_what_fails_is_a_row_that_says_so(script: ModuleType) -> None:
    options = argparse.Namespace(lengths=[64, 30_000], hidden=64, repeats=1, threads=1, gigabytes=0.2, seconds=300.0)
    row = script.measured("rwkv6", options)
    assert list(row.seconds) == [64] and row.failure.startswith("30000 tokens: ")
    assert "30000 tokens: " in script.table([row]) and "30000 tokens: " in script.line(row)
    options.seconds = 0.2
    late = script.measured("rwkv6", options)
    assert not late.seconds and late.failure == "64 tokens: over 0 seconds"
    assert "| rwkv6 | - |" in script.table([late])


def test_every_mixer_of_the_list_can_be_made(script: ModuleType) -> None:
    for name in script.MIXERS:
        assert script.spec_of(name, 64).build() is not None, name
