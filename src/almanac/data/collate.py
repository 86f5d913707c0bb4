"""From tokenised examples to the batches of a run: which examples make up each optimizer step, and as which rows.

The order is a function of the seed and the epoch alone, and where a run stands is one number, so that a run that was
killed goes on with exactly the examples it had not seen. A step never reaches over the end of an epoch: every example
is seen once an epoch, whatever the sizes.

Legend: a *step* is all that one update of the weights sees; a *micro-batch* is what one forward pass sees.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from almanac.core.batch import Tokens, pad_rows
from almanac.core.errors import FileFormatError, RequestError
from almanac.data.pack import pack_rows, take


@dataclass(frozen=True)
class Row:
    """One tokenised example.

    - ``tokens``: ids; ``mask``: whether each is a target, aligned to the token scored
    - ``truncated``: whether the example was longer and lost its end
    """

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.tokens)


class StepBatches:
    """The micro-batches of each optimizer step, in order; iterate it, and save ``state`` to go on later.

    Args:
        rows: tokenised examples; none longer than ``micro_tokens``.
        seed: of the order.
        epochs: how often every row is seen.
        steps: ends after so many steps instead, in as many epochs as that takes.
        step_tokens: a step takes rows while their tokens together stay within this; at least one row.
        micro_tokens: most tokens of a micro-batch, padding included.
        packed: put several rows behind one another (see ``data.pack``) instead of padding each.

    Raises:
        RequestError: no rows, an empty row, or one longer than ``micro_tokens``.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        seed: int = 0,
        epochs: int = 1,
        steps: int | None = None,
        step_tokens: int = 2048,
        micro_tokens: int = 1024,
        packed: bool = False,
    ) -> None:
        check_rows(rows, micro_tokens)
        self.rows, self.seed, self.packed = rows, seed, packed
        self.step_tokens, self.micro_tokens = step_tokens, micro_tokens
        self._lengths = [len(row) for row in rows]
        self._starts = [0]  # the first step of each epoch, and of one more
        while len(self._starts) <= epochs if steps is None else self._starts[-1] < steps:
            groups = self._groups_of(len(self._starts) - 1)
            self._starts.append(self._starts[-1] + len(groups))
        self._steps = self._starts[-1] if steps is None else steps
        self._cached: tuple[int, list[list[int]]] | None = None
        self.position = 0

    def __len__(self) -> int:
        """Steps in all epochs."""
        return self._steps

    @property
    def epoch(self) -> int:
        """The epoch of the step that comes next, from 0."""
        return bisect_right(self._starts, self.position) - 1

    def __iter__(self) -> StepBatches:
        return self

    def __next__(self) -> list[Tokens]:
        examples = self.upcoming()
        if not examples:
            raise StopIteration
        self.position += 1
        rows = [self.rows[index] for index in examples]
        return packed_batches(rows, self.micro_tokens) if self.packed else padded_batches(rows, self.micro_tokens)

    def upcoming(self) -> list[int]:
        """Indices of the rows that the next step takes; empty at the end."""
        if self.position >= self._steps:
            return []
        epoch = self.epoch
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._groups_of(epoch))
        return self._cached[1][self.position - self._starts[epoch]]

    def state(self) -> dict[str, int]:
        """Where the run stands, JSON-ready."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def digest(self) -> str:
        """SHA-256 (hex) of all that decides what the steps hold."""
        head = (self.seed, self._steps, self.step_tokens, self.micro_tokens, self.packed)
        hashed = hashlib.sha256(repr(head).encode())
        for row in self.rows:
            hashed.update(array("q", [len(row), *row.tokens]).tobytes() + bytes(row.mask))
        return hashed.hexdigest()

    def load(self, state: dict[str, int]) -> None:
        """Goes to where ``state`` was taken. Raises FileFormatError if it belongs to another order."""
        position = state["position"]
        if state["seed"] != self.seed or not 0 <= position <= len(self):
            raise FileFormatError(
                f"A saved position {position} of seed {state['seed']} in a run of {len(self)} steps of seed {self.seed}",
                remedy="Resume with the settings and the data that the run was started with.",
            )
        self.position = position
        if self.epoch != state["epoch"]:
            raise FileFormatError(
                f"The saved position lies in epoch {state['epoch']}, here that is epoch {self.epoch}",
                remedy="Resume with the data that the run was started with.",
            )

    def _groups_of(self, epoch: int) -> list[list[int]]:
        return grouped(self._lengths, order(len(self.rows), seed=self.seed, epoch=epoch), step_tokens=self.step_tokens)


def padded_batches(rows: Sequence[Row], micro_tokens: int) -> list[Tokens]:
    """Each example in its own row, longest first: little is padded, and what does not fit into memory fails at once.

    What fills up (id 0) is seen by no token and is never a target.
    """
    rows = sorted(rows, key=len, reverse=True)
    batches: list[Tokens] = []
    start = 0
    while start < len(rows):
        group = rows[start : start + micro_tokens // len(rows[start])]
        batches.append(pad_rows([list(row.tokens) for row in group], [list(row.mask) for row in group], pad_id=0))
        start += len(group)
    return batches


def packed_batches(rows: Sequence[Row], micro_tokens: int) -> list[Tokens]:
    """Examples behind one another, in rows as wide as the longest of them: attention is quadratic in the width."""
    width = max(len(row) for row in rows)
    packed = pack_rows([row.tokens for row in rows], [row.mask for row in rows], width=width, pad_id=0)
    count = micro_tokens // width
    return [take(packed, start, count=count) for start in range(0, packed.tokens.shape[0], count)]


def check_rows(rows: Sequence[Row], micro_tokens: int) -> None:
    """Raises RequestError for rows that no batch could hold."""
    if not rows:
        raise RequestError("There are no examples", remedy="Give at least one.")
    for index, row in enumerate(rows):
        if not len(row) or len(row.mask) != len(row):
            raise RequestError(
                f"Example {index} has {len(row)} tokens and a mask of {len(row.mask)}",
                remedy="Give every example at least one token and one mask entry per token.",
            )
        if len(row) > micro_tokens:
            raise RequestError(
                f"Example {index} has {len(row)} tokens, more than the {micro_tokens} of a micro-batch",
                remedy="Raise micro_tokens, or cut the example.",
            )


def order(count: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(count)`` that depends on the seed and the epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(count, generator=generator).tolist()


def grouped(lengths: Sequence[int], shuffled: Sequence[int], *, step_tokens: int) -> list[list[int]]:
    """Runs of ``shuffled`` whose lengths together stay within ``step_tokens``; a longer one stands alone."""
    groups: list[list[int]] = []
    total = step_tokens
    for index in shuffled:
        total += lengths[index]
        if total > step_tokens:
            groups.append([])
            total = lengths[index]
        groups[-1].append(index)
    return groups
