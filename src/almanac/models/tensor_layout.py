"""How a family's files lay out what is a weight of ours: fused, transposed, interleaved by head, one tensor per expert.

A name table (`Key`) says which of their modules hold which of ours; a layout says how, and both directions are exact: they
only move numbers, but for `Decay`, which says what it costs. A table may hold several rows for one weight of ours, since
files of one family were written in several ways: whichever is there is read, and the first is written.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Size, Tensor

from almanac.core.errors import FileFormatError
from almanac.core.value import Value

if TYPE_CHECKING:
    from almanac.models.family import Key

LEAVES = ("weight", "bias")


@dataclass(frozen=True, kw_only=True)
class Layout(Value):
    """How tensors of theirs hold tensors of ours; a bias is laid out like the weight it belongs to."""

    @abstractmethod
    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        """Theirs -> ours, of the given ``shapes``. Raises FileFormatError where they do not fit."""

    @abstractmethod
    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        """Ours -> theirs: the inverse of ``read``."""


@dataclass(frozen=True, kw_only=True)
class Same(Layout):
    """One tensor each, as it is."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        return list(theirs)

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return list(ours)


@dataclass(frozen=True, kw_only=True)
class Transposed(Layout):
    """Matrices as [in, out], as GPT-2's; a stack of matrices [experts, in, out] likewise."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        return [_turned(tensor, len(shape)) for tensor, shape in zip(theirs, shapes, strict=True)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [_turned(tensor, tensor.dim()) for tensor in ours]


@dataclass(frozen=True, kw_only=True)
class Concat(Layout):
    """One of theirs is several of ours, one after another along ``dim`` of ours; ``transposed`` as in `Transposed`."""

    dim: int = 0
    transposed: bool = False

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        (whole,) = theirs
        whole = _turned(whole, whole.dim()) if self.transposed else whole
        sizes = [shape[self.dim] for shape in shapes]
        if whole.dim() <= self.dim or sum(sizes) != whole.shape[self.dim]:
            raise _unfit(whole, f"parts of {sizes} along dimension {self.dim}")
        return list(whole.split(sizes, dim=self.dim))

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        whole = torch.cat(list(ours), dim=self.dim)
        return [_turned(whole, whole.dim()) if self.transposed else whole]


@dataclass(frozen=True, kw_only=True)
class PerHead(Layout):
    """Several of ours side by side within each of ``groups`` of heads: rows [groups, those of the first, the second, ...].

    Queries, keys and values in one group per head are GPT-NeoX's and BLOOM's way, in one per key-value head Falcon's.
    """

    groups: int

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        (whole,) = theirs
        sizes = [shape[0] for shape in shapes]
        if any(size % self.groups for size in sizes) or whole.shape != (sum(sizes), *shapes[0][1:]):
            raise _unfit(whole, f"parts of {sizes} rows in {self.groups} groups")
        parts = whole.unflatten(0, (self.groups, -1)).split([size // self.groups for size in sizes], dim=1)
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([part.unflatten(0, (self.groups, -1)) for part in ours], dim=1).flatten(0, 1)]


@dataclass(frozen=True, kw_only=True)
class Stack(Layout):
    """Many of theirs, one for each expert, are one of ours [experts, ...]."""

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        (shape,) = shapes
        if len(theirs) != shape[0] or any(tensor.shape != shape[1:] for tensor in theirs):
            raise _unfit(theirs[0], f"one of {shape[0]} experts of shape {tuple(shape[1:])}")
        return [torch.stack(list(theirs))]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [part.contiguous() for part in ours[0].unbind()]


@dataclass(frozen=True, kw_only=True)
class Squeeze(Layout):
    """Theirs has a dimension of size 1 that ours has not, as a depthwise convolution [channels, 1, width]."""

    dim: int = 1

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        return [
            tensor.squeeze(self.dim) if tensor.dim() > len(shape) else tensor
            for tensor, shape in zip(theirs, shapes, strict=True)
        ]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.unsqueeze(self.dim) if tensor.dim() >= self.dim + 1 else tensor for tensor in ours]


@dataclass(frozen=True, kw_only=True)
class Unsqueeze(Layout):
    """Ours has a dimension of size 1 that theirs has not: the inverse of `Squeeze`."""

    dim: int = 1

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        return [tensor.reshape(shape) for tensor, shape in zip(theirs, shapes, strict=True)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.squeeze(self.dim) if tensor.dim() >= self.dim + 2 else tensor for tensor in ours]


@dataclass(frozen=True, kw_only=True)
class Decay(Layout):
    """Theirs, of ``shape``, is A = -exp(a) of our a, as GGUF holds the decay of state-space models.

    Not exact: A is rounded to float32 once, so that log(-A) is a again where |a| >= 1 and within 6e-8 of it below, and
    writing that again gives the same A within an ulp.
    """

    shape: tuple[int, ...]

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        (whole,), (shape,) = theirs, shapes
        if whole.numel() != shape.numel():
            raise _unfit(whole, f"{tuple(shape)}")
        if not bool(((whole < 0) & whole.isfinite()).all()):
            raise FileFormatError(
                "A state of the file does not fade: its decay must be below zero", remedy="Fetch the model again."
            )
        return [(-whole.double()).log().to(torch.float32).reshape(shape)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [-ours[0].double().exp().to(torch.float32).reshape(self.shape)]


@dataclass(frozen=True, kw_only=True)
class KeysAndValues(Layout):
    """Ours [heads · (key + value), rank] is two of theirs: keys [heads, rank, key] and values [heads, value, rank]."""

    heads: int
    key_dim: int

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        (keys, values), (shape,) = theirs, shapes
        value_dim = shape[0] // self.heads - self.key_dim
        if keys.shape != (self.heads, shape[1], self.key_dim) or values.shape != (self.heads, value_dim, shape[1]):
            raise _unfit(keys, f"the keys of {self.heads} heads of {self.key_dim}")
        return [torch.cat([keys.transpose(1, 2), values], dim=1).reshape(shape)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        heads = ours[0].unflatten(0, (self.heads, -1))
        return [heads[:, : self.key_dim].transpose(1, 2).contiguous(), heads[:, self.key_dim :].contiguous()]


@dataclass(frozen=True, kw_only=True)
class Reshaped(Layout):
    """One tensor of another shape with the same numbers in the same order; ``shape`` is theirs."""

    shape: tuple[int, ...]

    def read(self, theirs: Sequence[Tensor], shapes: Sequence[Size]) -> list[Tensor]:
        (whole,), (shape,) = theirs, shapes
        if whole.numel() != shape.numel():
            raise _unfit(whole, f"{tuple(shape)}")
        return [whole.reshape(shape)]

    def write(self, ours: Sequence[Tensor]) -> list[Tensor]:
        return [ours[0].reshape(self.shape)]


def to_ours(
    rows: Iterable[Key], shapes: Mapping[str, Size], source: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the names that no row knows.

    ``rows`` are expanded (`family.rows`); ``shapes`` those of our model; ``source`` may read its tensors when asked.
    Raises FileFormatError where only some of the tensors that make up a weight are there, or they do not fit.
    """
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in rows:
        for leaf in LEAVES[:1] if row.bare else LEAVES:
            names = row.theirs_of(leaf)
            found = [name for name in names if name in source]
            if not found:
                continue
            if len(found) != len(names):
                missing = next(name for name in names if name not in source)
                raise FileFormatError(f"The weights lack {missing!r}", remedy="Fetch the complete model again.")
            used.update(names)
            ours = [f"{name}.{leaf}" for name in row.our_names]
            if row.layout == Same():
                tensors.update(zip(ours, (source[name] for name in names), strict=True))
                continue
            if unknown := [name for name in ours if name not in shapes]:
                raise FileFormatError(
                    f"The weights hold {names[0]!r}, and the configuration describes no {unknown[0]!r}",
                    remedy="The weights and config.json belong to different models.",
                )
            parts = row.layout.read([source[name] for name in names], [shapes[name] for name in ours])
            tensors.update(zip(ours, parts, strict=True))
    return tensors, [name for name in source if name not in used]


def to_theirs(rows: Iterable[Key], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the family's own names; of several rows for one weight the first is written.

    Raises KeyError for a tensor that no row names.
    """
    out: dict[str, Tensor] = {}
    written: set[str] = set()
    for row in rows:
        for leaf in LEAVES[:1] if row.bare else LEAVES:
            ours = [f"{name}.{leaf}" for name in row.our_names]
            if not all(name in tensors for name in ours) or written & set(ours):
                continue
            written.update(ours)
            out.update(zip(row.theirs_of(leaf), row.layout.write([tensors[name] for name in ours]), strict=True))
    if left := [name for name in tensors if name not in written]:
        raise KeyError(left[0])
    return out


def _turned(tensor: Tensor, dims: int) -> Tensor:
    return tensor.transpose(-1, -2).contiguous() if dims >= 2 else tensor


def _unfit(tensor: Tensor, wanted: str) -> FileFormatError:
    return FileFormatError(
        f"A tensor of shape {tuple(tensor.shape)} cannot be {wanted}",
        remedy="The weights and config.json belong to different models.",
    )
