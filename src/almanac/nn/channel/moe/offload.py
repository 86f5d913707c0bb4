"""Experts that stay elsewhere until a token asks for them: on the processor's memory, or in a file that is only mapped.

Eliseev 2023, arXiv 2312.17238, section 3: few experts answer each token and neighbours in a text often ask for the same, so
the last ones used are kept at hand and the rest is fetched. All maps of a model share one store of a stated size in
bytes, from which the least recently used matrix goes first. Outputs are those of the weights themselves. We do not guess
ahead.

For inference: what is offloaded is no parameter any more, so a model is saved before its experts are sent away.

    held = offload(model, room_bytes=1 << 30)                        # they stay in memory, or packed as they were stored
    held = offload(model, room_bytes=1 << 30, file=spill(model, "experts.safetensors"))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from almanac.core.errors import NotFoundError, ShapeError, UnsupportedError
from almanac.core.site import select
from almanac.core.weight import StoredWeight
from almanac.nn.channel.moe.experts import Experts


class Source(ABC):
    """Where the matrices of one map lie."""

    @abstractmethod
    def fetch(self, index: int) -> Tensor:
        """One expert's matrix [out, in], copied."""


class Memory(Source):
    """A dense weight [experts, out, in] or a stored one, which is expanded an expert at a time."""

    def __init__(self, weight: Tensor | StoredWeight) -> None:
        self.weight = weight

    def fetch(self, index: int) -> Tensor:
        weight = self.weight
        return weight.expert(index) if isinstance(weight, StoredWeight) else weight.detach()[index].clone()


class MappedFile(Source):
    """A tensor [experts, out, in] of a safetensors file; nothing is read but what is fetched."""

    def __init__(self, path: Path, name: str) -> None:
        self.handle = safe_open(path, framework="pt")
        if name not in self.handle.keys():  # noqa: SIM118 (it is no mapping)
            raise NotFoundError(f"{path} holds no {name!r}", remedy="Write it with `spill` from the same model.")
        self.slices = self.handle.get_slice(name)
        self.shape = tuple(self.slices.get_shape())

    def fetch(self, index: int) -> Tensor:
        return self.slices[index]


@dataclass
class Store:
    """The matrices at hand, at most ``room_bytes`` of them, and how often they were.

    ``hits`` and ``misses`` count askings for an expert's matrix, ``fetched_bytes`` what had to be brought.
    """

    room_bytes: int
    hits: int = 0
    misses: int = 0
    fetched_bytes: int = 0
    kept: OrderedDict[tuple[str, int], Tensor] = field(default_factory=OrderedDict)

    @property
    def held_bytes(self) -> int:
        """Bytes at hand now."""
        return sum(matrix.nbytes for matrix in self.kept.values())

    @property
    def hit_rate(self) -> float:
        """Share of askings that found the matrix at hand; 0 if nobody asked."""
        return self.hits / max(1, self.hits + self.misses)

    def get(self, name: str, index: int, source: Source, device: torch.device) -> Tensor:
        """The matrix of an expert of the map ``name`` on ``device``."""
        key = (name, index)
        if (found := self.kept.get(key)) is not None:
            self.hits += 1
            self.kept.move_to_end(key)
            return found
        self.misses += 1
        matrix = source.fetch(index).to(device)
        self.fetched_bytes += matrix.nbytes
        room = self.room_bytes - matrix.nbytes
        while self.kept and self.held_bytes > room:
            self.kept.popitem(last=False)
        if room >= 0:  # one that is larger than all the room is used and forgotten
            self.kept[key] = matrix
        return matrix


class Offloaded(StoredWeight):
    """The weight of a map whose experts are fetched from ``source`` through ``store``."""

    def __init__(
        self, name: str, source: Source, store: Store, *, shape: tuple[int, ...], device: torch.device
    ) -> None:
        super().__init__(shape)
        self.name, self.source, self.shared, self.device = name, source, store, device

    def dense(self) -> Tensor:
        if torch.compiler.is_compiling():
            raise UnsupportedError("Offloaded experts cannot be compiled", remedy="Run this model without compiling.")
        return torch.stack([self.source.fetch(index) for index in range(self.shape[0])]).float().to(self.device)

    def expert(self, index: int) -> Tensor:
        return self.shared.get(self.name, index, self.source, self.device)


def offload(model: nn.Module, *, room_bytes: int, targets: str = "**", file: Path | None = None) -> Store:
    """Sends the selected experts away, in place; returns the store they come back through.

    ``file``: a safetensors file with their weights by name (see `spill`); None keeps them where they are in memory and copies
    what is asked for to the device that the model's other parameters are on.

    Raises:
        SelectionError: no experts. UnsupportedError: negative room. NotFoundError, ShapeError: the file is another model's.
    """
    if room_bytes < 0:
        raise UnsupportedError(f"Room for {room_bytes} bytes", remedy="Give 0 or more.")
    sites = select(model, targets, of=Experts)
    inside = {id(parameter) for site in sites.values() for parameter in site.parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    device = outside[0].device if outside else torch.device("cpu")
    store = Store(room_bytes)
    sources: dict[str, Source] = {}
    for path, site in sites.items():  # all are found before the first is changed
        sources[path] = Memory(site.weight) if file is None else _mapped(file, path, site)
    for path, site in sites.items():
        site.set_weight(Offloaded(path, sources[path], store, shape=tuple(site.shape), device=device))
    return store


def spill(model: nn.Module, path: str | Path, *, targets: str = "**") -> Path:
    """Writes the selected experts' dense weights to a safetensors file and returns its path."""
    sites = select(model, targets, of=Experts)
    tensors = {f"{name}.weight": site.dense_weight().detach().contiguous().cpu() for name, site in sites.items()}
    save_file(tensors, path)
    return Path(path)


def _mapped(file: Path, path: str, site: Experts) -> MappedFile:
    source = MappedFile(file, f"{path}.weight")
    if source.shape != tuple(site.shape):
        raise ShapeError(
            f"{file} holds {path} as {source.shape}, the model has {tuple(site.shape)}",
            remedy="Use the file that was written from this model.",
        )
    return source
