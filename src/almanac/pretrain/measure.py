"""How a run is watched: loss on text that was held out, and a sample, every so many steps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from almanac.data.windows import TokenSource, batch_of
from almanac.files.store import write_atomic
from almanac.train.criterion import NextToken
from almanac.train.events.event import Event, Started, StepDone

ROWS = 8  # windows of one forward pass
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Measurement:
    """After ``step`` steps: nats a token on held-out text, bits a byte of it, and what the model writes."""

    step: int
    loss: float
    bits_per_byte: float
    sample: str


def held_out_loss(network: nn.Module, source: TokenSource, *, time: int, windows: int) -> float:
    """Mean nats of a token over at most ``windows`` windows, spread over the whole source."""
    count = max(1, (source.num_tokens - 1) // (time - 1))
    width = min(time, source.num_tokens)
    chosen = sorted({place * count // windows for place in range(windows)})
    criterion, total, targets = NextToken(), 0.0, 0.0
    before = network.training
    network.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(chosen), ROWS):
                batch = batch_of(source, [window * (time - 1) for window in chosen[start : start + ROWS]], width)
                if weight := criterion.weight(batch):
                    loss, _ = criterion.loss(network, batch, normaliser=1.0)
                    total, targets = total + float(loss), targets + weight
    finally:
        network.train(before)
    return total / max(targets, 1.0)


class Watch:
    """Listener that measures and remembers, in a file that a resumed run goes on with."""

    def __init__(self, path: Path, measure: Callable[[int], Measurement], *, every: int) -> None:
        self.path, self.measure, self.every = path, measure, every
        self.found: list[Measurement] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            known = [Measurement(**json.loads(line)) for line in lines]
            self.found = [item for item in known if item.step <= event.step]
            if not self.found:
                self._take(event.step)
        elif isinstance(event, StepDone) and (event.step % self.every == 0 or event.step == event.steps):
            self._take(event.step)

    def _take(self, step: int) -> None:
        dice = torch.get_rng_state()
        self.found.append(self.measure(step))
        torch.set_rng_state(dice)  # measuring must not change the run
        write_atomic(self.path, "".join(json.dumps(asdict(item)) + "\n" for item in self.found).encode())


def bits_per_byte(loss: float, *, tokens: int, nbytes: int) -> float:
    """Nats a token -> bits a byte of the text that the tokens stand for; what models of any tokenizer compare by."""
    return loss * tokens / nbytes / math.log(2)


def words_of(text: str) -> list[str]:
    """The words of a text, two letters or longer, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def known_share(sample: str, vocabulary: Collection[str]) -> float:
    """Share of a sample's words that are words of the corpus; the first and the last may be cut and do not count."""
    words = words_of(sample)[1:-1]
    return sum(word in vocabulary for word in words) / max(len(words), 1)
