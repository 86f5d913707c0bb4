"""Checkpoints of many ranks: each writes its parts, once for all that hold the same, and reads what a new mesh gives it.

Dice are saved by share of the data. A share that the checkpoint does not know, there being more ranks now, throws its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from almanac.core.errors import AlmanacError, TrainingError
from almanac.train.parallel.collectives import all_json
from almanac.train.parallel.gathering import owns
from almanac.train.parallel.mesh import TOKENS, Ranks
from almanac.train.parallel.rules import Cut, Layout
from almanac.train.pieces import Need, Slices, Writers
from almanac.train.training import OPTIMIZER, PARAMETER, RNG


class Shards(Writers):
    """The ranks of a mesh, whose tensors lie as ``layout`` says."""

    def __init__(self, ranks: Ranks, layout: Layout) -> None:
        self.ranks, self.layout = ranks, layout

    @property
    def leads(self) -> bool:
        return self.ranks.rank == 0

    @property
    def file(self) -> str:
        return f"tensors-{self.ranks.rank:05d}-of-{self.ranks.mesh.world:05d}.safetensors"

    def together(self, value: Any) -> list[Any]:
        return all_json(value, self.ranks.saving)

    def decided(self, make: Callable[[], Any]) -> Any:
        value, error = _attempt(make) if self.leads else (None, None)
        value, problem = self.together([value, None if error is None else str(error)])[0]
        return _or_raise(value, error, problem)

    def agreed(self, make: Callable[[], Any]) -> list[Any]:
        value, error = _attempt(make)
        told = self.together([value, None if error is None else str(error)])
        problem = next((problem for _, problem in told if problem is not None), None)
        _or_raise(value, error, problem)
        return [value for value, _ in told]

    def given(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Slices]:
        held, slices = dict[str, Tensor](), Slices()
        share = self.ranks.index(*TOKENS)
        for name, tensor in tensors.items():
            cut = self._cut(name, tuple(tensor.shape))
            if name == RNG:
                if self.ranks.index("tensor", "pipeline"):
                    continue
                name, cut = (RNG if not share else f"{RNG}/{share}"), Cut.none(tensor)
            elif not owns(self.ranks, cut) or not tensor.numel():
                continue
            held[name] = tensor
            slices[name] = {"whole": list(cut.whole), "start": list(cut.start)}
        return held, slices

    def facts(self, own: dict[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for scalars in self.together(own["optimizer"]):
            merged |= scalars
        return {**own, "optimizer": merged}

    def needed(self, wholes: Mapping[str, tuple[int, ...]]) -> dict[str, Need]:
        found: dict[str, Need] = {}
        for name, shape in wholes.items():
            if name.startswith(RNG):
                continue
            owner = _owner(name)
            if owner is not None and owner not in self.layout.cuts:
                continue  # another stage's
            cut = self.layout.cuts[owner] if owner is not None else None
            fits = cut is not None and cut.whole == shape
            found[name] = Need(name, cut.start, cut.size) if fits and cut else Need(name, (0,) * len(shape), shape)
        share = self.ranks.index(*TOKENS)
        dice = f"{RNG}/{share}" if f"{RNG}/{share}" in wholes else RNG
        found[RNG] = Need(dice, (0,), wholes[dice])
        if share and dice == RNG:  # not its own: `finished` makes other dice of them
            found[f"{RNG}/other"] = found.pop(RNG)
        return found

    def finished(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        other = tensors.pop(f"{RNG}/other", None)
        if other is not None:
            seen = hashlib.sha256(other.numpy().tobytes() + bytes([self.ranks.index(*TOKENS) % 256])).digest()
            dice = torch.Generator().manual_seed(int.from_bytes(seen[:7], "big"))
            tensors[RNG] = dice.get_state()
        mine = {name: scalars for name, scalars in facts["optimizer"].items() if name in self.layout.cuts}
        return tensors, {**facts, "optimizer": mine}

    def _cut(self, name: str, shape: tuple[int, ...]) -> Cut:
        """Where a tensor of the run's state lies: as its parameter, if it is of that shape, or whole on every rank."""
        owner = _owner(name)
        cut = self.layout.cuts[owner] if owner is not None else None
        if cut is not None and cut.size == shape:
            return cut
        along = cut.along if cut is not None else ()
        return Cut(shape, (0,) * len(shape), shape, tuple(axis for axis in along if axis == "pipeline"))


def _owner(name: str) -> str | None:
    """The parameter that a tensor of the run's state belongs to."""
    if name.startswith(PARAMETER):
        return name.removeprefix(PARAMETER)
    return name.removeprefix(OPTIMIZER).rpartition("/")[0] if name.startswith(OPTIMIZER) else None


def _attempt(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except (AlmanacError, OSError) as error:
        return None, error


def _or_raise(value: Any, error: Exception | None, problem: str | None) -> Any:
    if error is not None:
        raise error
    if problem is not None:
        raise TrainingError(
            f"Another process could not do its part of a checkpoint: {problem}",
            remedy="Mend that, then start the same run again: it goes on from its last checkpoint.",
        )
    return value
