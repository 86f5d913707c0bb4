"""Many processes, one run: the answers that the loop gets from each rank of a mesh.

A network is placed once: experts, then columns and rows, then stages, then shards, each a file of this folder that acts on
the built network through sites and cut weights. No layer knows of it. Parameters are then what lies on this rank, as plain
tensors, so that an optimizer that works number by number needs to know nothing either.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from almanac.core.errors import TrainingError, UnsupportedError
from almanac.data.windows import Share
from almanac.nn.attention.backends import using
from almanac.nn.stack import Decoder
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.lion import Lion
from almanac.train.parallel import context, expert, fsdp, pipeline, tensor
from almanac.train.parallel.collectives import all_json
from almanac.train.parallel.gathering import gather_into, summed_together
from almanac.train.parallel.mesh import ROWS, TOKENS, Mesh, Ranks
from almanac.train.parallel.parallel import Loss, Parallel, add_to
from almanac.train.parallel.rows import Shares
from almanac.train.parallel.rules import Cut, Layout
from almanac.train.parallel.saving import Shards

if TYPE_CHECKING:
    from almanac.train.settings import TrainSettings

_CUTTING = ("shard", "expert", "tensor")


class Together(Parallel):
    """One rank of a mesh. Raises UnsupportedError if as many processes were not started."""

    def __init__(self, mesh: Mesh) -> None:
        self.ranks = Ranks(mesh)
        self.layout = Layout()
        self.stage: pipeline.Stage | None = None
        self.ring = context.Ring(self.ranks.group("context")) if mesh.context > 1 else None
        self._live: dict[str, nn.Parameter] = {}  # what backward fills
        self._local: dict[str, nn.Parameter] = {}  # what the optimizer changes; of one memory with it
        self._reported: list[str] | None = None

    @property
    def leads(self) -> bool:
        return self.ranks.rank == 0

    def require(self, settings: TrainSettings, alters_network: bool, keepers: int) -> None:
        mesh = self.ranks.mesh
        refused = {
            "rechecks, since ranks would have to agree on which of three results holds": settings.recheck_every
            is not None,
            "averages of the weights, which lie in parts": keepers > 0,
            "a loss that changes the network, differently on every rank": alters_network,
        }
        for what, found in refused.items():
            if found:
                raise UnsupportedError(f"Many processes do not go with {what}", remedy="Leave it out, or the mesh.")
        if mesh.size(*_CUTTING) > 1 and not isinstance(settings.optimizer, AdamW | Lion):
            raise UnsupportedError(
                f"{type(settings.optimizer).__name__} looks at whole matrices, and this mesh cuts them",
                remedy="Use AdamW or Lion, or the data, context and pipeline axes alone.",
            )

    @contextlib.contextmanager
    def placed(self, network: nn.Module) -> Iterator[None]:
        """``network`` holds this rank's part inside, and the trained whole again after; after an error, nothing usable.

        Raises:
            UnsupportedError: a network that is no `Decoder`, or a layer that an axis of the mesh cannot cut.
            TrainingError: the processes were given different weights.
        """
        if not isinstance(network, Decoder):
            raise UnsupportedError(
                f"Ranks know how to share a decoder, not {type(network).__qualname__}",
                remedy="Train it on one process.",
            )
        self._require_same_start(network)
        given = dict(network.named_parameters())
        tensors = [*given.values(), *network.buffers()]
        skeleton = copy.deepcopy(
            network, {id(item): item for item in tensors}
        )  # the same tensors in modules of its own
        wholes = {name: (parameter.shape, parameter.dtype) for name, parameter in given.items()}
        with using(self.ring) if self.ring is not None else contextlib.nullcontext():
            try:
                self._place(network)
                self._live = dict(network.named_parameters())
                for name, parameter in given.items():
                    if self._live.get(name) is not parameter:
                        parameter.data = parameter.new_empty(0)  # what lies on other ranks takes no room on this one
                yield
                local = {name: fsdp.local(parameter).detach() for name, parameter in self._live.items()}
                gather_into(given, local, self.layout, wholes, self.ranks)
            finally:
                # the caller's object goes on being the network; the parts it was made of inside are given up
                network.__class__, network.__dict__ = skeleton.__class__, skeleton.__dict__

    def parameters(self, network: nn.Module) -> dict[str, nn.Parameter]:
        learning = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        self._live = dict(network.named_parameters())
        self._local = {
            name: parameter if (part := fsdp.local(parameter)) is parameter else nn.Parameter(part.detach())
            for name, parameter in learning.items()
        }
        return self._local

    def batches(self, batches: Any) -> Any:
        ranks = self.ranks
        share = Share(ranks.index(*ROWS), ranks.size(*ROWS))
        return Shares(batches, share, Share(ranks.index("context"), ranks.size("context")))

    def seed(self, seed: int) -> int:
        return seed + 7919 * self.ranks.index(*TOKENS)

    def agree(self, own: tuple[float, float], stop: bool) -> tuple[tuple[float, float], bool]:
        counts = self.ranks.index("tensor") == self.ranks.index("pipeline") == 0
        mine = [*(own if counts else (0.0, 0.0)), float(stop)]
        told = torch.tensor(mine, dtype=torch.float64, device=self.ranks.device)
        dist.all_reduce(told)
        weight, tokens, stopped = told.tolist()
        return (weight, tokens), stopped > 0

    def gradients(
        self, network: nn.Module, batches: Sequence[Any], loss: Loss, *, scale: float, stop: threading.Event
    ) -> tuple[float, dict[str, float]] | None:
        total, sums = 0.0, dict[str, float]()

        def forward(index: int) -> Tensor:
            nonlocal total
            value, metrics = self._loss(network, batches[index], loss)
            total += value.item()
            add_to(sums, metrics)
            return value * scale

        if self.stage is not None:
            self.stage.run(len(batches), forward)
        else:
            for index in range(len(batches)):
                forward(index).backward()
        self._collect()
        return self._over_all(total, sums)

    def norm(self, parameters: Mapping[str, nn.Parameter]) -> float:
        squares = torch.zeros(1, dtype=torch.float64, device=self.ranks.device)
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                size = torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)
                squares += size.square() / (self.ranks.mesh.world / self.ranks.size(*self.layout.cuts[name].along))
        dist.all_reduce(squares)
        return math.sqrt(float(squares)) if math.isfinite(float(squares)) else math.nan

    def writers(self) -> Shards:
        return Shards(self.ranks, self.layout)

    def nbytes(self) -> int:
        """Bytes of this rank's parameters."""
        return sum(fsdp.local(parameter).nbytes for parameter in self._live.values())

    def _place(self, network: Decoder) -> None:
        ranks, names = self.ranks, dict(network.named_parameters())
        self.layout = Layout({name: Cut.none(parameter) for name, parameter in names.items()}, list(names))
        if self.ring is not None:
            context.require_ring(network)
        experts = expert.spread_experts(network, ranks, self.layout) if ranks.size("expert") > 1 else []
        if ranks.size("tensor") > 1:
            tensor.cut_tensors(network, ranks, self.layout)
        if ranks.size("pipeline") > 1:
            self.stage = pipeline.cut_stages(network, ranks, self.layout)
        if ranks.size("shard") > 1:
            fsdp.shard(network, ranks, self.layout, experts)

    def _loss(self, network: nn.Module, batch: Any, loss: Loss) -> tuple[Tensor, Mapping[str, Tensor]]:
        if self.ring is None:
            return loss(network, batch)
        assert isinstance(network, Decoder)
        self.ring.part = batch
        return loss(context.InParts(network, self.ring), batch)

    def _collect(self) -> None:
        """Sums what ranks have of each gradient, and hands it to the optimizer's parameters."""
        if self.ring is not None:
            self.ring.part = None
        waiting: dict[tuple[str, ...], list[Tensor]] = {}
        for name, parameter in self._local.items():
            live, cut = self._live[name], self.layout.cuts[name]
            if live.grad is None and "pipeline" in cut.summed:
                live.grad = torch.zeros_like(live)
            if live.grad is None:
                continue
            gradient = fsdp.local(live.grad)
            copies = [axis for axis in ("data", "expert", "context") if axis not in cut.along]
            if live is parameter and self.ranks.size(*copies) > 1:  # FSDP2 has summed what it shards
                waiting.setdefault(tuple(copies), []).append(gradient)
            for axis in cut.summed:
                waiting.setdefault((axis,), []).append(gradient)
            if live is not parameter:
                live.grad, parameter.grad = None, gradient
        for axes, gradients in waiting.items():
            summed_together(gradients, self.ranks.group(*axes))

    def _over_all(self, total: float, sums: dict[str, float]) -> tuple[float, dict[str, float]]:
        if self._reported is None:  # stages before the last have no sums to name
            self._reported = sorted({name for names in all_json(sorted(sums)) for name in names})
        counts = self.ranks.index("tensor") == 0
        values = [total, *(sums.get(name, 0.0) for name in self._reported)]
        told = torch.tensor(values if counts else [0.0] * len(values), dtype=torch.float64, device=self.ranks.device)
        dist.all_reduce(told)
        first, *rest = told.tolist()
        return first, dict(zip(self._reported, rest, strict=True))

    def _require_same_start(self, network: nn.Module) -> None:
        hashed = hashlib.sha256()
        for name, parameter in network.named_parameters():
            first = parameter.detach().flatten()[: 1 << 12].cpu().contiguous()
            hashed.update(name.encode() + first.view(torch.uint8).numpy().tobytes())
        if len(set(all_json(hashed.hexdigest()))) > 1:
            raise TrainingError(
                "The processes were given different weights to start from",
                remedy="Load them from one file, or initialise them with one seed, on every process.",
            )
