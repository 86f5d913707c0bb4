"""Windows of a long stream of tokens as the batches of pre-training: every token a target once an epoch, nothing padded.

The stream is cut every ``time - 1`` tokens; windows overlap by one token, since the first of a window is not predicted in
it. A window may hold several documents: each token sees its own document alone, and positions begin with the document or
the window, whichever comes later. The order of windows is a function of the seed and the epoch, never of how many
processes share the work (rank r of n takes its part of each step), and where a run stands is one number.

Legend: b rows (windows), t time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from almanac.core.batch import Tokens
from almanac.core.errors import FileFormatError, RequestError


class TokenSource(Protocol):
    """Where tokens lie, such as ``files.token_store.TokenStore``; ``ends`` int64 [documents], rising."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def ends(self) -> Tensor: ...
    @property
    def digest(self) -> str: ...
    def read(self, start: int, length: int) -> Tensor: ...


@dataclass(frozen=True)
class Share:
    """Which part of every step this process takes: ``rank`` of ``ranks``."""

    rank: int = 0
    ranks: int = 1


class WindowBatches:
    """The micro-batches of each optimizer step, in order; iterate it, and save ``state`` to go on later.

    Args:
        source: the tokens.
        time: tokens of a window, at least 2.
        rows: windows of a step, over all processes; micro_rows: of one forward pass.
        steps: in all, in as many epochs as that takes; None: one epoch. What is left of an epoch and too little for a step
            is not seen in that epoch.
        seed: of the order. share: what of each step this process takes.

    Raises:
        RequestError: fewer windows than a step takes, or rows that cannot be shared evenly.
    """

    def __init__(
        self,
        source: TokenSource,
        *,
        time: int,
        rows: int,
        micro_rows: int,
        steps: int | None = None,
        seed: int = 0,
        share: Share = Share(),
    ) -> None:
        if min(time - 1, rows, micro_rows, share.ranks) < 1 or rows % share.ranks or not 0 <= share.rank < share.ranks:
            raise RequestError(
                f"{rows} rows of {time} tokens, {micro_rows} at once, for process {share.rank} of {share.ranks}",
                remedy="Give at least two tokens and one row, and rows that the processes can share evenly.",
            )
        self.source, self.time, self.rows, self.micro_rows = source, time, rows, micro_rows
        self.seed, self.share = seed, share
        self.windows = max(0, source.num_tokens - 1) // (time - 1)
        self._epoch_steps = self.windows // rows
        if not self._epoch_steps:
            raise RequestError(
                f"{source.num_tokens} tokens make {self.windows} windows of {time}, and a step takes {rows}",
                remedy="Give more text, shorter windows or fewer rows.",
            )
        self._steps = self._epoch_steps if steps is None else steps
        self._cached: tuple[int, Tensor] | None = None
        self.position = 0

    def __len__(self) -> int:
        """Steps in all."""
        return self._steps

    @property
    def epoch(self) -> int:
        """The epoch of the step that comes next, from 0."""
        return self.position // self._epoch_steps

    def __iter__(self) -> WindowBatches:
        return self

    def __next__(self) -> list[Tokens]:
        upcoming = self.upcoming()
        if not upcoming:
            raise StopIteration
        self.position += 1
        parts = [upcoming[start : start + self.micro_rows] for start in range(0, len(upcoming), self.micro_rows)]
        return [batch_of(self.source, [window * (self.time - 1) for window in part], self.time) for part in parts]

    def upcoming(self) -> list[int]:
        """Numbers of the windows that this process takes in the next step; empty at the end."""
        if self.position >= self._steps:
            return []
        if self._cached is None or self._cached[0] != self.epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            self._cached = (self.epoch, torch.randperm(self.windows, generator=generator))
        each = self.rows // self.share.ranks
        start = self.position % self._epoch_steps * self.rows + self.share.rank * each
        return self._cached[1][start : start + each].tolist()

    def places(self) -> list[tuple[int, int]]:
        """(number, epoch) of these windows: what tells a window from every other that the run sees."""
        return [(number, self.epoch) for number in self.upcoming()]

    def state(self) -> dict[str, int]:
        """Where the run stands, JSON-ready; the same for every process."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def digest(self) -> str:
        """SHA-256 (hex) of all that decides what the steps hold, over all processes."""
        head = (self.seed, self._steps, self.time, self.rows, self.source.digest)
        return hashlib.sha256(repr(head).encode()).hexdigest()

    def load(self, state: dict[str, int]) -> None:
        """Goes to where ``state`` was taken. Raises FileFormatError if it belongs to another order."""
        position = state["position"]
        fits = state["seed"] == self.seed and 0 <= position <= self._steps
        if not fits or state["epoch"] != position // self._epoch_steps:
            raise FileFormatError(
                f"A saved position {position} in epoch {state['epoch']} of seed {state['seed']}, in a run of {self._steps} "
                f"steps of seed {self.seed}",
                remedy="Resume with the settings and the corpus that the run was started with.",
            )
        self.position = position


def batch_of(source: TokenSource, starts: list[int], time: int) -> Tokens:
    """The windows [b, t] that begin at ``starts``; a document's first token there is no target, nothing stands before it."""
    tokens = torch.stack([source.read(start, time) for start in starts])
    places = torch.tensor(starts)[:, None] + torch.arange(time)
    documents = torch.searchsorted(source.ends, places.flatten(), right=True).view_as(places)
    begins = torch.where(documents > 0, source.ends[(documents - 1).clamp_min(0)], 0)
    positions = places - torch.maximum(begins, places[:, :1])
    return Tokens(tokens, positions > 0, positions, documents - documents[:, :1])
