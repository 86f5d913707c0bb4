"""Windows with spans missing, for `TextToText`: T5's objective (`objectives.span_corruption`).

A window is one text, as T5's were cut from concatenated documents (Raffel 2019, arXiv 1910.10683, section 3.1.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from almanac.core.batch import Tokens
from almanac.objectives.span_corruption import SpanCorruption, corrupt_spans, noise_mask
from almanac.train.criteria.corrupted import Corruption, Place
from almanac.train.criteria.text_to_text import SourceAndTarget, source_and_target


@dataclass(frozen=True, kw_only=True)
class SpanWindows(Corruption):
    """``marks``: ids that stand for missing spans, in order, one more than there are spans in a window."""

    marks: tuple[int, ...]
    start_id: int
    pad_id: int
    spans: SpanCorruption = SpanCorruption()

    def batch(self, rows: Tokens, places: Sequence[Place]) -> SourceAndTarget:
        made = [
            corrupt_spans(row, noise_mask(len(row), self.spans, place.dice()), marks=self.marks)
            for row, place in zip(rows.tokens, places, strict=True)
        ]
        sources, targets = zip(*made, strict=True)
        return source_and_target(sources, targets, start_id=self.start_id, pad_id=self.pad_id)
