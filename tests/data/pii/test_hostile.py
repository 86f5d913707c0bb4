"""A megabyte made to make patterns backtrack takes seconds, not hours."""

from __future__ import annotations

import time

import pytest

from almanac.data.pii.find import find

MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "seed",
    ["a", "@a", "1", "12 ", "1-", "Aa ", "(0", "+1 (", "a(at)b.", "DE89 3704 ", "abcd:", "1 rue de la ", "née le 1"],
)
def test_time_is_linear(seed: str) -> None:
    """An eighth and a half of the text: four times the work may not take sixteen times the time."""
    text = seed * (MEGABYTE // 8 // len(seed))
    started = time.process_time()
    find(text)
    short = time.process_time() - started
    assert short < 8
    if short > 0.5:
        started = time.process_time()
        find(text * 4)
        assert time.process_time() - started < 8 * short


def test_a_whole_megabyte_of_each_kind_of_digit_run() -> None:
    parts = ["1" * 250_000, "4111-" * 50_000, "a@" * 125_000, "Mr A" * 60_000]
    started = time.process_time()
    find("\n".join(parts))
    assert time.process_time() - started < 20
