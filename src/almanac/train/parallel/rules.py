"""Rules: which logical axis of a weight is cut along which axis of the mesh; and what a cut weight holds.

Leaves name their weight's axes (``heads``, ``ffn``, ``vocab``, ``expert``: see `core.spec`), so one table cuts layers it has
never seen. A `Cut` says where a rank's part lies in the whole: the arithmetic of checkpoints that move between meshes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from almanac.core.errors import UnsupportedError
from almanac.core.site import AROUND, Leaf
from almanac.core.weight import StoredWeight
from almanac.train.parallel.mesh import Ranks

RULES = {"heads": "tensor", "kv_heads": "tensor", "ffn": "tensor", "vocab": "tensor", "expert": "expert"}
"""Logical axis of a weight -> axis of the mesh; what is not named stays whole."""


@dataclass(frozen=True)
class Cut:
    """A part of a tensor: where it begins in the whole and how large it is; ``along`` the mesh axes that cut it.

    ``summed``: mesh axes whose ranks hold the same part and each a share of its gradient.
    """

    whole: tuple[int, ...]
    start: tuple[int, ...]
    size: tuple[int, ...]
    along: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()

    @classmethod
    def none(cls, tensor: Tensor) -> Cut:
        """All of a tensor."""
        shape = tuple(tensor.shape)
        return cls(shape, (0,) * len(shape), shape)

    def cut(self, dim: int, *, start: int, size: int, axis: str) -> Cut:
        """A part of this part, ``start`` counted from where this one begins."""
        starts, sizes = list(self.start), list(self.size)
        starts[dim], sizes[dim] = starts[dim] + start, size
        return Cut(self.whole, tuple(starts), tuple(sizes), (*self.along, axis), self.summed)

    def of(self, whole: Tensor) -> Tensor:
        """This part of the whole, a view."""
        for dim, (start, size) in enumerate(zip(self.start, self.size, strict=True)):
            whole = whole.narrow(dim, start, size)
        return whole

    @property
    def nbytes(self) -> int:
        """In float32."""
        return 4 * math.prod(self.size)


@dataclass
class Layout:
    """Where every parameter of a placed network lies in the whole; ``order`` are the names before it was placed."""

    cuts: dict[str, Cut] = field(default_factory=dict[str, Cut])
    order: list[str] = field(default_factory=list[str])

    def also(self, name: str, axis: str) -> None:
        """Notes that ranks along ``axis`` each hold a share of this parameter's gradient."""
        old = self.cuts[name]
        self.cuts[name] = Cut(old.whole, old.start, old.size, old.along, (*old.summed, axis))


def cut_leaf(leaf: Leaf, path: str, ranks: Ranks, layout: Layout, *, axis: str) -> None:
    """Keeps of a leaf's weight and bias what the rules give this rank along ``axis`` of the mesh.

    A bias beside a weight that is cut along its inputs is added to a sum: it stays with the first rank alone.

    Raises:
        UnsupportedError: something is attached to the leaf, its weight is stored, or its size does not divide.
    """
    refuse_changed(leaf, path, axis)
    found = [dim for dim, name in enumerate(leaf.axes) if RULES.get(name) == axis]
    for dim in found:
        size, count = leaf.shape[dim], ranks.size(axis)
        if size % count:
            raise UnsupportedError(
                f"{path} has {size} {leaf.axes[dim]}, which {count} {axis} ranks cannot share evenly",
                remedy=f"Choose a number of {axis} ranks that divides it.",
            )
        part = size // count
        _keep(leaf, path, "weight", layout, (dim, ranks.index(axis) * part, part, axis))
        if leaf.bias is None:
            continue
        if dim < len(leaf.shape) - 1:
            _keep(leaf, path, "bias", layout, (dim, ranks.index(axis) * part, part, axis))
        elif ranks.index(axis):
            del layout.cuts[f"{path}.bias"]
            leaf.register_parameter("bias", None)
        else:
            old = layout.cuts[f"{path}.bias"]
            layout.cuts[f"{path}.bias"] = Cut(old.whole, old.start, old.size, (*old.along, axis), old.summed)


def refuse_changed(leaf: Leaf, path: str, axis: str) -> None:
    """Raises UnsupportedError for a leaf that is not a plain weight."""
    if AROUND in dict(leaf.named_children()) and any(p for p in leaf.chain if list(p.parameters())):
        raise UnsupportedError(
            f"{path} has a technique attached, whose own weights {axis} ranks would have to cut",
            remedy="Fold it first, or use the shard axis, which cuts anything.",
        )
    if isinstance(leaf.weight, StoredWeight):
        raise UnsupportedError(
            f"{path} is a stored weight, whose codes {axis} ranks cannot cut by rows and columns",
            remedy="Use the shard axis, which cuts codes as any other weight.",
        )


def _keep(leaf: Leaf, path: str, name: str, layout: Layout, part: tuple[int, int, int, str]) -> None:
    dim, start, size, axis = part
    parameter = leaf.get_parameter(name)
    with torch.no_grad():
        kept = parameter.narrow(dim, start, size).clone(memory_format=torch.contiguous_format)
    leaf.register_parameter(name, nn.Parameter(kept, requires_grad=parameter.requires_grad))
    key = f"{path}.{name}"
    layout.cuts[key] = layout.cuts[key].cut(dim, start=start, size=size, axis=axis)
