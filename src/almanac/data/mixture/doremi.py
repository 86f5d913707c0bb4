"""Weights of domains found by a small model: more of what it could still learn.

Xie et al. 2023, "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining" (arXiv 2305.10429, algorithm 1),
the group distributionally robust optimisation of Sagawa et al. 2019 (arXiv 1911.08731) on excess losses. A proxy model is
trained on the mixture; at step t, with its loss and that of a reference trained before, nats a token of domain i:

    excess_i = max(proxy_i - reference_i, 0),   alpha'_i = alpha_i exp(eta excess_i),
    alpha = (1 - c) alpha' / sum alpha' + c / k,

and the result is the mean of alpha over the steps. A domain of noise has no excess, however high its loss, and gets no more.

Deviation: the excess is taken of the domain's mean loss where the paper clips token by token; the caller decides what
it measures.

Legend: k domains, eta step size, c smoothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from almanac.core.errors import RequestError

ETA, SMOOTHING = 1.0, 1e-3  # of the paper


@dataclass(frozen=True)
class Reweighting:
    """The weights to train with, float64 [k] of sum 1, and those of every step, float64 [steps, k]."""

    weights: np.ndarray
    path: np.ndarray


def update(weights: np.ndarray, excess: np.ndarray, *, eta: float = ETA, smoothing: float = SMOOTHING) -> np.ndarray:
    """The weights [k] of the next step, given the excess losses [k] of this one."""
    exponents = eta * np.maximum(excess, 0.0)
    raised = weights * np.exp(exponents - exponents.max())  # the largest is divided out again below
    return (1 - smoothing) * raised / raised.sum() + smoothing / len(weights)


def reweight(
    losses: Callable[[np.ndarray], Sequence[float]],
    reference: Sequence[float],
    *,
    steps: int,
    initial: Sequence[float] | None = None,
    eta: float = ETA,
    smoothing: float = SMOOTHING,
) -> Reweighting:
    """Runs the proxy.

    Args:
        losses: trains the proxy one step with these weights [k] and returns its losses by domain, nats a token.
        reference: the reference model's losses by domain.
        initial: weights of the first step; by default equal.

    Raises:
        RequestError: no domain, no step, or a loss that is not finite.
    """
    domains = len(reference)
    weights = np.full(domains, 1 / max(1, domains)) if initial is None else np.asarray(initial, float) / sum(initial)
    if not domains or len(weights) != domains or steps < 1:
        raise RequestError(
            f"{domains} domains, {len(weights)} weights, {steps} steps", remedy="Give one of each at least."
        )
    path = []
    for _ in range(steps):
        measured = np.asarray(losses(weights), float)
        if measured.shape != (domains,) or not np.isfinite(measured).all():
            raise RequestError(f"Losses {measured} of {domains} domains", remedy="Give one finite loss for each.")
        weights = update(weights, measured - np.asarray(reference), eta=eta, smoothing=smoothing)
        path.append(weights)
    return Reweighting(np.mean(path, axis=0), np.array(path))
