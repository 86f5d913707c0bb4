"""A spec as an outline: one line for each part, equal neighbours as one, what repeats in turn as one pattern."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from almanac.core.spec import Initialiser, Spec
from almanac.core.value import Value

QUIET = {"axes", "initialiser"}  # of no interest to who reads what a model is


@dataclass(frozen=True)
class Part:
    """One line: its path below the part above (``layers.{0-2,4-6}``), kind, sizes in words, parameters of all its copies."""

    path: str
    kind: str
    sizes: str
    parameters: int
    copies: int
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "kind": self.kind,
            "sizes": self.sizes,
            "parameters": self.parameters,
            "copies": self.copies,
            "parts": [part.to_dict() for part in self.parts],
        }


def outline(spec: Spec, path: str = "", copies: int = 1) -> Part:
    """The outline of a spec."""
    return Part(path, _short(spec), _sizes(spec), copies * parameters_of(spec), copies, tuple(_parts(spec, copies)))


def lines(part: Part, depth: int = 0) -> list[tuple[str, str, int]]:
    """(indented path and kind, sizes, parameters) from the top down."""
    times = f" x{part.copies}" if "{" in part.path else ""
    head = f"{part.path}{times}: {part.kind}" if part.path else part.kind
    return [
        (f"{'  ' * depth}{head}", part.sizes, part.parameters),
        *(line for below in part.parts for line in lines(below, depth + 1)),
    ]


def parameters_of(spec: Spec) -> int:
    """Numbers that a module of this spec owns."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in spec.build().parameters())


def numbers(indices: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> ``0-2,5``; every n-th is told as such: [0, 2, 4, 6] -> ``0-6/2``."""
    if len(indices) > 2:
        step = indices[1] - indices[0]
        if step > 1 and list(indices) == list(range(indices[0], indices[-1] + 1, step)):
            return f"{indices[0]}-{indices[-1]}/{step}"
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _parts(spec: Spec, copies: int) -> list[Part]:
    """The children; of a tuple of specs one for each that differs, with the places where it stands."""
    found: list[Part] = []
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Spec):
            found.append(outline(value, field.name, copies))
        elif isinstance(value, tuple) and any(isinstance(item, Spec) for item in value):
            places: dict[Spec, list[int]] = {}
            for index, item in enumerate(value):
                if isinstance(item, Spec):
                    places.setdefault(item, []).append(index)
            for item, indices in places.items():
                found.append(outline(item, f"{field.name}.{{{numbers(indices)}}}", copies * len(indices)))
    return found


def _short(spec: Spec) -> str:
    """``nn.attention.full.Attention`` -> ``Attention``."""
    return spec.kind().rpartition(".")[2]


def _sizes(spec: Spec) -> str:
    """The fields that are no parts and have no default value, in words."""
    told = []
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        is_part = isinstance(value, Spec | Initialiser) or (
            isinstance(value, tuple) and any(isinstance(item, Spec) for item in value)
        )
        if not is_part and field.name not in QUIET and (field.default is dataclasses.MISSING or value != field.default):
            told.append(f"{field.name}={_word(value)}")
    return " ".join(told)


def _word(value: Any) -> str:
    if isinstance(value, Value):
        inner = {name: item for name, item in value.to_dict().items() if name != "kind"}
        name = value.kind().rpartition(".")[2]
        text = " ".join(f"{key}={item}" for key, item in inner.items() if not isinstance(item, list | dict))
        return f"{name}({text})" if text else name
    if isinstance(value, tuple):
        items = ",".join(map(str, value[:8]))
        return f"({items}{',...' if len(value) > 8 else ''})"
    return str(value)
