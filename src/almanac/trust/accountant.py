"""What differentially private training has spent: Rényi accounting of the Gaussian mechanism on a random sample.

Training with per-example gradients clipped to norm C, summed over a sample in which every record is with probability q,
and Gaussian noise of deviation σC added (Abadi 2016, arXiv 1607.00133) has at each step, for every order α > 1, the Rényi
divergence of Mironov 2019 (arXiv 1908.10530, section 3):

    (α - 1) RDP(α) = ln A(α),   A(α) = E over z ~ N(0, σ²) of ((1 - q) + q exp((2z - 1) / 2σ²))^α

For whole α this is a finite sum (their equation 6), Σ_k C(α, k) (1 - q)^(α - k) q^k exp((k² - k) / 2σ²); for others we
integrate it, where they sum a series. Divergences of steps add. They become (ε, δ) by one of two named conversions:

    classic   ε = RDP + ln(1/δ) / (α - 1)                                      Mironov 2017, arXiv 1702.07476, proposition 3
    improved  ε = RDP + ln((α - 1)/α) - (ln δ + ln α) / (α - 1)                Balle 2020, arXiv 1905.09982, theorem 21

Neighbouring data sets differ by one record more or less, and samples are Poisson: batches of a shuffled order are not,
and an ε for them is only what is commonly reported. Nothing here accounts for choosing settings on the private data.

Legend: σ ``noise`` (deviation of the noise over the clipping norm); q ``rate``; α ``order``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from almanac.core.errors import RequestError

Conversion = Literal["classic", "improved"]

ORDERS: tuple[float, ...] = (*(1 + step / 10 for step in range(1, 100)), *range(11, 65), 80, 96, 128, 192, 256, 512)
_REACH = 30  # deviations beyond which the integrand is below the smallest double
_POINTS = 64  # per deviation: the trapezoid of an analytic function that dies out has converged long before


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The guarantee (``epsilon``, ``delta``) and the order at which it was found."""

    epsilon: float
    delta: float
    order: float
    conversion: Conversion


def rdp(*, noise: float, rate: float, order: float) -> float:
    """The Rényi divergence of one step at ``order`` > 1, in nats.

    Raises:
        RequestError: noise not above 0, a rate outside 0 to 1, or an order not above 1.
    """
    if not (math.isfinite(noise) and noise > 0 and 0 <= rate <= 1 and order > 1):
        raise RequestError(
            f"Noise {noise}, rate {rate}, order {order}",
            remedy="Give noise above 0, a rate from 0 to 1 and an order above 1.",
        )
    if rate == 0:
        return 0.0
    if rate == 1:
        return order / (2 * noise * noise)
    moment = _summed(noise, rate, int(order)) if order == int(order) else _integrated(noise, rate, order)
    return max(0.0, moment / (order - 1))


def _summed(noise: float, rate: float, order: int) -> float:
    """ln A(α) for a whole order."""
    k = np.arange(order + 1, dtype=np.float64)
    choose = math.lgamma(order + 1) - np.array([math.lgamma(j + 1) + math.lgamma(order - j + 1) for j in k])
    terms = choose + k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) / (2 * noise * noise)
    return float(np.logaddexp.reduce(terms))


def _integrated(noise: float, rate: float, order: float) -> float:
    """ln A(α) for any order, by the trapezoidal rule."""
    step = noise / _POINTS
    z = np.arange(-_REACH * noise, order + _REACH * noise, step)
    ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * z - 1) / (2 * noise * noise))
    density = -z * z / (2 * noise * noise) - math.log(noise * math.sqrt(2 * math.pi))
    return float(np.logaddexp.reduce(density + order * ratio)) + math.log(step)


def converted(divergence: float, *, order: float, delta: float, conversion: Conversion) -> float:
    """The ε at ``delta`` of a mechanism with Rényi ``divergence`` at ``order``; may be below 0, which means 0."""
    if conversion == "classic":
        return divergence + math.log(1 / delta) / (order - 1)
    return divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def spent(
    *,
    noise: float,
    rate: float,
    steps: float,
    delta: float,
    conversion: Conversion = "improved",
    orders: Sequence[float] = ORDERS,
) -> Spent:
    """The smallest ε over ``orders`` after ``steps`` steps.

    Raises:
        RequestError: settings outside their range, no orders, or a conversion of another name.
    """
    if conversion not in ("classic", "improved"):
        raise RequestError(f"A conversion {conversion!r}", remedy="Choose 'classic' or 'improved'.")
    if steps < 0 or not 0 < delta < 1 or not orders:
        raise RequestError(
            f"{steps} steps, delta {delta}, {len(orders)} orders",
            remedy="Give 0 steps or more, a delta between 0 and 1 (well below one over the records), and an order.",
        )
    found = [
        (converted(steps * rdp(noise=noise, rate=rate, order=a), order=a, delta=delta, conversion=conversion), a)
        for a in orders
    ]
    epsilon, order = min(found)
    return Spent(epsilon=max(0.0, epsilon), delta=delta, order=order, conversion=conversion)


def noise_for(epsilon: float, *, rate: float, steps: float, delta: float, conversion: Conversion = "improved") -> float:
    """The smallest noise (to a thousandth) with which ``steps`` steps spend at most ``epsilon``.

    Raises:
        RequestError: an ``epsilon`` not above 0, or one that no noise below 10,000 keeps.
    """

    def kept(noise: float) -> bool:
        return spent(noise=noise, rate=rate, steps=steps, delta=delta, conversion=conversion).epsilon <= epsilon

    low, high = 0.1, 1.0
    while epsilon > 0 and high < 10_000 and not kept(high):
        low, high = high, 2 * high
    if not epsilon > 0 or high >= 10_000:
        raise RequestError(
            f"No noise keeps epsilon {epsilon}", remedy="Allow more, take fewer steps or a larger delta."
        )
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high


def gaussian_delta(epsilon: float, *, noise: float) -> float:
    """The exact δ of one Gaussian mechanism without sampling at ``epsilon`` (Balle and Wang 2018, arXiv 1805.06530).

    δ = Φ(1/2σ - εσ) - e^ε Φ(-1/2σ - εσ). n steps are one with noise σ/√n: what every accountant must stay above.
    """
    first, second = _normal(0.5 / noise - epsilon * noise), _normal(-0.5 / noise - epsilon * noise)
    return first - (math.exp(epsilon) * second if second > 0 else 0.0)


def gaussian_epsilon(delta: float, *, noise: float) -> float:
    """The exact ε of one Gaussian mechanism without sampling at ``delta``."""
    low, high = 0.0, 1.0
    while gaussian_delta(high, noise=noise) > delta:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, noise=noise) > delta else (low, middle)
    return high


def event_bound(probability: float, *, epsilon: float, delta: float, copies: int = 1) -> float:
    """The most that an event of ``probability`` without a record can have with ``copies`` of it in the training data.

    One record: e^ε p + δ, the definition; it bounds an attack's true positives by its false ones, and the chance of an
    exposure of e bits by p = 2^-e. k copies are a group: e^(kε) p + δ (e^(kε) - 1) / (e^ε - 1) (Dwork 2014, theorem 2.2).
    """
    if epsilon * copies > 700:
        return 1.0
    group = copies if epsilon == 0 else math.expm1(copies * epsilon) / math.expm1(epsilon)
    return min(1.0, math.exp(copies * epsilon) * probability + delta * group)


def _normal(x: float) -> float:
    """Φ(x)."""
    return 0.5 * math.erfc(-x / math.sqrt(2))
