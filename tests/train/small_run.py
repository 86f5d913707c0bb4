"""A training run small enough to be run a hundred times: what the tests of this folder share."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import toys

from almanac.adapt.lora import Lora
from almanac.core.technique import Technique
from almanac.data.collate import Row
from almanac.nn.stack import Decoder
from almanac.train.events.event import Listener
from almanac.train.loop import Outcome, train
from almanac.train.settings import TrainSettings

ASK, END = 96, 95


def doubling_rows(count: int = 48, *, length: int = 5, seed: int = 0) -> list[Row]:
    """Some numbers, a question mark, each of them doubled, an end: the answer and the end are targets."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        numbers = [rng.randrange(1, 47) for _ in range(rng.randint(2, length))]
        tokens = (*numbers, ASK, *(2 * number for number in numbers), END)
        rows.append(Row(tokens, (False,) * (len(numbers) + 1) + (True,) * (len(numbers) + 1)))
    return rows


def adapted(*base: Technique, dropout: float = 0.0, seed: int = 0) -> Decoder:
    """A toy Llama with fresh adapters over a base that is dense or stored."""
    network = toys.toy("llama", *base)
    Lora(rank=8, dropout=dropout, seed=seed).attach(network)
    return network


def settings(**changes: Any) -> TrainSettings:
    """Steps of a few rows and frequent saves."""
    given = {"learning_rate": 5e-3, "steps": 40, "step_tokens": 128, "micro_tokens": 64, "save_every": 5, **changes}
    return TrainSettings(**given)


def run(
    folder: Path | None = None,
    *,
    network: Decoder | None = None,
    listeners: Sequence[Listener] = (),
    stop: threading.Event | None = None,
    **changes: Any,
) -> Outcome:
    """Trains with dropout, so that the random state matters, over several epochs."""
    chosen = settings(**changes)
    network = adapted(dropout=0.1) if network is None else network
    batches = chosen.batches(doubling_rows())
    return train(network, batches, settings=chosen, listeners=listeners, run_folder=folder, stop=stop)
