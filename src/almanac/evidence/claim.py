"""Claims: an effect measured once per seed, and the line that it must clear, with a verdict from its interval.

``AtLeast`` and ``AtMost`` ask a one-sided Student interval of the paired effects to lie beyond the line; ``Within`` is the
two one-sided tests of equivalence (Schuirmann 1987): absence of significance is never read as equality. ``Always`` is for
exact statements: every seed must satisfy it, and no interval is drawn.

A result is looked at twice at most (a doubled run), so each look is held to 98.75 % instead of 97.5 %: doubling must not
buy a pass (Bonferroni).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from almanac.core.value import Value
from almanac.evidence.student import quantile

LEVEL = 0.9875  # one-sided, at each of two looks


class Verdict(StrEnum):
    """What a run says of a claim. All four are shown."""

    REPRODUCED = "REPRODUCED"
    NOT_REPRODUCED = "NOT REPRODUCED"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"


@dataclass(frozen=True)
class Bounds:
    """A mean with its one-sided bounds at `LEVEL`, both finite only from two values on."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} to {self.high:.3g}, n={self.count})"


def bounds(values: Sequence[float]) -> Bounds:
    """Student's one-sided bounds of the mean, both sides; values must be finite and at least one."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Bounds(mean, -math.inf, math.inf, count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = quantile(LEVEL, count - 1) * deviation / math.sqrt(count)
    return Bounds(mean, mean - reach, mean + reach, count)


Figures = Mapping[str, Mapping[str, Sequence[float]]]
"""arm -> metric -> one value per unit (seed or item), in the same order for every arm."""


@dataclass(frozen=True, kw_only=True)
class Effect(Value):
    """A metric of an arm, or its difference to (or quotient by) that of another arm, unit by unit."""

    metric: str
    arm: str
    over: str = ""
    ratio: bool = False

    def of(self, figures: Figures) -> list[float]:
        """One value per unit."""
        own = figures[self.arm][self.metric]
        if not self.over:
            return list(own)
        pairs = zip(own, figures[self.over][self.metric], strict=True)
        return [a / b if self.ratio else a - b for a, b in pairs]

    def __str__(self) -> str:
        sign = "÷" if self.ratio else "−"
        return f"{self.metric}: {self.arm}" + (f" {sign} {self.over}" if self.over else "")


@dataclass(frozen=True, kw_only=True)
class Claim(Value):
    """An effect and its line. ``expected`` is what we think will come out, said before the run."""

    effect: Effect
    expected: float
    says: str  # the claim in a few words

    @property
    @abstractmethod
    def line(self) -> str:
        """The line in words, ``at least 0.3``."""

    @abstractmethod
    def judge(self, values: Sequence[float]) -> Verdict:
        """The verdict of one look."""

    @abstractmethod
    def clears(self, values: Sequence[float]) -> bool:
        """Whether the mean (or, of an exact claim, every value) is on the right side of the line."""

    def leans(self, values: Sequence[float]) -> bool:
        """Whether the effect has the right sign, however small: all that a quick run can say.

        A difference whose line is not at zero, or a quotient whose line is not at one, need only lie on the line's side of
        it; every other claim must clear its line.
        """
        return self.clears(values)


def _neutral(effect: Effect) -> float | None:
    """The value of an effect that is none, or None where there is no such value."""
    return (1.0 if effect.ratio else 0.0) if effect.over else None


def _side(good: bool, bad: bool) -> Verdict:
    return Verdict.REPRODUCED if good else Verdict.NOT_REPRODUCED if bad else Verdict.INCONCLUSIVE


@dataclass(frozen=True, kw_only=True)
class AtLeast(Claim):
    """The effect is at least ``fail``: reproduced if the lower bound is, not reproduced if even the upper is below."""

    fail: float

    @property
    def line(self) -> str:
        return f"at least {self.fail:g}"

    def judge(self, values: Sequence[float]) -> Verdict:
        found = bounds(values)
        return _side(found.low >= self.fail, found.high < self.fail)

    def clears(self, values: Sequence[float]) -> bool:
        return bounds(values).mean >= self.fail

    def leans(self, values: Sequence[float]) -> bool:
        neutral = _neutral(self.effect)
        return bounds(values).mean > neutral if neutral is not None and self.fail > neutral else self.clears(values)


@dataclass(frozen=True, kw_only=True)
class AtMost(Claim):
    """The effect is at most ``fail``."""

    fail: float

    @property
    def line(self) -> str:
        return f"at most {self.fail:g}"

    def judge(self, values: Sequence[float]) -> Verdict:
        found = bounds(values)
        return _side(found.high <= self.fail, found.low > self.fail)

    def clears(self, values: Sequence[float]) -> bool:
        return bounds(values).mean <= self.fail

    def leans(self, values: Sequence[float]) -> bool:
        neutral = _neutral(self.effect)
        return bounds(values).mean < neutral if neutral is not None and self.fail < neutral else self.clears(values)


@dataclass(frozen=True, kw_only=True)
class Within(Claim):
    """The effect lies within ``margin`` of ``centre``: both one-sided tests must pass."""

    margin: float
    centre: float = 0.0

    @property
    def line(self) -> str:
        return f"within {self.margin:g} of {self.centre:g}"

    def judge(self, values: Sequence[float]) -> Verdict:
        found = bounds([value - self.centre for value in values])
        inside = -self.margin <= found.low and found.high <= self.margin
        return _side(inside, found.low > self.margin or found.high < -self.margin)

    def clears(self, values: Sequence[float]) -> bool:
        return abs(bounds(values).mean - self.centre) <= self.margin


@dataclass(frozen=True, kw_only=True)
class Always(Claim):
    """Exact: in every seed the effect lies between ``least`` and ``most`` (either may be left open)."""

    least: float = -math.inf
    most: float = math.inf

    @property
    def line(self) -> str:
        parts = [f"at least {self.least:g}"] * (self.least > -math.inf) + [f"at most {self.most:g}"] * (
            self.most < math.inf
        )
        return "always " + " and ".join(parts)

    def judge(self, values: Sequence[float]) -> Verdict:
        return Verdict.REPRODUCED if self.clears(values) else Verdict.NOT_REPRODUCED

    def clears(self, values: Sequence[float]) -> bool:
        return bool(values) and all(self.least <= value <= self.most for value in values)
