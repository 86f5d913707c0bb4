"""Who writes a checkpoint, and how its tensors are cut into files: one process all of them, or each rank its parts.

A generation in parts has a file of tensors per rank and ``slices.json``, which says where each lies in the whole:

    {"tensors-00001-of-00002.safetensors": {"parameter/embed.weight": {"whole": [97, 64], "start": [49, 0]}, ...}, ...}

So it can be read by any number of processes, each reading from the mapped files no more than what it needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from almanac.core.errors import FileFormatError
from almanac.files.safetensors import open_safetensors
from almanac.files.strict_json import read_json

TENSORS, SLICES = "tensors.safetensors", "slices.json"

Slices = dict[str, dict[str, list[int]]]
"""By tensor name: the shape of the ``whole``, and the ``start`` of the part along each dimension."""


@dataclass(frozen=True)
class Need:
    """A part of a saved tensor: ``source`` is its name in the checkpoint."""

    source: str
    start: tuple[int, ...]
    size: tuple[int, ...]


class Writers(ABC):
    """The processes of a run, as its checkpoints see them."""

    @property
    @abstractmethod
    def leads(self) -> bool:
        """Whether this process moves folders and pointers."""

    @property
    @abstractmethod
    def file(self) -> str:
        """The name of this process's file of tensors."""

    @abstractmethod
    def together(self, value: Any) -> list[Any]:
        """The JSON values of all processes, once all have given theirs."""

    @abstractmethod
    def decided(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives the leader, on every process; an AlmanacError or OSError of the leader's is raised by all."""

    @abstractmethod
    def agreed(self, make: Callable[[], Any]) -> list[Any]:
        """What ``make`` gives each process, JSON values; an AlmanacError or OSError of any is raised by all."""

    @abstractmethod
    def given(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Slices]:
        """What this process writes, and where it lies in the whole."""

    @abstractmethod
    def facts(self, own: dict[str, Any]) -> dict[str, Any]:
        """What is written once, from what each process knows."""

    @abstractmethod
    def needed(self, wholes: Mapping[str, tuple[int, ...]]) -> dict[str, Need]:
        """What this process reads of a checkpoint that holds ``wholes``, by the name it is known by here."""

    @abstractmethod
    def finished(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What was read, and the facts that concern this process."""


class OneWriter(Writers):
    """One process, which writes one file of whole tensors."""

    @property
    def leads(self) -> bool:
        return True

    @property
    def file(self) -> str:
        return TENSORS

    def together(self, value: Any) -> list[Any]:
        return [value]

    def decided(self, make: Callable[[], Any]) -> Any:
        return make()

    def agreed(self, make: Callable[[], Any]) -> list[Any]:
        return [make()]

    def given(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Slices]:
        return dict(tensors), {}

    def facts(self, own: dict[str, Any]) -> dict[str, Any]:
        return own

    def needed(self, wholes: Mapping[str, tuple[int, ...]]) -> dict[str, Need]:
        return {name: Need(name, (0,) * len(shape), shape) for name, shape in wholes.items() if not _is_others(name)}

    def finished(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tensors, facts


def _is_others(name: str) -> bool:
    return name.startswith("rng/torch/")  # the dice of ranks that saw other data


def tensors_from(folder: Path, writers: Writers) -> dict[str, Tensor]:
    """What this process needs of a generation, in memory of its own.

    Raises FileFormatError where the parts do not cover it.
    """
    slices = read_json(folder / SLICES) if (folder / SLICES).exists() else None
    if slices is None:
        file = open_safetensors(folder / TENSORS)
        shapes = {name: tuple(file.entries[name].shape) for name in file}
        parts = {name: [(file, (0,) * len(shape))] for name, shape in shapes.items()}
    else:
        assert isinstance(slices, dict)
        files = {name: open_safetensors(folder / name) for name in slices}
        shapes = {key: tuple(at["whole"]) for held in slices.values() for key, at in held.items()}
        parts = {name: [] for name in shapes}
        for name, held in slices.items():
            for key, at in held.items():
                parts[key].append((files[name], tuple(at["start"])))
    return {
        name: _assembled(need, [(file[need.source], start) for file, start in parts[need.source]])
        for name, need in writers.needed(shapes).items()
    }


def _assembled(need: Need, parts: Iterable[tuple[Tensor, tuple[int, ...]]]) -> Tensor:
    """The needed part, copied from whatever overlaps it."""
    found, filled = None, 0
    for tensor, start in parts:
        found = tensor.new_empty(need.size) if found is None else found
        low = [max(a, b) for a, b in zip(start, need.start, strict=True)]
        high = [min(a + n, b + m) for a, n, b, m in zip(start, tensor.shape, need.start, need.size, strict=True)]
        if any(end <= begin for begin, end in zip(low, high, strict=True)):
            continue
        source = tuple(slice(b - a, e - a) for b, e, a in zip(low, high, start, strict=True))
        target = tuple(slice(b - a, e - a) for b, e, a in zip(low, high, need.start, strict=True))
        found[target] = tensor[source]
        filled += found[target].numel()
    if found is None or filled != found.numel():
        raise FileFormatError(
            f"The parts of {need.source} do not make the whole", remedy="The checkpoint is damaged: use an older one."
        )
    return found
