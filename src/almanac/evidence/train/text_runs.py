"""The bench of the cards of training: a small model of characters on TXT, trained by the loop that everything here is of.

A model has 65 thousand parameters and sees 1,024 characters a step; a run takes seconds. All that a card does not change is
the same in every arm: weights, windows and their order depend on the seed alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from almanac.core.technique import initialise
from almanac.core.value import Value
from almanac.data.windows import WindowBatches
from almanac.evidence.fixtures import text
from almanac.evidence.fixtures.fitting import count, flops, next_nll
from almanac.evidence.fixtures.tiny import Tiny, spec
from almanac.nn.stack import Decoder
from almanac.train.criterion import Criterion
from almanac.train.events.event import Event, Listener, StepDone
from almanac.train.loop import train
from almanac.train.optimizers.adamw import AdamW
from almanac.train.settings import TrainSettings
from almanac.train.training import Batches


@dataclass(frozen=True, kw_only=True)
class Size(Value):
    """The model and the run."""

    hidden: int = 48
    layers: int = 2
    heads: int = 4
    time: int = 64
    rows: int = 16
    steps: int = 300
    rate: float = 3e-3
    tests: int = 128  # held-out rows

    @property
    def tiny(self) -> Tiny:
        """As the fixture wants it."""
        return Tiny(hidden=self.hidden, layers=self.layers, heads=self.heads, time=self.time, rows=self.rows)


class Text:
    """TXT as one long document, as a `TokenSource`."""

    def __init__(self, part: str = "train") -> None:
        self._tokens = text.tokens(part)

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def ends(self) -> Tensor:
        return torch.tensor([len(self._tokens)])

    @property
    def digest(self) -> str:
        return text.digest()

    def read(self, start: int, length: int) -> Tensor:
        return self._tokens[start : start + length]


def network(size: Size, seed: int) -> Decoder:
    """A fresh model."""
    built = initialise(spec(size.tiny).build(), seed=seed)
    assert isinstance(built, Decoder)
    return built


def windows(size: Size, seed: int, **changes: Any) -> WindowBatches:
    """What a run reads."""
    given = {"time": size.time, "rows": size.rows, "micro_rows": size.rows, "steps": size.steps, "seed": seed}
    return WindowBatches(Text(), **{**given, **changes})


def settings(size: Size, seed: int, **changes: Any) -> TrainSettings:
    """AdamW as in the other experiments; ``changes`` are what an arm is about."""
    given = {
        "learning_rate": size.rate,
        "optimizer": AdamW(beta2=0.98, weight_decay=0.01),
        "steps": size.steps,
        "seed": seed,
    }
    return TrainSettings(**{**given, **changes})


def trained(
    model: Decoder,
    chosen: TrainSettings,
    batches: Batches,
    *,
    criterion: Criterion | None = None,
    listeners: Sequence[Listener] = (),
    folder: Path | None = None,
) -> list[StepDone]:
    """Trains ``model`` in place; returns what the loop said of its steps."""
    steps: list[StepDone] = []

    def note(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(event)

    train(model, batches, settings=chosen, criterion=criterion, listeners=(*listeners, note), run_folder=folder)
    return steps


@torch.no_grad()
def held_out_nll(model: Decoder, size: Size) -> float:
    """Mean nll (nats a character) of the held-out rows."""
    return float(next_nll(model.eval(), text.held_out(rows=size.tests, time=size.time)))


def budget(model: Decoder, size: Size) -> dict[str, float]:
    """What a run of all steps spends."""
    return {
        "flops": size.steps * _operations(size),
        "tokens": float(size.steps * size.rows * size.time),
        "parameters": float(count(model)),
    }


@functools.cache
def _operations(size: Size) -> float:
    model, rows = network(size, 0), text.held_out(rows=size.rows, time=size.time)
    return flops(lambda: next_nll(model, rows).backward())


def thinned(points: Sequence[tuple[float, float]], every: int = 10) -> list[tuple[float, float]]:
    """The means of every so many points, at the last of them."""
    groups = [points[start : start + every] for start in range(0, len(points), every)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
