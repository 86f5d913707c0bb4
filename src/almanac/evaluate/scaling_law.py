"""What every scaling law here is, and how one is fitted, resampled and asked for a forecast.

A law gives a loss to a size and an amount of data. As a form it also gives log L and its gradient for many sets of its
unknowns at once, which is all that the descent needs: a new law is a new file with these methods, fitted by the same
machinery (Hoffmann 2022, arXiv 2203.15556, approach 3: a robust loss on log L, from a grid of starts).

Intervals come from drawing runs, not steps of runs, with replacement (Efron 1979). A forecast's interval adds to that the
scatter of the runs about the law, widened for the unknowns that were fitted, since a new run has noise of its own.

Legend: n runs, s starts or resamples, k unknowns; theta [s, k].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from almanac.core.errors import FileFormatError, ShapeError, TrainingError
from almanac.core.value import Value
from almanac.evaluate.scaling_descent import Array, Descent, Objective, minimise
from almanac.evaluate.scaling_loss import FitLoss, Huber

FLOPS_PER_PARAMETER_TOKEN = 6.0
"""C = 6 N D (Kaplan 2020, arXiv 2001.08361, section 2.1)."""
LEVEL = 0.95


@dataclass(frozen=True)
class Points:
    """Finished runs: parameters, tokens trained on and final loss in nats a token, float64 [n] each.

    ``unique`` [n]: different tokens that a run's corpus had; None where none saw a token twice.

    Raises ShapeError for unequal lengths, or a number that is not positive and finite.
    """

    parameters: Array
    tokens: Array
    losses: Array
    unique: Array | None = None

    def __post_init__(self) -> None:
        columns = [self.parameters, self.tokens, self.losses]
        columns += [] if self.unique is None else [self.unique]
        if len({column.shape for column in columns}) > 1 or self.losses.ndim != 1:
            raise ShapeError(
                f"{', '.join(str(column.shape) for column in columns)} do not make runs",
                remedy="Give parameters, tokens and loss of every run, one of each per run.",
            )
        for name, column in zip(("parameters", "tokens", "loss", "unique tokens"), columns, strict=False):
            bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
            if len(bad):
                raise ShapeError(
                    f"Run {bad[0] + 1} has {name} {column[bad[0]]:g}, and they must be positive and finite",
                    remedy="Leave out runs that diverged; give the loss itself, not its logarithm.",
                )

    @classmethod
    def of(
        cls,
        parameters: Sequence[float],
        tokens: Sequence[float],
        losses: Sequence[float],
        unique: Sequence[float] | None = None,
    ) -> Points:
        """Points from plain sequences."""
        columns = [np.asarray(column, dtype=np.float64) for column in (parameters, tokens, losses)]
        return cls(*columns, None if unique is None else np.asarray(unique, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.losses)

    def pick(self, chosen: Sequence[int] | Array) -> Points:
        """The runs of those numbers."""
        index = np.asarray(chosen)
        unique = None if self.unique is None else self.unique[index]
        return Points(self.parameters[index], self.tokens[index], self.losses[index], unique)

    def fresh(self) -> Array:
        """Different tokens of each run, [n]."""
        return self.tokens if self.unique is None else np.minimum(self.unique, self.tokens)


@dataclass(frozen=True, kw_only=True)
class ScalingLaw(Value):
    """A law, and the form that it is one of. ``levels``: different sizes, and different amounts of data, that a fit needs."""

    names: ClassVar[tuple[str, ...]]
    levels: ClassVar[int] = 2

    @abstractmethod
    def loss(self, parameters: float, tokens: float, unique: float | None = None) -> float:
        """The loss of a model of ``parameters`` trained on ``tokens``, of which ``unique`` are different (None: all)."""

    @abstractmethod
    def values(self) -> tuple[float, ...]:
        """The numbers that ``names`` names."""

    @abstractmethod
    def theta(self) -> Array:
        """The unknowns as the descent sees them, [k]."""

    @abstractmethod
    def like(self, theta: Array) -> Self:
        """The law of this form with the unknowns ``theta`` [k]."""

    @abstractmethod
    def starts(self) -> Array:
        """Where a fit begins, [s, k]."""

    @abstractmethod
    def log_loss(self, theta: Array, points: Points) -> tuple[Array, list[Array]]:
        """log L of every run under every theta [s, n], and its derivatives by the k unknowns, [s, n] each."""

    def optimal(self, flops: float, unique: float | None = None) -> tuple[float, float]:
        """(parameters, tokens) of least loss among those with 6 N D = ``flops``, found by three rounds of a finer grid."""
        low, high, product = 0.0, float(np.log(flops / FLOPS_PER_PARAMETER_TOKEN)), flops / FLOPS_PER_PARAMETER_TOKEN
        best = low
        for _ in range(3):
            sizes = np.linspace(low, high, 2001)
            found = [self.loss(float(np.exp(size)), product / float(np.exp(size)), unique) for size in sizes]
            place = int(np.argmin(found))
            best = float(sizes[place])
            low, high = float(sizes[max(place - 2, 0)]), float(sizes[min(place + 2, len(sizes) - 1)])
        return float(np.exp(best)), product / float(np.exp(best))


def objective_of(form: ScalingLaw, points: Points, loss: FitLoss, weights: Array | None = None) -> Objective:
    """The fitting loss summed over the runs; ``weights`` [n] or [s, n] counts each run so often."""
    target = np.log(points.losses)

    def evaluate(theta: Array) -> tuple[Array, Array]:
        predicted, derivatives = form.log_loss(theta, points)
        value, slope = loss.of(predicted, target)
        if weights is not None:
            value, slope = value * weights, slope * weights
        return value.sum(axis=1), np.stack([(slope * part).sum(axis=1) for part in derivatives], axis=1)

    return evaluate


def require_enough(form: ScalingLaw, points: Points) -> None:
    """Raises ShapeError for fewer runs than unknowns and one more, or too few different sizes or amounts of data."""
    unknowns = len(form.names)
    sizes, amounts = len(np.unique(points.parameters)), len(np.unique(points.tokens))
    if len(points) <= unknowns:
        raise ShapeError(
            f"{len(points)} runs for a law with {unknowns} unknowns ({', '.join(form.names)})",
            remedy=f"Give at least {unknowns + 1} finished runs.",
        )
    if min(sizes, amounts) < form.levels:
        raise ShapeError(
            f"The runs have {sizes} different sizes and {amounts} different amounts of data, and the law's form needs "
            f"{form.levels} of each",
            remedy="Add runs of other sizes and lengths: what never varied cannot be told apart.",
        )


def fit_law(
    form: ScalingLaw, points: Points, *, loss: FitLoss | None = None, descent: Descent | None = None
) -> ScalingLaw:
    """The law of ``form`` with the least loss over its starts.

    Raises ShapeError as `require_enough`, TrainingError if no start ends anywhere finite.
    """
    require_enough(form, points)
    descent = descent or Descent()
    function = objective_of(form, points, loss or Huber())
    grid = form.starts()
    with np.errstate(over="ignore", invalid="ignore"):
        chosen = grid[np.argsort(function(grid)[0], kind="stable")[: descent.starts]]
        theta, found = minimise(function, chosen, descent)
    if not np.isfinite(found).any():
        raise TrainingError("No start led to a finite loss", remedy="Check the units: parameters, tokens, nats.")
    return form.like(theta[int(np.nanargmin(found))])


def bootstrap_law(
    law: ScalingLaw, points: Points, *, loss: FitLoss | None = None, resamples: int = 200, seed: int = 0
) -> Array:
    """theta [resamples, k] refitted to runs drawn with replacement, each from ``law``, the fit to all of them.

    A draw that could not decide the law (too few different runs, sizes or amounts) is drawn again.
    """
    rng = np.random.default_rng(seed)
    count, weights = len(points), []
    while len(weights) < resamples:
        drawn = rng.integers(0, count, count)
        if _decides(law, points.pick(np.unique(drawn))):
            weights.append(np.bincount(drawn, minlength=count))
    starts = np.tile(law.theta(), (resamples, 1))
    counted = np.stack(weights).astype(np.float64)
    return minimise(objective_of(law, points, loss or Huber(), counted), starts, Descent())[0]


def _decides(form: ScalingLaw, points: Points) -> bool:
    try:
        require_enough(form, points)
    except ShapeError:
        return False
    return True


def intervals_of(law: ScalingLaw, thetas: Array, *, level: float = LEVEL) -> dict[str, tuple[float, float]]:
    """The percentile interval of each of the law's numbers, from `bootstrap_law`."""
    values = np.array([law.like(theta).values() for theta in thetas])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(law.names)}


