"""The state of attention: keys and values of past tokens, one buffer per row.

Rows are kept apart: joining, selecting and trimming move no data, rows may differ in length, and nothing is padded.
A fork shares the past and copies it on its next append; a row trimmed and appended again would otherwise overwrite what
its fork still reads.

A row without a ``reach`` grows with the text. A row of a layer whose tokens see at most ``reach`` places back, as in a
sliding window, keeps those and `MARGIN` more, for tokens that are taken back, and lets the others go a page at a time: its
bytes stop growing after the window, and a token costs the copying of (reach + MARGIN) / page others on average.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from almanac.core.errors import UnsupportedError
from almanac.core.state import State
from almanac.nn.rows import require_shorter

GROWTH = 1.5  # a full buffer is moved to one this much larger
MARGIN = 64  # tokens that a bounded row can always be taken back; a round of speculative decoding drafts a few


class Row:
    """Keys and values of one sequence: buffers [kv_heads, capacity, head_dim], holding the tokens ``start`` to ``length``.

    ``reach``: how many places back a token sees at most, itself included; None where all of the past is kept.
    """

    __slots__ = ("capacity", "keys", "length", "reach", "shared", "start", "values")

    def __init__(self, capacity: int, reach: int | None = None) -> None:
        self.capacity = capacity
        self.reach = reach
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.start = self.length = 0
        self.shared = False

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys, values [kv_heads, time, head_dim] -> all that the new tokens may see, [kv_heads, seen, head_dim].

        These are the last of the sequence; ``length`` - ``seen`` is the place of the first.
        """
        end = self.length + keys.shape[1]
        seen = self.start if self.reach is None else max(self.start, self.length - self.reach + 1)
        if self.reach is not None and end - self.start > self._most:
            if keys.shape[1] > self._page:
                return self._pass(keys, values, seen)
            self._move(keys, values, max(self.start, self.length - self._kept))
        elif self.keys is None or self.shared or end - self.start > self.keys.shape[1]:
            self._move(keys, values, self.start)
        assert self.keys is not None and self.values is not None
        fresh, shown = slice(self.length - self.start, end - self.start), slice(seen - self.start, end - self.start)
        self.keys[:, fresh] = keys
        self.values[:, fresh] = values
        self.length = end
        return self.keys[:, shown], self.values[:, shown]

    @property
    def _kept(self) -> int:
        """Past tokens that are kept when others are let go."""
        assert self.reach is not None
        return self.reach - 1 + MARGIN

    @property
    def _page(self) -> int:
        """Tokens that come before others are let go again."""
        return max(MARGIN, self._kept // 4)

    @property
    def _most(self) -> int:
        return self._kept + self._page

    def _move(self, keys: Tensor, values: Tensor, start: int) -> None:
        """Makes room for ``keys``: new buffers with what is held from the place ``start`` on."""
        past, needed = self.length - start, self.length - start + keys.shape[1]
        held = self.keys.shape[1] if self.keys is not None else self.capacity
        size = held if needed <= held else max(needed, int(held * GROWTH))
        size = size if self.reach is None else min(size, self._most)
        new_keys = keys.new_empty(keys.shape[0], size, keys.shape[2])
        new_values = values.new_empty(values.shape[0], size, values.shape[2])
        if self.keys is not None and self.values is not None:
            kept = slice(start - self.start, self.length - self.start)
            new_keys[:, :past] = self.keys[:, kept]
            new_values[:, :past] = self.values[:, kept]
        self.keys, self.values, self.shared, self.start = new_keys, new_values, False, start

    def _pass(self, keys: Tensor, values: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """More new tokens than a page: they are shown with the past that they see, and the last of them kept."""
        if self.keys is not None and self.values is not None:
            past = slice(seen - self.start, self.length - self.start)
            keys, values = torch.cat([self.keys[:, past], keys], 1), torch.cat([self.values[:, past], values], 1)
        end = seen + keys.shape[1]
        kept = min(self._kept, keys.shape[1])
        self.keys = keys.new_empty(keys.shape[0], self._most, keys.shape[2])
        self.values = values.new_empty(values.shape[0], self._most, values.shape[2])
        self.keys[:, :kept], self.values[:, :kept] = keys[:, -kept:], values[:, -kept:]
        self.start, self.length, self.shared = end - kept, end, False
        return keys, values

    def trims_to(self, length: int) -> bool:
        """Whether all is held that a token after the first ``length`` sees."""
        return length == 0 or self.start <= max(0, length - (self.reach or 0) + 1)

    def trim(self, length: int) -> None:
        """Forgets all after the first ``length`` tokens; ask `trims_to` before."""
        self.length = length
        self.start = self.start if length else 0

    def fork(self) -> Row:
        other = Row(self.capacity, self.reach)
        other.keys, other.values, other.start, other.length = self.keys, self.values, self.start, self.length
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
    def empty(cls, rows: int, capacity: int, *, reach: int | None = None) -> KeyValueState:
        """``rows`` empty rows with room for ``capacity`` tokens each; memory is taken on the first append.

        ``reach``: as in `Row`; rows that have one keep no more than it asks for.
        """
        return cls([Row(max(capacity, 1), reach) for _ in range(rows)])

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self.rows]

    def fork(self) -> KeyValueState:
        return KeyValueState([row.fork() for row in self.rows])

    def require_trimmable(self, lengths: Sequence[int]) -> None:
        require_shorter(lengths, self.lengths)
        for length, row in zip(lengths, self.rows, strict=True):
            if not row.trims_to(length):
                raise UnsupportedError(
                    f"A windowed state of {row.length} tokens keeps the last {row.length - row.start} and cannot be taken "
                    f"back to {length}",
                    remedy=f"Take back {MARGIN} tokens at most, or fork the state before those that may be forgotten.",
                )

    def trim(self, lengths: Sequence[int]) -> None:
        self.require_trimmable(lengths)
        for length, row in zip(lengths, self.rows, strict=True):
            row.trim(length)

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
