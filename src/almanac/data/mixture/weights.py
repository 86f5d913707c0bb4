"""How much of each source a model sees: declared weights, or the sizes of the sources raised to a power.

Conneau et al. 2019, "Unsupervised Cross-lingual Representation Learning at Scale" (arXiv 1911.02116, section 3.1): a source
of share p is seen with a share in proportion to p^alpha, alpha = 0.3; alpha = 1 leaves shares as they are, 0 makes them
equal. As a temperature, alpha = 1 / T.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.data.fingerprint import number_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Value):
    """``weights``, pairs of a source's name and its weight, not necessarily of sum 1; without them ``alpha`` decides."""

    weights: tuple[tuple[str, float], ...] = ()
    alpha: float = 1.0

    def __post_init__(self) -> None:
        values = [weight for _, weight in self.weights]
        if any(not math.isfinite(value) or value < 0 for value in (*values, self.alpha)) or (
            values and not sum(values)
        ):
            raise RequestError(
                f"A mixture of {dict(self.weights)} with alpha {self.alpha}", remedy="Weights are 0 or more, not all 0."
            )

    def shares(self, sizes: Mapping[str, float]) -> dict[str, float]:
        """The share of each source that has anything, of sum 1, in the order of ``sizes``.

        Raises:
            RequestError: a source without a weight, or a weight for no source.
        """
        present = {name: size for name, size in sizes.items() if size > 0}
        declared = dict(self.weights)
        if declared and set(declared) != set(sizes):
            wrong = sorted(set(declared) ^ set(sizes))
            raise RequestError(
                f"Weights and sources do not fit: {', '.join(wrong[:5])}",
                remedy=f"Give a weight for each of {', '.join(sizes)}.",
            )
        whole = sum(present.values())
        raw = {name: declared[name] if declared else (size / whole) ** self.alpha for name, size in present.items()}
        total = sum(raw.values())
        if present and not total:
            raise RequestError("Every source with text in it has the weight 0", remedy="Give one of them more.")
        return {name: value / total for name, value in raw.items()}


def keep_rates(sizes: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, float]:
    """Of each source the part to keep so that shares come out, nothing repeated and as much kept as can be; in [0, 1]."""
    wanted = {name: shares[name] / sizes[name] for name in shares}
    most = max(wanted.values(), default=1.0)
    return {name: value / most for name, value in wanted.items()}


def is_kept(identity: str, rate: float) -> bool:
    """Whether a document is among the part ``rate``, by its id alone: the same in every run, more for a larger rate."""
    return number_of(f"mixture {identity}") < rate * 2.0**64
