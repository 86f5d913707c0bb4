"""One find of personal data, and the choice among finds that overlap."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable

# What stands behind a find. A checksum leaves no doubt, a shape little, words beside it only likelihood.
CHECKED, SHAPED, LIKELY, CONTEXT, WEAK = 0.99, 0.9, 0.75, 0.6, 0.3


@dataclasses.dataclass(frozen=True)
class PersonalData:
    """``text[start:end]`` is personal data of ``kind`` (``email``, ``card``, ...), with a confidence in [0, 1]."""

    kind: str
    start: int
    end: int
    confidence: float


def without_overlap(found: Iterable[PersonalData]) -> tuple[PersonalData, ...]:
    """The finds in the order of the text; where two overlap the surer stays, then the longer, then the earlier."""
    starts: list[int] = []
    chosen: list[PersonalData] = []
    for item in sorted(found, key=lambda item: (-item.confidence, item.start - item.end, item.start, item.kind)):
        place = bisect.bisect_left(starts, item.start)
        before = place > 0 and chosen[place - 1].end > item.start
        if before or (place < len(chosen) and chosen[place].start < item.end):
            continue
        starts.insert(place, item.start)
        chosen.insert(place, item)
    return tuple(chosen)