@dataclass(frozen=True)
class Forecast:
    """The loss that a law expects of one run, nats a token, and the interval in which 95 of 100 such runs should land."""

    loss: float
    low: float
    high: float

    def holds(self, found: float) -> bool:
        """Whether ``found`` is inside."""
        return self.low <= found <= self.high

    def to_dict(self) -> dict[str, float]:
        return {"loss": self.loss, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Fitted:
    """A law with the runs behind it and its refits to resampled runs, theta [s, k]."""

    law: ScalingLaw
    points: Points
    thetas: Array

    def residuals(self) -> Array:
        """log of found over expected loss, [n]."""
        return np.log(self.points.losses) - self.law.log_loss(self.law.theta()[None], self.points)[0][0]

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Of each of the law's numbers."""
        return intervals_of(self.law, self.thetas)

    def forecast(self, parameters: float, tokens: float, unique: float | None = None, *, seed: int = 0) -> Forecast:
        """What a run that was not fitted should come to."""
        new = Points.of([parameters], [tokens], [1.0], None if unique is None else [unique])
        expected = self.law.log_loss(self.thetas, new)[0][:, 0]
        left = self.residuals()
        widened = left * np.sqrt(len(left) / max(len(left) - len(self.law.names), 1))
        scattered = np.random.default_rng(seed).choice(widened, size=(50, len(expected))) + expected
        low, high = np.exp(np.quantile(scattered, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        centre = self.law.loss(parameters, tokens, unique)
        return Forecast(centre, float(min(low, centre)), float(max(high, centre)))

    def spans(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest size and amount of data among the runs: what lies far outside is extrapolated."""
        parameters, tokens = self.points.parameters, self.points.tokens
        return {
            "parameters": (float(parameters.min()), float(parameters.max())),
            "tokens": (float(tokens.min()), float(tokens.max())),
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the runs and the refits."""
        points = {name: column.tolist() for name, column in vars(self.points).items() if column is not None}
        return {
            "law": self.law.to_dict(), "intervals": {name: list(pair) for name, pair in self.intervals().items()},
            "points": points, "thetas": self.thetas.tolist(),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Fitted:
        """What ``to_dict`` wrote. Raises FileFormatError for anything else."""
        try:
            law, thetas = ScalingLaw.from_dict(data["law"]), np.asarray(data["thetas"], dtype=np.float64)
            points = Points.of(**data["points"])
            if thetas.ndim != 2 or thetas.shape[1] != len(law.names) or not np.isfinite(thetas).all():
                raise ValueError(f"refits of shape {thetas.shape}")
            law.log_loss(thetas, points)
        except (KeyError, TypeError, ValueError, ShapeError) as error:
            raise FileFormatError(
                f"This is no fitted law: {error}", remedy="Make it again with `almanac scaling fit`."
            ) from error
        return cls(law, points, thetas)


def fitted(form: ScalingLaw, points: Points, *, loss: FitLoss | None = None, resamples: int = 200) -> Fitted:
    """The law of ``form`` for ``points``, with its refits. Raises as `fit_law`."""
    law = fit_law(form, points, loss=loss)
    return Fitted(law, points, bootstrap_law(law, points, loss=loss, resamples=resamples))
