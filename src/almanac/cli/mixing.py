"""How a mixture of sources is said, to `almanac data` and to `almanac pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from almanac.core.errors import RequestError

if TYPE_CHECKING:
    from almanac.data.mixture.weights import Mixture

Texts = Annotated[tuple[str, ...], Parameter(show_default=False)]
Share = Annotated[float, Parameter(validator=validators.Number(gte=0, lte=1))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How much of each source.

    Args:
        weight: NAME=NUMBER for every source.
        alpha: Instead: shares in proportion to size^alpha; 1 changes nothing, 0 makes them equal.
    """

    weight: Texts = ()
    alpha: Share = 1.0

    def value(self) -> Mixture | None:
        """The mixture that is asked for; None for the sources as they are. Raises RequestError for no name and number."""
        from almanac.data.mixture.weights import Mixture

        if not self.weight and self.alpha == 1:
            return None
        pairs = [item.rpartition("=") for item in self.weight]
        try:
            weights = tuple((name, float(number)) for name, _, number in pairs)
        except ValueError as error:
            raise RequestError(f"--weight {' '.join(self.weight)}", remedy="Write it as books=2.") from error
        return Mixture(weights=weights, alpha=self.alpha)
