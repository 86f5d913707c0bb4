"""Windows spoilt by BART's noises, for `TextToText`: the whole window is to be written (`objectives.denoising`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from almanac.core.batch import Tokens
from almanac.objectives.denoising import Noise, spoilt
from almanac.train.criteria.corrupted import Corruption, Place
from almanac.train.criteria.text_to_text import SourceAndTarget, source_and_target


@dataclass(frozen=True, kw_only=True)
class NoisyWindows(Corruption):
    """``noises`` one after the other; see `objectives.denoising.bart_noises` for BART's own.

    A noise may make a text longer (an infilled span of length 0 is a mask more); what goes beyond the window is cut, so that
    an encoder for windows holds it.
    """

    noises: tuple[Noise, ...]
    start_id: int
    pad_id: int

    def batch(self, rows: Tokens, places: Sequence[Place]) -> SourceAndTarget:
        time = rows.tokens.shape[1]
        sources = [
            spoilt(row, self.noises, place.dice())[:time] for row, place in zip(rows.tokens, places, strict=True)
        ]
        return source_and_target(sources, list(rows.tokens), start_id=self.start_id, pad_id=self.pad_id)
