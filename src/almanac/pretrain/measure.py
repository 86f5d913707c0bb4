"""How a run is watched: loss on text that was held out, and a sample, every so many steps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from almanac.data.windows import TokenSource, batch_of
from almanac.files.store import write_atomic
from almanac.pretrain.objectives.objective import Judged
from almanac.train.criterion import NextToken
from almanac.train.events.event import Event, Saving, Started, StepDone

ROWS = 8  # windows of one forward pass
NEXT_TOKEN = Judged(NextToken(), None)
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Measurement:
    """After ``step`` steps: nats a target on held-out text, bits a byte of it, and what the model does there.

    ``bits_per_byte``: None where the targets are not the text; ``accuracy``: share of targets that were the likeliest.
    """

    step: int
    loss: float
    bits_per_byte: float | None
    sample: str
    accuracy: float | None = None


def held_out_loss(network: nn.Module, source: TokenSource, *, time: int, windows: int) -> float:
    """Mean nats of a token over at most ``windows`` windows, spread over the whole source."""
    return held_out(network, source, NEXT_TOKEN, time=time, windows=windows)[0]


def held_out(
    network: nn.Module, source: TokenSource, judged: Judged, *, time: int, windows: int
) -> tuple[float, float | None]:
    """(mean loss of a target, share of targets that were the likeliest, if it is told) over at most ``windows`` windows,
    spread over the whole source."""
    count = max(1, (source.num_tokens - 1) // (time - 1))
    width = min(time, source.num_tokens)
    chosen = sorted({place * count // windows for place in range(windows)})
    total, targets, correct, is_told = 0.0, 0.0, 0.0, False
    before = network.training
    network.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(chosen), ROWS):
                numbers = chosen[start : start + ROWS]
                rows = batch_of(source, [window * (time - 1) for window in numbers], width)
                batch = judged.batch(rows, numbers)
                if weight := judged.criterion.weight(batch):
                    loss, metrics = judged.criterion.loss(network, batch, normaliser=1.0)
                    total, targets = total + float(loss), targets + weight
                    is_told = "correct" in metrics
                    correct += float(metrics.get("correct", 0.0))
    finally:
        network.train(before)
    return total / max(targets, 1.0), correct / max(targets, 1.0) if is_told else None


def best(found: Sequence[Measurement]) -> Measurement:
    """The first of those with the lowest loss."""
    return min(found, key=lambda item: item.loss)


class Watch:
    """Listener that measures and remembers, in a file that a resumed run goes on with.

    Args:
        every: steps between two measurements; the last step is measured in any case.
        patience: measurements in a row without a lower loss after which ``give_up`` is called; None: never.
        at_saves: measure when the run saves, which it is then to do as often as it is to be measured.
    """

    def __init__(
        self,
        path: Path,
        measure: Callable[[int], Measurement],
        *,
        every: int,
        patience: int | None = None,
        give_up: Callable[[], None] = lambda: None,
        at_saves: bool = False,
    ) -> None:
        self.path, self.measure, self.every = path, measure, every
        self.patience, self.give_up, self.at_saves = patience, give_up, at_saves
        self.found: list[Measurement] = []

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        if self.patience is None or not self.found:
            return False
        return len(self.found) - 1 - self.found.index(best(self.found)) >= self.patience

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            known = [Measurement(**json.loads(line)) for line in lines]
            self.found = [item for item in known if item.step <= event.step]
            if not self.found and not self.at_saves:
                self._measure(event.step)
        elif isinstance(event, Saving if self.at_saves else StepDone):
            last = isinstance(event, StepDone) and event.step == event.steps
            if (event.step % self.every == 0 or last or self.at_saves) and self._is_new(event.step):
                self._measure(event.step)
        if self.exhausted:
            self.give_up()

    def _is_new(self, step: int) -> bool:
        return not self.at_saves or not self.found or self.found[-1].step != step

    def _measure(self, step: int) -> None:
        dice = torch.get_rng_state()
        found = self.measure(step)
        torch.set_rng_state(dice)  # measuring must not change the run
        self.take(found)

    def take(self, found: Measurement) -> None:
        """Remembers a measurement."""
        self.found.append(found)
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
