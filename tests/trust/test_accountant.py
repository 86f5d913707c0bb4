"""The privacy accountant against published digits, closed forms and numerical integration by another road."""

from __future__ import annotations

import itertools
import math

import pytest
from scipy import integrate, stats

from almanac.core.errors import RequestError
from almanac.evidence.trust import accountant as card
from almanac.trust.accountant import (
    converted,
    event_bound,
    gaussian_delta,
    gaussian_epsilon,
    noise_for,
    rdp,
    spent,
)

DELTA = 1e-5


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "classic", "improved"),
    [(4.0, 0.01, 10_000, 1.259, 1.035), (1.12, 256 / 60_000, 14_062, 2.922, 2.519)],
)
def test_published_digits(noise: float, rate: float, steps: int, classic: float, improved: float) -> None:
    for conversion, expected in (("classic", classic), ("improved", improved)):
        found = spent(noise=noise, rate=rate, steps=steps, delta=DELTA, conversion=conversion)  # pyright: ignore[reportArgumentType]
        assert found.epsilon == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("order", [1.1, 1.5, 2, 3.7, 8])
@pytest.mark.parametrize(("noise", "rate"), [(0.8, 0.02), (2.0, 0.5), (5.0, 0.001)])
def test_a_step_is_the_divergence_that_its_definition_says(noise: float, rate: float, order: float) -> None:
    def integrand(z: float) -> float:
        with_record = (1 - rate) * stats.norm.pdf(z, 0, noise) + rate * stats.norm.pdf(z, 1, noise)
        return float((with_record / stats.norm.pdf(z, 0, noise)) ** order * stats.norm.pdf(z, 0, noise))

    edges = [-12 * noise, 0, order / 2, order, order + 10 * noise]
    parts = [integrate.quad(integrand, a, b, limit=200)[0] for a, b in itertools.pairwise(edges)]
    expected = math.log(math.fsum(parts)) / (order - 1)
    assert rdp(noise=noise, rate=rate, order=order) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_without_sampling_it_is_the_gaussian_mechanism() -> None:
    assert rdp(noise=3.0, rate=1.0, order=7) == 7 / 18
    assert rdp(noise=3.0, rate=0.0, order=7) == 0
    found = spent(noise=1.0, rate=1.0, steps=1, delta=DELTA)
    assert gaussian_epsilon(DELTA, noise=1.0) == pytest.approx(4.377, abs=1e-3)
    assert gaussian_epsilon(DELTA, noise=1.0) < found.epsilon == pytest.approx(4.73, abs=0.01)
    assert gaussian_delta(gaussian_epsilon(DELTA, noise=2.0), noise=2.0) == pytest.approx(DELTA, rel=1e-9)


def test_the_improved_conversion_is_never_above_the_classic_one() -> None:
    for order in (1.5, 3, 20):
        values = [converted(0.3, order=order, delta=DELTA, conversion=c) for c in ("improved", "classic")]
        assert values[0] < values[1]


def test_more_noise_less_data_and_fewer_steps_spend_less() -> None:
    def epsilon(noise: float = 2.0, rate: float = 0.02, steps: int = 500) -> float:
        return spent(noise=noise, rate=rate, steps=steps, delta=DELTA).epsilon

    assert epsilon(noise=3.0) < epsilon() and epsilon(rate=0.01) < epsilon() and epsilon(steps=100) < epsilon()
    assert spent(noise=2.0, rate=0.02, steps=0, delta=DELTA, orders=(2.0, 1e6)).epsilon == pytest.approx(0, abs=1e-4)


def test_noise_for_keeps_a_budget_and_no_more() -> None:
    noise = noise_for(2.0, rate=0.01, steps=2_000, delta=DELTA)
    assert spent(noise=noise, rate=0.01, steps=2_000, delta=DELTA).epsilon <= 2.0
    assert spent(noise=noise * 0.997, rate=0.01, steps=2_000, delta=DELTA).epsilon > 2.0


def test_an_event_is_bounded_as_the_definition_says() -> None:
    assert event_bound(0.01, epsilon=1.0, delta=DELTA) == pytest.approx(0.01 * math.e + DELTA)
    twice = event_bound(event_bound(0.001, epsilon=0.5, delta=DELTA), epsilon=0.5, delta=DELTA)
    assert event_bound(0.001, epsilon=0.5, delta=DELTA, copies=2) == pytest.approx(twice)
    assert event_bound(0.5, epsilon=30, delta=0, copies=40) == 1.0
    assert event_bound(0.2, epsilon=0, delta=0.01, copies=3) == pytest.approx(0.23)


def test_no_threshold_attack_on_a_gaussian_beats_its_bound() -> None:
    noise, epsilon = 1.5, 1.0
    delta = gaussian_delta(epsilon, noise=noise)
    for threshold in (-2.0, 0.0, 0.7, 2.0, 5.0):
        false = float(stats.norm.sf(threshold, 0, noise))
        assert stats.norm.sf(threshold, 1, noise) <= event_bound(false, epsilon=epsilon, delta=delta) + 1e-12


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": 0},
        {"noise": math.inf},
        {"rate": 1.5},
        {"rate": -0.1},
        {"steps": -1},
        {"delta": 0},
        {"orders": ()},
        {"orders": (1.0,)},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        spent(**({"noise": 1.0, "rate": 0.1, "steps": 10, "delta": DELTA} | settings))  # pyright: ignore[reportArgumentType]


def test_a_budget_that_no_noise_keeps_and_an_unknown_conversion_are_refused() -> None:
    with pytest.raises(RequestError):
        noise_for(0.0, rate=0.1, steps=10, delta=DELTA)
    with pytest.raises(RequestError):
        spent(noise=1.0, rate=0.1, steps=1, delta=DELTA, conversion="best")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mutant", [mutant.name for mutant in card.CARD.mutants])
def test_the_oracle_sees_every_mutant(mutant: str) -> None:
    card.check(None)
    with pytest.raises(AssertionError):
        card.check(mutant)
