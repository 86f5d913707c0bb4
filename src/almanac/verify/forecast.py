"""What a run will need of memory, time and energy, said as it starts and held against what it took.

Memory is counted, not guessed: one small forward pass tells how many bytes a token leaves behind for backward, whatever
the architecture, and that grows in proportion to the tokens of a micro-batch. Time and energy are those
of the run's first steps.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from almanac.core.batch import Tokens
from almanac.core.weight import StoredWeight
from almanac.objectives.next_token import CHUNK_TARGETS
from almanac.train.criterion import Criterion, context_of
from almanac.train.events.event import Ended, Event, Forecasted, Started, StepDone
from almanac.train.settings import TrainSettings
from almanac.verify.energy import EnergyMeter

LOGITS_COPIES = 4  # logits, their log-softmax, its gradient and one more while they are made
TIMED_STEPS = 2


@dataclass(frozen=True)
class Memory:
    """Bytes, by what holds them; ``resident`` is what the process holds already, weights included."""

    resident: int
    weights: int
    learning: int  # gradients, the optimizer's states, and copies of what is saved
    activations: int  # of a full micro-batch
    logits: int  # of one chunk of targets
    expanded: int  # the largest stored weight as a dense one

    @property
    def peak(self) -> int:
        """The highest resident size to expect."""
        return self.resident + self.learning + self.activations + self.logits + self.expanded


def forecast_memory(
    network: nn.Module, batch: Any, *, settings: TrainSettings, criterion: Criterion | None = None
) -> Memory:
    """What a run will hold at its peak, from one forward pass over ``batch``.

    With a ``criterion`` the batch is its own, and its loss is the forward pass, logits included; without one the batch is
    `Tokens`, and the logits are those of one chunk of targets.
    """
    learned = {name: p for name, p in network.named_parameters() if p.requires_grad}
    weights, states = sum(p.nbytes for p in learned.values()), settings.optimizer.state_bytes(learned)
    written = weights + states if settings.background_saves else 0  # the copy that a thread writes
    stored = [module.shape.numel() for module in network.modules() if isinstance(module, StoredWeight)]
    with contextlib.nullcontext() if settings.activations is None else settings.activations.applied(network):
        if criterion is None:
            per_token = saved_bytes(network, batch) / batch.tokens.numel()
        else:
            per_token = _saved(network, lambda: criterion.loss(network, batch, normaliser=1.0)) / criterion.tokens(
                batch
            )
    return Memory(
        resident=resident_bytes(),
        weights=sum(p.nbytes for p in network.parameters()),
        learning=weights + states + written,
        activations=round(per_token * settings.micro_tokens),
        logits=LOGITS_COPIES * 4 * min(CHUNK_TARGETS, settings.micro_tokens) * network.vocab_size
        if criterion is None
        else 0,
        expanded=4 * max(stored, default=0),
    )


def saved_bytes(network: nn.Module, batch: Tokens) -> int:
    """Bytes that a forward pass up to the hidden vectors keeps for backward, beside the weights themselves."""
    return _saved(network, lambda: network.hidden(batch.tokens, None, context_of(batch)))


def _saved(network: nn.Module, forward: Callable[[], object]) -> int:
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # holding the tensors keeps their addresses apart

    def pack(tensor: Tensor) -> Tensor:  # detached, or the graph would hold itself through what is saved, for ever
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor.detach())
        return tensor.detach()

    before = network.training
    network.train()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            forward()
        return sum(size for size, _ in kept.values())
    finally:
        kept.clear()
        network.train(before)


def resident_bytes() -> int:
    """What the process holds in memory now; where the system does not say, the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    """The most memory that the process ever held."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


class Forecaster:
    """Listener that writes ``forecast`` (after two steps) and ``measured`` (at the end) into run.json.

    ``measured`` is of the present process: a resumed run tells of its last part.
    """

    def __init__(self, memory: Memory, tell: Callable[[Forecasted], object] = lambda forecast: None) -> None:
        self.memory = memory
        self.tell = tell
        self._meter = EnergyMeter()
        self._seconds: list[float] = []
        self._record: Callable[[str, Any], None] = lambda section, value: None
        self._began = 0.0
        self._first_step = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._record, self._began, self._first_step = event.record, time.perf_counter(), event.step
            self._meter = EnergyMeter()
        elif isinstance(event, StepDone):
            self._seconds.append(event.seconds)
            if len(self._seconds) == TIMED_STEPS:
                self._forecast(event.steps - self._first_step)
        elif isinstance(event, Ended) and event.step > self._first_step:
            seconds = time.perf_counter() - self._began
            measured = {
                "seconds": seconds, "steps": event.step - self._first_step, "peak_bytes": peak_bytes(),
                "energy": self._meter.read().to_dict(),
            }  # fmt: skip
            self._record("measured", measured)

    def _forecast(self, steps: int) -> None:
        seconds = steps * sum(self._seconds) / len(self._seconds)
        energy = self._meter.read()
        watt_hours = energy.watt_hours * steps / len(self._seconds)
        forecast = {
            "seconds": seconds, "steps": steps, "peak_bytes": self.memory.peak, "memory": asdict(self.memory),
            "energy": energy.to_dict() | {"watt_hours": watt_hours},
        }  # fmt: skip
        self._record("forecast", forecast)
        self.tell(Forecasted(seconds, self.memory.peak, watt_hours))
