"""What is done to a corpus, as one value: the steps that judge a document by itself, then those that compare documents."""

from __future__ import annotations

import dataclasses

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.data.dedup.near import NearDuplicates
from almanac.data.dedup.substring import RepeatedSubstrings
from almanac.data.filters.c4 import C4
from almanac.data.filters.fineweb import FineWeb
from almanac.data.filters.gopher import GopherQuality
from almanac.data.filters.gopher_repetition import GopherRepetition
from almanac.data.filters.readable import Readable
from almanac.data.filters.step import Step
from almanac.data.mixture.weights import Mixture

QUALITY: dict[str, tuple[Step, ...]] = {
    "gopher": (GopherRepetition(), GopherQuality(stop_words=0)),
    "gopher-english": (GopherRepetition(), GopherQuality()),
    "c4": (C4(),),
    "fineweb": (FineWeb(),),
}
"""Rules by the name of who published them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Value):
    """A recipe.

    - ``steps``: in this order, each on one document; `Readable` is always a good first one
    - ``exact``: leave exact copies out; ``near``: near copies, None: leave them; ``substring``: cut repeated substrings
    - ``mixture``: leave documents out until sources have these shares of the bytes
    - ``least_left``: bytes that must be left of a document that something was cut out of
    """

    steps: tuple[Step, ...] = (Readable(), *QUALITY["gopher"])
    exact: bool = True
    near: NearDuplicates | None = NearDuplicates()
    substring: RepeatedSubstrings | None = None
    mixture: Mixture | None = None
    least_left: int = 100

    def __post_init__(self) -> None:
        for step in self.steps:
            if not isinstance(step, Step):
                raise RequestError(f"{step!r} is no step of a recipe", remedy="Give values of `data.filters`.")
        if self.substring is not None and self.substring.min_bytes < 8:
            raise RequestError(
                f"Repeated substrings from {self.substring.min_bytes} bytes on", remedy="Give 8 at least; 200 is usual."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the steps, as reports call them; a second one of a kind gets a number."""
        found: list[str] = []
        for step in self.steps:
            name = step.kind().rpartition(".")[2]
            same = sum(other.rstrip("0123456789 ") == name for other in found)
            found.append(f"{name} {same + 1}" if same else name)
        return tuple(found)
