"""How an index ranks: fixed when it is made, kept with it."""

from __future__ import annotations

import dataclasses
import math

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.retrieve.fuse import RANK_CONSTANT


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexSettings(Value):
    """``k1``, ``b``, ``boost``: see `almanac.retrieve.lexical`. A fused search takes the best ``candidates`` of each
    ranking and fuses them with ``rank_constant`` and the two weights: see `almanac.retrieve.fuse`.
    """

    k1: float = 1.2
    b: float = 0.5
    boost: int = 2
    candidates: int = 50
    rank_constant: float = RANK_CONSTANT
    lexical_weight: float = 1.0
    dense_weight: float = 1.0

    def __post_init__(self) -> None:
        fields = dataclasses.asdict(self)
        sound = all(isinstance(one, int | float) and math.isfinite(one) and one >= 0 for one in fields.values())
        if not sound or self.b > 1 or self.k1 == 0 or type(self.boost) is not int or type(self.candidates) is not int:
            raise RequestError(
                f"Index settings {fields}",
                remedy="Give finite numbers of 0 or more: k1 above 0, b at most 1, whole boost and candidates.",
            )
