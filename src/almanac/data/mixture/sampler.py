"""Windows of several corpora in declared shares: the batches of pre-training on a mixture.

Row after row goes to the source that is furthest behind its share (stride scheduling, Waldspurger & Weihl 1995), so after any
number of rows each has its share to within a row, and no dice decide. Within a source windows come in the order
that the seed and the source's own epoch give, each once an epoch. All of that is a function of the number of rows gone by,
never of how many processes share the work, and a place in it is found again exactly.

Legend: b rows (windows), t time, s sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from almanac.core.batch import Tokens
from almanac.core.errors import FileFormatError, RequestError
from almanac.data.windows import Share, TokenSource, batch_of

ALL = Share()


class MixtureBatches:
    """The micro-batches of each optimizer step, in order; iterate it, and save ``state`` to go on later.

    Args:
        sources: token stores by name. weights: of the sources, by name, 0 or more; not necessarily of sum 1.
        time: tokens of a window, at least 2. rows, micro_rows: windows of a step over all processes, and of one forward pass.
        steps: in all. seed: of the orders. share: what of each step this process takes.

    Raises:
        RequestError: weights for other sources, none above 0, a source that is too small, or rows not to be shared evenly.
    """

    def __init__(
        self,
        sources: Mapping[str, TokenSource],
        weights: Mapping[str, float],
        *,
        time: int,
        rows: tuple[int, int],
        steps: int,
        seed: int = 0,
        share: Share = ALL,
    ) -> None:
        self.rows, self.micro_rows = rows
        if min(time - 1, *rows, share.ranks, steps) < 1 or rows[0] % share.ranks or not 0 <= share.rank < share.ranks:
            raise RequestError(
                f"{rows[0]} rows of {time} tokens, {rows[1]} at once, for process {share.rank} of {share.ranks}",
                remedy="Give at least two tokens, one row and one step, and rows that the processes can share evenly.",
            )
        total = sum(weights.values())
        if set(weights) != set(sources) or not total > 0 or min(weights.values()) < 0:
            raise RequestError(f"Weights {dict(weights)} for {list(sources)}", remedy="Give one of 0 or more for each.")
        self.names = [name for name in sources if weights[name] > 0]
        self.sources = [sources[name] for name in self.names]
        self.weights = [weights[name] / total for name in self.names]
        self.time, self.steps, self.seed, self.share = time, steps, seed, share
        self.windows = [max(0, source.num_tokens - 1) // (time - 1) for source in self.sources]
        if not all(self.windows):
            poor = self.names[self.windows.index(0)]
            raise RequestError(f"The source {poor} holds no window of {time} tokens", remedy="Leave it out.")
        self.position = 0
        self.counts = [0] * len(self.names)
        self._orders: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        """Steps in all."""
        return self.steps

    def __iter__(self) -> MixtureBatches:
        return self

    def __next__(self) -> list[Tokens]:
        if self.position >= self.steps:
            raise StopIteration
        own = [(chosen, window) for chosen, window, _ in self._own()]
        for _ in range(self.rows):
            self.counts[self._behind(self.counts)] += 1
        self.position += 1
        return [self._batch(own[start : start + self.micro_rows]) for start in range(0, len(own), self.micro_rows)]

    @property
    def epoch(self) -> int:
        """How often as many windows as there are have been gone through, whatever their sources."""
        return self.position * self.rows // sum(self.windows)

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been gone through."""
        return {name: count / size for name, count, size in zip(self.names, self.counts, self.windows, strict=True)}

    def places(self) -> list[tuple[int, int]]:
        """(number, epoch) of this process's next windows: what tells a window from every other that the run sees."""
        return [(chosen << 40 | window, epoch) for chosen, window, epoch in self._own()]

    def _own(self) -> list[tuple[int, int, int]]:
        each = self.rows // self.share.ranks
        return self.upcoming()[self.share.rank * each : (self.share.rank + 1) * each]

    def upcoming(self) -> list[tuple[int, int, int]]:
        """(number of the source, number of its window, epoch of the source) of the next step's rows, over all processes."""
        counts, found = list(self.counts), []
        for _ in range(self.rows):
            chosen = self._behind(counts)
            epoch, place = divmod(counts[chosen], self.windows[chosen])
            found.append((chosen, int(self._order(chosen, epoch)[place]), epoch))
            counts[chosen] += 1
        return found

    def state(self) -> dict[str, Any]:
        """Where the run stands, JSON-ready; the same for every process."""
        counts = dict(zip(self.names, self.counts, strict=True))
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position, "counts": counts}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes to where ``state`` was taken. Raises FileFormatError if it belongs to another mixture or order."""
        position, counts = state["position"], [state["counts"].get(name, -1) for name in self.names]
        rows = position * self.rows
        fits = state["seed"] == self.seed and 0 <= position <= self.steps and len(state["counts"]) == len(self.names)
        shared = all(abs(n - rows * w) <= len(counts) for n, w in zip(counts, self.weights, strict=True))
        if not fits or sum(counts) != rows or min(counts) < 0 or not shared:
            raise FileFormatError(
                f"A saved position {position} with {state['counts']} in another mixture of {', '.join(self.names)}",
                remedy="Resume with the settings and the corpora that the run was started with.",
            )
        self.position, self.counts = position, counts

    def digest(self) -> str:
        """SHA-256 (hex) of all that decides what the steps hold, over all processes."""
        held = [(n, w, s.digest) for n, w, s in zip(self.names, self.weights, self.sources, strict=True)]
        return hashlib.sha256(repr((self.seed, self.steps, self.time, self.rows, held)).encode()).hexdigest()

    def _behind(self, counts: list[int]) -> int:
        return min(range(len(counts)), key=lambda number: ((counts[number] + 1) / self.weights[number], number))

    def _order(self, number: int, epoch: int) -> Tensor:
        if (number, epoch) not in self._orders:
            self._orders = {
                key: order for key, order in self._orders.items() if key[0] != number or key[1] >= epoch - 1
            }
            name = f"{self.seed} {self.names[number]} {epoch}".encode()
            seed = int.from_bytes(hashlib.sha256(name).digest()[:7], "little")
            self._orders[number, epoch] = torch.randperm(
                self.windows[number], generator=torch.Generator().manual_seed(seed)
            )
        return self._orders[number, epoch]

    def _batch(self, chosen: list[tuple[int, int]]) -> Tokens:
        parts = [batch_of(self.sources[number], [window * (self.time - 1)], self.time) for number, window in chosen]
        return Tokens(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.loss_mask for part in parts]),
            torch.cat([part.positions for part in parts]),
            torch.cat([part.segments for part in parts]),
        )
