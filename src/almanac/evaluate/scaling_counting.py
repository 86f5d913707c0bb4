"""Why Kaplan and Chinchilla split a budget differently: one counts embeddings, the other does not, and small models are
mostly embeddings.

Pearce 2024, arXiv 2406.12907: with x parameters beside the embeddings a model has N = x + omega x^(1/3) in all (a model's
width grows as the cube root of x; omega = 47,491 over Chinchilla's models). If Chinchilla's law is true of N, the best x
for a budget of C = 6 x D, counted without embeddings, grows locally as C^g with g = beta / (beta + alpha / 3) for very
small models and beta / (alpha + beta) for large ones; over Kaplan's sizes it looks like a power near his 0.73.
"""

from __future__ import annotations

import numpy as np

from almanac.core.errors import ShapeError
from almanac.evaluate.scaling import Law
from almanac.evaluate.scaling_descent import Array
from almanac.evaluate.scaling_law import FLOPS_PER_PARAMETER_TOKEN

OMEGA = 47_491.0  # Chinchilla's vocabulary of 32,000 and its ratio of width to depth (Pearce 2024, section 3)
KAPLAN_SIZES = (768.0, 1.5e9)  # parameters beside embeddings that Kaplan's models had (Kaplan 2020, section 2)


def total_parameters(non_embedding: Array | float, omega: float = OMEGA) -> Array:
    """All parameters of models with ``non_embedding`` beside their embeddings."""
    inside = np.asarray(non_embedding, dtype=np.float64)
    return inside + omega * np.cbrt(inside)


def non_embedding_parameters(total: Array | float, omega: float = OMEGA) -> Array:
    """The inverse of `total_parameters`: the real root of y^3 + omega y = N, cubed. Raises ShapeError below 0."""
    whole = np.asarray(total, dtype=np.float64)
    if (whole < 0).any():
        raise ShapeError("A model of fewer than no parameters", remedy="Give the number of all parameters.")
    if omega == 0:
        return whole
    # Cardano in hyperbolic form: y = 2 sqrt(omega / 3) sinh(asinh(1.5 N sqrt(3 / omega) / omega) / 3)
    scaled = 1.5 * whole * np.sqrt(3 / omega) / omega
    return (2 * np.sqrt(omega / 3) * np.sinh(np.arcsinh(scaled) / 3)) ** 3


def budget_of(law: Law, non_embedding: Array | float, omega: float = OMEGA) -> Array:
    """FLOPs without embeddings, 6 x D, for which ``non_embedding`` is the best size if ``law`` holds of all parameters.

    From d/dx of L(x + omega x^(1/3), C / 6x) = 0, solved for C.
    """
    inside = np.asarray(non_embedding, dtype=np.float64)
    total = total_parameters(inside, omega)
    slope = 1 + omega / 3 * inside ** (-2 / 3)
    by_data = law.beta * law.B * inside ** (law.beta - 1)
    by_size = law.alpha * law.A * total ** (-law.alpha - 1) * slope
    return FLOPS_PER_PARAMETER_TOKEN * (by_data / by_size) ** (1 / law.beta)


def local_exponent(law: Law, non_embedding: Array | float, omega: float = OMEGA) -> Array:
    """g: how the best size without embeddings grows with the budget at that size, as a power."""
    root = np.asarray(non_embedding, dtype=np.float64) ** (2 / 3)
    of_slope = (root + omega / 9) / (root + omega / 3)
    of_total = (root + omega / 3) / (root + omega)
    return 1 / (1 - of_slope / law.beta + (law.alpha + 1) / law.beta * of_total)


def apparent_exponent(law: Law, sizes: tuple[float, float] = KAPLAN_SIZES, omega: float = OMEGA) -> float:
    """The one power that a study of models from ``sizes[0]`` to ``sizes[1]`` would report, by least squares on its frontier.

    Raises ShapeError for a range without extent.
    """
    low, high = sizes
    if not 0 < low < high:
        raise ShapeError(f"Sizes from {low:g} to {high:g}", remedy="Give the smallest and the largest size.")
    ends = np.log(budget_of(law, np.array([low, high]), omega))
    budgets = np.linspace(ends[0], ends[1], 200)
    inside = np.geomspace(low, high, 4000)
    best = np.interp(budgets, np.log(budget_of(law, inside, omega)), np.log(inside))
    return float(np.polyfit(budgets, best, 1)[0])
