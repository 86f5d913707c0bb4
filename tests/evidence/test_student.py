"""Student's distribution against scipy, and the bounds made of it against a hand-worked case."""

from __future__ import annotations

import math

import pytest

from almanac.evidence.claim import LEVEL, Always, AtLeast, AtMost, Effect, Verdict, Within, bounds
from almanac.evidence.student import distribution, quantile

EFFECT = Effect(metric="m", arm="a", over="b")


def test_quantiles_and_distribution_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 4, 5, 7, 10, 19, 40, 101, 500):
        for level in (0.5, 0.9, 0.95, 0.975, LEVEL, 0.999):
            assert quantile(level, freedom) == pytest.approx(stats.t.ppf(level, freedom), rel=1e-9, abs=1e-9)
        for t in (-30.0, -2.0, -0.1, 0.0, 0.7, 5.0, 100.0):
            assert distribution(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), rel=1e-9, abs=1e-12)


def test_bounds_of_a_known_case() -> None:
    found = bounds([1.0, 2.0, 3.0])  # deviation 1, t of 2 degrees at 98.75 % is 6.2053
    assert found.mean == 2.0 and found.count == 3
    assert found.high - 2.0 == pytest.approx(6.205347 / math.sqrt(3), rel=1e-6)
    assert 2.0 - found.low == pytest.approx(found.high - 2.0)
    assert bounds([5.0]).low == -math.inf and bounds([5.0]).high == math.inf


@pytest.mark.parametrize(
    ("values", "least", "most", "within"),
    [
        ([0.50, 0.52, 0.48, 0.51, 0.49], "REPRODUCED", "NOT REPRODUCED", "NOT REPRODUCED"),
        ([0.10, 0.12, 0.08, 0.11, 0.09], "NOT REPRODUCED", "REPRODUCED", "REPRODUCED"),
        ([0.1, 0.5, 0.3, 0.2, 0.4], "INCONCLUSIVE", "INCONCLUSIVE", "INCONCLUSIVE"),
        ([0.4], "INCONCLUSIVE", "INCONCLUSIVE", "INCONCLUSIVE"),
    ],
)
def test_verdicts_follow_the_interval(values: list[float], least: str, most: str, within: str) -> None:
    common = {"effect": EFFECT, "expected": 0.3, "says": "so"}
    assert AtLeast(**common, fail=0.3).judge(values) == least
    assert AtMost(**common, fail=0.3).judge(values) == most
    assert Within(**common, margin=0.2).judge(values) == within


def test_absence_of_significance_is_not_equality() -> None:
    """A mean of zero with a wide interval is not "within"."""
    claim = Within(effect=EFFECT, expected=0.0, says="equal", margin=0.1)
    assert claim.judge([-0.5, 0.5, -0.4, 0.4]) == Verdict.INCONCLUSIVE
    assert claim.judge([-0.01, 0.01, -0.02, 0.02]) == Verdict.REPRODUCED
    assert claim.clears([-0.5, 0.5])


def test_an_exact_claim_must_hold_in_every_seed() -> None:
    claim = Always(effect=EFFECT, expected=0.0, says="exact", most=1e-5)
    assert claim.judge([1e-6, 1e-6, 0.0]) == Verdict.REPRODUCED
    assert claim.judge([1e-6, 2e-5, 0.0]) == Verdict.NOT_REPRODUCED
    assert claim.judge([]) == Verdict.NOT_REPRODUCED
    assert claim.line == "always at most 1e-05"


def test_effects_are_paired() -> None:
    figures = {"a": {"m": [3.0, 8.0]}, "b": {"m": [1.0, 2.0]}}
    assert EFFECT.of(figures) == [2.0, 6.0]
    assert Effect(metric="m", arm="a", over="b", ratio=True).of(figures) == [3.0, 4.0]
    assert Effect(metric="m", arm="a").of(figures) == [3.0, 8.0]
    with pytest.raises(ValueError):
        EFFECT.of({"a": {"m": [1.0, 2.0]}, "b": {"m": [1.0]}})


def test_a_quick_run_asks_for_the_sign_only() -> None:
    common = {"expected": 0.3, "says": "so"}
    ratio = Effect(metric="m", arm="a", over="b", ratio=True)
    alone = Effect(metric="m", arm="a")
    assert AtLeast(effect=EFFECT, **common, fail=0.3).leans([0.1, 0.2])
    assert not AtLeast(effect=EFFECT, **common, fail=0.3).leans([-0.1, 0.0])
    assert AtMost(effect=EFFECT, **common, fail=-0.3).leans([-0.1, -0.2])
    assert not AtMost(effect=EFFECT, **common, fail=0.3).leans([0.4, 0.5]), "a bound on a loss keeps its line"
    assert AtMost(effect=ratio, **common, fail=0.75).leans([0.9]) and not AtMost(
        effect=ratio, **common, fail=0.75
    ).leans([1.1])
    assert not AtLeast(effect=alone, **common, fail=0.3).leans([0.2]), "what is compared with nothing has no sign"
