"""Windows of text, spoilt for an objective on their way to the network: what every criterion of this folder is fed by.

What becomes of a window is drawn from (seed, number of the window, epoch) alone. It depends neither on the order of windows,
nor on how a step is cut into micro-batches or shared by processes, nor on whether the run was ever stopped; and where the run
stands is still the one number of `WindowBatches`. It happens here and not in a criterion because the number of targets must
be known before any loss is computed, and because a loss that is computed twice (rechecks, loss scaling) must see one batch.

Legend: b rows (windows), t tokens of a window.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from almanac.core.batch import Tokens
from almanac.core.value import Value
from almanac.objectives.example_dice import example_dice


class Place(NamedTuple):
    """Whose dice a window has."""

    seed: int
    number: int
    epoch: int

    def dice(self) -> torch.Generator:
        """A fresh generator, the same each time."""
        return example_dice(self.seed, self.number, epoch=self.epoch)


@dataclass(frozen=True, kw_only=True)
class Corruption(Value):
    """From windows to the batch of a criterion."""

    @abstractmethod
    def batch(self, rows: Tokens, places: Sequence[Place]) -> Any:
        """The batch; ``rows`` [b, t] and one place per row. A row's part of it is a function of that row and its place."""


class Windows(Protocol):
    """The steps of a run over plain windows: `WindowBatches`, or `MixtureBatches` of several sources."""

    @property
    def seed(self) -> int: ...
    def __len__(self) -> int: ...
    def __next__(self) -> list[Tokens]: ...
    def places(self) -> list[tuple[int, int]]: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...
    def digest(self) -> str: ...


class CorruptedWindows:
    """The batches of a run: those of ``windows``, each spoilt. Iterate it; ``state`` is that of the windows."""

    def __init__(self, windows: Windows, corruption: Corruption) -> None:
        self.windows, self.corruption = windows, corruption

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> CorruptedWindows:
        return self

    def __next__(self) -> list[Any]:
        places, seed = self.windows.places(), self.windows.seed
        out, start = list[Any](), 0
        for rows in next(self.windows):
            own = places[start : start + len(rows.tokens)]
            start += len(own)
            out.append(self.corruption.batch(rows, [Place(seed, number, epoch) for number, epoch in own]))
        return out

    def state(self) -> dict[str, Any]:
        """Where the run stands, JSON-ready."""
        return self.windows.state()

    def load(self, state: dict[str, Any]) -> None:
        """Goes to where ``state`` was taken. Raises FileFormatError as `WindowBatches.load`."""
        self.windows.load(state)

    def digest(self) -> str:
        """SHA-256 (hex) of all that decides what the steps hold."""
        return hashlib.sha256(repr((self.windows.digest(), self.corruption.to_dict())).encode()).hexdigest()


def ordinary(tokens: Tensor, special: Sequence[int]) -> Tensor:
    """bool, as ``tokens``: which are text, and none of the ids in ``special``."""
    return ~torch.isin(tokens, torch.tensor(special, dtype=tokens.dtype))


def padded(rows: Sequence[Tensor], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """(tokens, segments), int64 [b, longest]: rows padded on the right; a segment is 0, or -1 where it is padding."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, (torch.arange(tokens.shape[1]) < lengths[:, None]).long() - 1
