"""The state of recurrent mixers: a few tensors of fixed size per row, however many tokens the row has seen.

Nothing is ever overwritten: a step makes new tensors, so forks, selections and joins may share or copy as they like.
What was before the last token is gone, so a row can be trimmed to nothing or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.core.state import State
from almanac.nn.rows import require_shorter


class RecurrentState(State):
    """``parts``: tensors [rows, ...], zero for a row that has seen nothing; ``lengths``: tokens seen by each row."""

    def __init__(self, parts: Sequence[Tensor], lengths: Sequence[int]) -> None:
        self.parts = tuple(parts)
        self._lengths = list(lengths)

    @classmethod
    def empty(cls, rows: int, *shapes: tuple[int, ...]) -> RecurrentState:
        """``rows`` rows that have seen nothing, with a float32 part of each shape."""
        return cls([torch.zeros(rows, *shape) for shape in shapes], [0] * rows)

    def after(self, parts: Sequence[Tensor], time: int) -> RecurrentState:
        """The state ``time`` tokens later."""
        return RecurrentState(parts, [length + time for length in self._lengths])

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def fork(self) -> RecurrentState:
        return RecurrentState(self.parts, self._lengths)

    def require_trimmable(self, lengths: Sequence[int]) -> None:
        require_shorter(lengths, self._lengths)
        if any(wanted not in (0, length) for wanted, length in zip(lengths, self._lengths, strict=True)):
            raise UnsupportedError(
                f"A recurrent state of {self._lengths} tokens cannot be taken back to {list(lengths)}: it keeps no past",
                remedy="Fork the state before the tokens that may have to be forgotten.",
            )

    def trim(self, lengths: Sequence[int]) -> None:
        self.require_trimmable(lengths)
        kept = torch.tensor([bool(wanted) for wanted in lengths], device=self.parts[0].device)
        self.parts = tuple(part * kept.view(-1, *[1] * (part.dim() - 1)) for part in self.parts)
        self._lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> RecurrentState:
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.parts[0].device)
        return RecurrentState([part[index] for part in self.parts], [self._lengths[row] for row in rows])

    def join(self, others: Sequence[RecurrentState]) -> RecurrentState:
        states = (self, *others)
        columns = zip(*(state.parts for state in states), strict=True)
        return RecurrentState([torch.cat(column) for column in columns], [n for state in states for n in state.lengths])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)
