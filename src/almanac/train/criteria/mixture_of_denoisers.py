"""Windows under one of several denoisers each, for `TextToText`: UL2's objective (`objectives.mixture_of_denoisers`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from almanac.core.batch import Tokens
from almanac.objectives.mixture_of_denoisers import MODES, UL2, Denoiser, denoise_example
from almanac.train.criteria.corrupted import Corruption, Place
from almanac.train.criteria.text_to_text import SourceAndTarget, source_and_target


@dataclass(frozen=True, kw_only=True)
class DenoiserWindows(Corruption):
    """``marks`` as of `SpanWindows`; ``mode_ids``: the tokens that name the modes R, S and X, in this order."""

    marks: tuple[int, ...]
    mode_ids: tuple[int, int, int]
    start_id: int
    pad_id: int
    denoisers: tuple[Denoiser, ...] = UL2

    def batch(self, rows: Tokens, places: Sequence[Place]) -> SourceAndTarget:
        modes = dict(zip(MODES, self.mode_ids, strict=True))
        made = [
            denoise_example(row, self.denoisers, place.dice(), marks=self.marks, mode_ids=modes)
            for row, place in zip(rows.tokens, places, strict=True)
        ]
        sources, targets = zip(*made, strict=True)
        return source_and_target(sources, targets, start_id=self.start_id, pad_id=self.pad_id)
