"""Pipeline parallelism: every stage has some of the blocks, and micro-batches follow each other through the stages.

GPipe (Huang 2018, arXiv 1811.06965) runs all micro-batches forward, then all backward; 1F1B (Narayanan 2021, arXiv
2104.04473, section 2.2) turns back as early as it can, so that a stage keeps the activations of at most as many
micro-batches as there are stages. Both stand idle (p - 1) / (m + p - 1) of the time for p stages and m micro-batches: the
first micro-batch must reach the last stage, and the last must come back. Weights change only after all of a step.

Deviation: torch.distributed.pipelining is not used, since it sends the shapes of what it passes on pickled, and wants all
micro-batches of one shape. Here a header of three numbers goes first, and stages know the batch, since all read it.

How a stage computes its part of a `Decoder`: blocks of other stages are `Elsewhere`; the embedding gives what the stage
before sent (`Arrival`); where the last norm stood, `Departure` ends the forward pass. The objective runs as always, and is
cut short everywhere but at the last stage.

Legend: p stages, m micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.core.site import Around
from almanac.nn.head import Head, TiedHead
from almanac.nn.shared_attention import Borrowed
from almanac.nn.stack import Decoder
from almanac.train.parallel.mesh import Ranks
from almanac.train.parallel.rules import Layout

AXIS = "pipeline"
FORWARD, BACKWARD = "F", "B"


def order(stage: int, stages: int, micro_batches: int, schedule: str) -> list[tuple[str, int]]:
    """What a stage does, as (`FORWARD` or `BACKWARD`, micro-batch)."""
    ahead = micro_batches if schedule == "gpipe" else min(stages - stage - 1, micro_batches)
    found = [(FORWARD, index) for index in range(ahead)]
    for index in range(micro_batches - ahead):
        found += [(FORWARD, ahead + index), (BACKWARD, index)]
    return found + [(BACKWARD, index) for index in range(micro_batches - ahead, micro_batches)]


def idle_share(stages: int, micro_batches: int) -> float:
    """The bubble: the share of a step in which a stage waits, (p - 1) / (m + p - 1)."""
    return (stages - 1) / (micro_batches + stages - 1)


def clock(stages: int, micro_batches: int, schedule: str, *, backward_cost: int = 2) -> tuple[int, list[int]]:
    """A simulated step, forward costing 1: (its length, the most micro-batches each stage held at once)."""
    plans = [order(stage, stages, micro_batches, schedule) for stage in range(stages)]
    ends: dict[tuple[str, int, int], int] = {}
    times, places = [0] * stages, [0] * stages
    while any(place < len(plan) for place, plan in zip(places, plans, strict=True)):
        for stage, plan in enumerate(plans):
            while places[stage] < len(plan):
                kind, index = plan[places[stage]]
                source = stage - 1 if kind == FORWARD else stage + 1
                if 0 <= source < stages and (kind, source, index) not in ends:
                    break
                begin = max(times[stage], ends.get((kind, source, index), 0))
                times[stage] = ends[kind, stage, index] = begin + (1 if kind == FORWARD else backward_cost)
                places[stage] += 1
    return max(times), [_most_held(plan) for plan in plans]


def _most_held(plan: list[tuple[str, int]]) -> int:
    held = most = 0
    for kind, _ in plan:
        held += 1 if kind == FORWARD else -1
        most = max(most, held)
    return most


class Departed(Exception):
    """A forward pass that ends here, since the next stage goes on with ``x``."""

    def __init__(self, x: Tensor) -> None:
        super().__init__("the next stage goes on")
        self.x = x


class Departure(nn.Module):
    """Ends the forward pass with what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        raise Departed(x)


class Elsewhere(nn.Module):
    """A block of another stage."""

    def forward(self, x: Tensor, context: Any, state: Any = None) -> tuple[Tensor, Any]:
        return x, state


