"""What flows along the sequence: ``mixer(x, context, state) -> y, state``.

Attention, linear attention, state-space and recurrent layers all obey this one contract, so that one engine serves them
all. A state holds *rows*, one per sequence; rows need not be equally long.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from almanac.core.errors import ShapeError
from almanac.core.site import Site


@dataclasses.dataclass
class Context:
    """What every layer may want to know about the tokens it sees.

    - ``positions`` int64 [batch, time]: of each token in its own sequence
    - ``segments`` int64 [batch, time] or None: which packed sequence a token belongs to; tokens see only their own
    - ``prefix`` int64 [batch], or [batch, time] by token, or None: how many leading tokens of a sequence a `PrefixLM` mask
      lets see each other
    - ``encoder`` float [batch, source, width] or None: what an encoder made of another text, for cross-attention;
      ``encoder_segments`` int64 [batch, source]: for which segment (0 without ``segments``), -1 being padding
    - ``memo`` lets layers share what depends on the context alone, such as rotary angles
    """

    positions: Tensor
    segments: Tensor | None = None
    prefix: Tensor | None = None
    encoder: Tensor | None = None
    encoder_segments: Tensor | None = None
    # not dict[str, Any], which torch.compile cannot call
    memo: dict[str, Any] = dataclasses.field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]


class State(ABC):
    """The memory of one mixer (or of a stack of them) for a number of rows."""

    @property
    @abstractmethod
    def lengths(self) -> list[int]:
        """Tokens seen by each row."""

    @abstractmethod
    def fork(self) -> Self:
        """An independent copy: what is done to one is not seen by the other."""

    @abstractmethod
    def trim(self, lengths: Sequence[int]) -> None:
        """Forgets all after the first ``lengths[row]`` tokens of each row.

        Raises UnsupportedError where the past cannot be recovered (recurrent states that keep no history).
        """

    def require_trimmable(self, lengths: Sequence[int]) -> None:
        """Raises what `trim` would raise, and changes nothing: a stack asks all its parts before any is trimmed."""
        if len(lengths) != len(self.lengths):
            raise ShapeError(f"{len(lengths)} lengths for {len(self.lengths)} rows", remedy="Give one per row.")

    @abstractmethod
    def select(self, rows: Sequence[int]) -> Self:
        """A state of those rows, in that order, sharing memory with this one; a row named twice must be forked."""

    @abstractmethod
    def join(self, others: Sequence[Self]) -> Self:
        """A state of this one's rows followed by those of ``others``, sharing memory with them."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held, capacity included."""


class Mixer(Site):
    """A site that mixes along the sequence.

    ``compute(x, context, state)``: x [batch, time, embed] -> (y [batch, time, embed], state); with a state, ``batch``
    equals its rows and the tokens continue them. The state passed in is consumed: use the one returned.
    """

    @abstractmethod
    def init_state(self, rows: int, capacity: int) -> State:
        """An empty state for ``rows`` sequences, with room for ``capacity`` tokens before anything is moved."""


class StackState(State):
    """The states of several mixers, bottom first, as one."""

    def __init__(self, layers: Sequence[State]) -> None:
        if not layers:
            raise ShapeError("A stack state needs at least one layer", remedy="Build it from a model with mixers.")
        self.layers = list(layers)

    @property
    def lengths(self) -> list[int]:
        return self.layers[0].lengths

    def fork(self) -> StackState:
        return StackState([layer.fork() for layer in self.layers])

    def require_trimmable(self, lengths: Sequence[int]) -> None:
        for layer in self.layers:
            layer.require_trimmable(lengths)

    def trim(self, lengths: Sequence[int]) -> None:
        self.require_trimmable(lengths)
        for layer in self.layers:
            layer.trim(lengths)

    def select(self, rows: Sequence[int]) -> StackState:
        return StackState([layer.select(rows) for layer in self.layers])

    def join(self, others: Sequence[StackState]) -> StackState:  # pyright: ignore[reportIncompatibleMethodOverride]
        columns = [[other.layers[index] for other in others] for index in range(len(self.layers))]
        return StackState([layer.join(column) for layer, column in zip(self.layers, columns, strict=True)])

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


def positions_after(lengths: Sequence[int], time: int) -> Tensor:
    """Positions int64 [rows, time] of ``time`` new tokens in rows that have seen ``lengths`` tokens."""
    return torch.tensor(lengths, dtype=torch.int64).unsqueeze(1) + torch.arange(time)
