"""The mesh: how many processes split the work along which axis, as one value; and the groups of a run under way.

    world = pipeline · data · shard · expert · context · tensor        (the last varies fastest: neighbours talk most)

- ``data``: every rank has the whole weights and other rows (Li 2020, arXiv 2006.15704)
- ``shard``: other rows, and of weights, gradients and moments a part each (Rajbhandari 2019, arXiv 1910.02054; Zhao 2023,
  arXiv 2304.11277)
- ``expert``: other rows, and a part of the experts each (Lepikhin 2020, arXiv 2006.16668)
- ``context``: other tokens of the same rows (Liu 2023, arXiv 2310.01889)
- ``tensor``: the same tokens, and a part of every wide matrix (Shoeybi 2019, arXiv 1909.08053)
- ``pipeline``: the same rows, and a part of the blocks (Huang 2018, arXiv 1811.06965)

What does not go together (all else does):

| axes | why it is refused |
|---|---|
| pipeline + shard | a stage leaves the network in the middle of its forward pass, where FSDP2 waits for its end |
| pipeline + context | key-value blocks would travel a ring whose members compute other micro-batches |
| context + expert | a rank's share of a row is not the row, in which experts count their room |
| tensor + expert | the ranks of one would need groups of the other for every block of rows; shard experts with ``shard`` |

What an axis refuses of a network or of settings, when the run begins:

| axis | refused | why |
|---|---|---|
| tensor | mixers other than full attention; norms over all heads; biases and sinks by head | parts need each other |
| tensor, expert | stored weights; attached techniques with weights of their own | neither is made of columns and rows |
| context | recurrent mixers; windows, biases, caps and sinks of attention | states go on; the ring knows order alone |
| expert | a network without experts | there is nothing to spread |
| pipeline | fewer blocks than stages; a head that is no language model's | there is nothing to cut |
| shard, expert, tensor | optimizers other than AdamW and Lion | they look at whole matrices |
| all | rechecks; averages of weights; losses that change the network; networks that are no `Decoder` | ranks would part |
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore
from torch.distributed.device_mesh import DeviceMesh

from almanac.core.errors import UnsupportedError
from almanac.core.value import Value

AXES: tuple[str, ...] = ("pipeline", "data", "shard", "expert", "context", "tensor")
ROWS: tuple[str, ...] = ("data", "shard", "expert")  # ranks along these see other rows
TOKENS: tuple[str, ...] = (*ROWS, "context")  # ranks along these see other tokens

REFUSED = {
    (
        "pipeline",
        "shard",
    ): "a stage leaves the network in the middle of its forward pass, where FSDP2 waits for its end",
    ("pipeline", "context"): "key-value blocks would travel a ring whose members compute other micro-batches",
    ("context", "expert"): "a rank's share of a row is not the row, in which experts count their room",
    ("tensor", "expert"): "the ranks of one would need groups of the other for every block of rows",
}


@dataclass(frozen=True, kw_only=True)
class Mesh(Value):
    """Ranks along each axis. ``schedule`` orders a pipeline's micro-batches: "1f1b" or "gpipe".

    Raises UnsupportedError for axes that do not go together, and for sizes below one.
    """

    data: int = 1
    shard: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    pipeline: int = 1
    schedule: str = "1f1b"

    def __post_init__(self) -> None:
        if min(self.sizes) < 1:
            raise UnsupportedError(f"A mesh of {self.sizes}", remedy="Give every axis one rank at least.")
        if self.schedule not in ("1f1b", "gpipe"):
            raise UnsupportedError(f"A pipeline schedule {self.schedule!r}", remedy="Give '1f1b' or 'gpipe'.")
        for (one, other), reason in REFUSED.items():
            if self.size(one) > 1 and self.size(other) > 1:
                raise UnsupportedError(f"{one} with {other} ranks: {reason}", remedy=f"Leave {one} or {other} at 1.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ranks along each of `AXES`."""
        return tuple(self.size(axis) for axis in AXES)

    @property
    def world(self) -> int:
        """Processes in all."""
        return math.prod(self.sizes)

    def size(self, *axes: str) -> int:
        """Ranks along these axes together."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return math.prod(cast("int", named[axis]) for axis in axes)


class Ranks:
    """The process groups of a mesh, on this process. Made by all processes in the same order.

    Raises:
        UnsupportedError: another number of processes was started than the mesh has ranks.
    """

    def __init__(self, mesh: Mesh) -> None:
        join(mesh)
        self.mesh = mesh
        self.device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        self.table = torch.arange(mesh.world).view(mesh.sizes)
        self.rank = dist.get_rank()
        self.place = dict(zip(AXES, (self.table == self.rank).nonzero()[0].tolist(), strict=True))
        self._groups: dict[tuple[str, ...], dist.ProcessGroup] = {}
        for axes in (*((axis,) for axis in AXES), TOKENS, ("data", "context"), ("data", "expert", "context")):
            self._make(axes)
        # of its own, since a thread may be writing a checkpoint while the next step runs
        self.saving = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))

    def size(self, *axes: str) -> int:
        """Ranks along these axes together."""
        return self.mesh.size(*axes)

    def index(self, *axes: str) -> int:
        """Which of them this process is."""
        place = 0
        for axis in axes:
            place = place * self.size(axis) + self.place[axis]
        return place

    def group(self, *axes: str) -> dist.ProcessGroup:
        """The processes that differ from this one along ``axes`` alone; more than one."""
        return self._groups[self._wide(axes)]

    def summed(self, tensor: torch.Tensor, *axes: str) -> torch.Tensor:
        """``tensor`` itself, in place the sum over these axes."""
        if self.size(*axes) > 1:
            dist.all_reduce(tensor, group=self.group(*axes))
        return tensor

    def sharding(self, *replicas: str) -> DeviceMesh:
        """The mesh that FSDP2 is given: whole copies along ``replicas``, if those are many, and parts along ``shard``."""
        shard = self.group("shard")
        if self.size(*replicas) == 1:
            return DeviceMesh.from_group(shard, self.device, mesh_dim_names=("shard",))
        axes = [axis for axis in AXES if axis not in (*replicas, "shard")]
        kept = self.table
        for axis in axes:
            kept = kept.select(AXES.index(axis), self.place[axis]).unsqueeze(AXES.index(axis))
        order = [AXES.index(axis) for axis in (*replicas, "shard", *axes)]
        table = kept.permute(order).reshape(self.size(*replicas), self.size("shard"))
        names = ("replicas", "shard")
        return DeviceMesh.from_group([self.group(*replicas), shard], self.device, mesh=table, mesh_dim_names=names)

    def _wide(self, axes: Sequence[str]) -> tuple[str, ...]:
        return tuple(axis for axis in AXES if axis in axes and self.size(axis) > 1)

    def _make(self, axes: Sequence[str]) -> None:
        wide = self._wide(axes)
        if not wide or wide in self._groups:
            return
        rest = [AXES.index(axis) for axis in AXES if axis not in wide]
        order = [*rest, *(AXES.index(axis) for axis in wide)]
        ranks = self.table.permute(order).reshape(-1, self.size(*wide)).tolist()
        mine, _ = dist.new_subgroups_by_enumeration(ranks)
        self._groups[wide] = cast("dist.ProcessGroup", mine)


def _named(mesh: Mesh) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in zip(AXES, mesh.sizes, strict=True) if size > 1) or "one"


def join(mesh: Mesh) -> int:
    """Meets the other processes, once, which torchrun started or the environment names in its way; returns one's rank.

    Raises:
        UnsupportedError: another number of processes was started than the mesh has ranks.
    """
    world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if world != mesh.world:
        raise UnsupportedError(
            f"A mesh of {mesh.world} ranks ({_named(mesh)}) and {world} processes",
            remedy=f"Start it with torchrun --nproc-per-node {mesh.world}, or give the mesh {world} ranks.",
        )
    if dist.is_initialized():
        return int(dist.get_rank())
    if "MASTER_ADDR" not in os.environ:  # one process, started by hand
        dist.init_process_group(_backend(), store=HashStore(), rank=0, world_size=1)
        return 0
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if restarts is None or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(_backend())
        return int(dist.get_rank())
    # the agent's store outlives a restart, and still holds the addresses of processes that are dead
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    again = PrefixStore(f"restart-{restarts}", store)
    dist.init_process_group(_backend(), store=again, rank=int(os.environ["RANK"]), world_size=world)
    return int(dist.get_rank())


def _backend() -> str:
    return "nccl" if torch.cuda.is_available() else "gloo"
