"""Student's t distribution with whole degrees of freedom, from its finite closed form; no numerical library needed.

For whole ν the distribution function is a finite sum in θ = arctan(t / √ν) (Abramowitz and Stegun 1964, 26.7.3-4).
"""

from __future__ import annotations

import functools
import math


def distribution(t: float, freedom: int) -> float:
    """P(T <= t) for ``freedom`` >= 1 degrees of freedom."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    if freedom == 1:
        central = 2 * theta / math.pi
    elif freedom % 2:
        term, total = cosine, cosine
        for step in range(3, freedom - 1, 2):
            term *= cosine * cosine * (step - 1) / step
            total += term
        central = 2 / math.pi * (theta + sine * total)
    else:
        term, total = 1.0, 1.0
        for step in range(2, freedom - 1, 2):
            term *= cosine * cosine * (step - 1) / step
            total += term
        central = sine * total
    return (1 + central) / 2


@functools.cache
def quantile(level: float, freedom: int) -> float:
    """The t with P(T <= t) = ``level``, for a level in [0.5, 1)."""
    low, high = 0.0, 1.0
    while distribution(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if distribution(middle, freedom) < level else (low, middle)
    return (low + high) / 2
