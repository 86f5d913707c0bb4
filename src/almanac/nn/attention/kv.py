"""The state of attention: keys and values of every past token, one growing buffer per row.

Rows are kept apart: joining, selecting and trimming move no data, rows may differ in length, and nothing is padded.
A fork shares the past and copies it on its next append; a row trimmed and appended again would otherwise overwrite what
its fork still reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from almanac.core.state import State
from almanac.nn.rows import require_shorter

GROWTH = 1.5  # a full buffer is moved to one this much larger


class Row:
    """Keys and values of one sequence: buffers [kv_heads, capacity, head_dim], ``length`` tokens of them in use."""

    __slots__ = ("capacity", "keys", "length", "shared", "values")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.length = 0
        self.shared = False

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys, values [kv_heads, time, head_dim] -> all so far, as views [kv_heads, length, head_dim]."""
        end = self.length + keys.shape[1]
        if self.keys is None or self.shared or end > self.keys.shape[1]:
            self._move(keys, values, end)
        assert self.keys is not None and self.values is not None
        self.keys[:, self.length : end] = keys
        self.values[:, self.length : end] = values
        self.length = end
        return self.keys[:, :end], self.values[:, :end]

    def _move(self, keys: Tensor, values: Tensor, needed: int) -> None:
        held = self.keys.shape[1] if self.keys is not None else self.capacity
        size = held if needed <= held else max(needed, int(held * GROWTH))
        new_keys = keys.new_empty(keys.shape[0], size, keys.shape[2])
        new_values = values.new_empty(values.shape[0], size, values.shape[2])
        if self.keys is not None and self.values is not None:
            new_keys[:, : self.length] = self.keys[:, : self.length]
            new_values[:, : self.length] = self.values[:, : self.length]
        self.keys, self.values, self.shared = new_keys, new_values, False

    def fork(self) -> Row:
        other = Row(self.capacity)
        other.keys, other.values, other.length = self.keys, self.values, self.length
        self.shared = other.shared = self.keys is not None
        return other

    @property
    def nbytes(self) -> int:
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes


class KeyValueState(State):
    """One :class:`Row` per sequence."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    @classmethod
    def empty(cls, rows: int, capacity: int) -> KeyValueState:
        """``rows`` empty rows with room for ``capacity`` tokens each; memory is taken on the first append."""
        return cls([Row(max(capacity, 1)) for _ in range(rows)])

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self.rows]

    def fork(self) -> KeyValueState:
        return KeyValueState([row.fork() for row in self.rows])

    def trim(self, lengths: Sequence[int]) -> None:
        require_shorter(lengths, self.lengths)
        for length, row in zip(lengths, self.rows, strict=True):
            row.length = length

    def select(self, rows: Sequence[int]) -> KeyValueState:
        taken: set[int] = set()
        chosen: list[Row] = []
        for index in rows:
            chosen.append(self.rows[index].fork() if index in taken else self.rows[index])
            taken.add(index)
        return KeyValueState(chosen)

    def join(self, others: Sequence[KeyValueState]) -> KeyValueState:
        return KeyValueState([*self.rows, *(row for other in others for row in other.rows)])

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)


def stack_rows(rows: Sequence[Tensor]) -> Tensor:
    """[heads, time, dim] of each row -> [rows, heads, time, dim]; a single row is not copied."""
    return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(list(rows))
