"""Windows whose middle is moved to the end, for the criterion `NextToken` (`objectives.fill_in_the_middle`).

The cut is made within a window, as in the paper's context-level form (Bavarian 2022, arXiv 2207.14255, section 3), so that
no mark is ever cut off; a row has up to four tokens more than its window, for which the model's context must have room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from almanac.core.batch import Tokens, pad_rows
from almanac.objectives.fill_in_the_middle import FillInTheMiddle, fill_in_tokens
from almanac.train.criteria.corrupted import Corruption, Place

ADDED = 4  # marks of a row


@dataclass(frozen=True, kw_only=True)
class FilledWindows(Corruption):
    """Each window is one text; every token but the first is a target, marks among them."""

    fill: FillInTheMiddle
    pad_id: int = 0

    def batch(self, rows: Tokens, places: Sequence[Place]) -> Tokens:
        made = [
            fill_in_tokens(row.tolist(), self.fill, place.dice())
            for row, place in zip(rows.tokens, places, strict=True)
        ]
        return pad_rows(made, [[True] * len(row) for row in made], pad_id=self.pad_id)