class Arrival(Around):
    """What the stage before sent, in place of embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.x: Tensor | None = None

    def forward(self, following: Any, *inputs: Any) -> Tensor:
        assert self.x is not None
        return self.x


@dataclass
class Stage:
    """This process's part of the line; ``most_held`` counts micro-batches whose activations were kept at once."""

    ranks: Ranks
    arrival: Arrival | None
    most_held: int = 0
    _sent: list[tuple[Any, Tensor]] = field(default_factory=list[tuple[Any, Tensor]])

    @property
    def index(self) -> int:
        """From the front."""
        return self.ranks.index(AXIS)

    @property
    def is_last(self) -> bool:
        """Whether the loss is computed here."""
        return self.index == self.ranks.size(AXIS) - 1

    def run(self, micro_batches: int, forward: Callable[[int], Tensor]) -> None:
        """Forward and backward of all micro-batches. ``forward(i)`` gives the loss, or raises `Departed` on the way."""
        stages, held = self.ranks.size(AXIS), dict[int, tuple[Tensor | None, Tensor]]()
        for kind, index in order(self.index, stages, micro_batches, self.ranks.mesh.schedule):
            if kind == FORWARD:
                held[index] = self._forward(index, forward)
                self.most_held = max(self.most_held, len(held))
            else:
                self._backward(*held.pop(index))
        for work, _ in self._sent:
            work.wait()
        self._sent.clear()

    def _forward(self, index: int, forward: Callable[[int], Tensor]) -> tuple[Tensor | None, Tensor]:
        x = None
        if self.arrival is not None:
            self.arrival.x = x = self._receive(self.index - 1).requires_grad_()
        try:
            return x, forward(index)
        except Departed as departed:
            self._send(departed.x.detach(), self.index + 1)
            return x, departed.x

    def _backward(self, x: Tensor | None, y: Tensor) -> None:
        if self.is_last:
            y.backward()
        else:
            torch.autograd.backward(y, self._receive(self.index + 1).to(y.dtype))
        if x is not None:
            assert x.grad is not None
            self._send(x.grad, self.index - 1)

    def _send(self, tensor: Tensor, stage: int) -> None:
        tensor = tensor.float().contiguous() if tensor.dtype != torch.float64 else tensor.contiguous()
        header = torch.tensor([*tensor.shape, tensor.element_size()], device=tensor.device)
        group = self.ranks.group(AXIS)
        for part in (header, tensor):  # kept until they are gone
            self._sent.append((dist.isend(part, dist.get_global_rank(group, stage), group), part))

    def _receive(self, stage: int) -> Tensor:
        group = self.ranks.group(AXIS)
        source, header = dist.get_global_rank(group, stage), torch.zeros(4, dtype=torch.int64, device=self.ranks.device)
        dist.recv(header, source, group)
        *shape, width = header.tolist()
        kind = torch.float64 if width == 8 else torch.float32
        tensor = torch.empty(shape, dtype=kind, device=self.ranks.device)
        dist.recv(tensor, source, group)
        return tensor


def cut_stages(network: Decoder, ranks: Ranks, layout: Layout) -> Stage:
    """Leaves of ``network`` what this stage computes; blocks go to stages evenly, the first ones taking what is left over.

    A table that the head shares stays on every stage, and its gradient is summed over them.

    Raises:
        UnsupportedError: fewer blocks than stages, blocks with common weights, or a head that this does not know.
    """
    stages, stage, count = ranks.size(AXIS), ranks.index(AXIS), len(network.layers)
    if count < stages:
        raise UnsupportedError(
            f"{count} blocks for {stages} pipeline stages", remedy="Give at most as many stages as there are blocks."
        )
    head = network.head
    if not isinstance(head, Head | TiedHead):
        raise UnsupportedError(
            f"A pipeline ends in the head of a language model, not in {type(head).__qualname__}",
            remedy="Use the shard axis.",
        )
    if any(isinstance(module, Borrowed) for module in network.layers.modules()):
        raise UnsupportedError(
            "Layers that share a block on several pipeline stages, each of which would train its own",
            remedy="Use a mesh without the pipeline axis.",
        )
    starts = [index * (count // stages) + min(index, count % stages) for index in range(stages + 1)]
    for index in range(count):
        if not starts[stage] <= index < starts[stage + 1]:
            network.layers[index] = Elsewhere()
    arrival = None
    tied = isinstance(head, TiedHead)
    if stage > 0:
        arrival = Arrival()
        network.positions = network.embed_norm = network.embed_inward = None
        if not tied:
            network.embed.set_weight(nn.Parameter(torch.empty(network.embed.shape, device="meta"), requires_grad=False))
            network.embed.register_parameter("weight", None)
        network.embed.wrap("arrival", arrival)
    if stage < stages - 1:
        network.norm = Departure()
        if not tied or head.inward is not None:
            network.head = Elsewhere()
    kept = dict(network.named_parameters())
    for name in list(layout.cuts):
        if name not in kept:
            del layout.cuts[name]
        elif name.startswith("embed.") and tied:
            layout.also(name, AXIS)
        else:
            old = layout.cuts[name]
            layout.cuts[name] = type(old)(old.whole, old.start, old.size, (*old.along, AXIS), old.summed)
    return Stage(ranks, arrival)
