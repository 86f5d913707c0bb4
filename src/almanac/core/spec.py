"""A spec: what a module is. A tree of frozen values whose paths are module paths and checkpoint keys.

``layers.3.mixer.q`` names the same thing in the spec, in the module tree and in the checkpoint. A spec knows shapes,
initialisation and the logical name of every weight axis, so that one table of rules can shard what it never saw.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Self, cast

import torch
from torch import nn

from almanac.core.errors import SelectionError
from almanac.core.pattern import matches
from almanac.core.value import Value

AXES = ("embed", "heads", "kv_heads", "ffn", "expert", "vocab", "layer", "state", "none")
"""Logical axis names that a leaf may give its weight's dimensions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec(Value):
    """What a module is; ``build`` makes one. A field holding a spec, or a tuple of specs, is a child of that name."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A new module of this spec, on torch's current default device, weights not initialised."""

    def children(self) -> Iterator[tuple[str, Spec]]:
        """Direct children as (relative path, spec)."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Spec):
                yield field.name, value
            elif isinstance(value, tuple):
                for index, item in enumerate(cast("tuple[Any, ...]", value)):
                    if isinstance(item, Spec):
                        yield f"{field.name}.{index}", item

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Spec]]:
        """Every spec of the tree with its path, this one (path ``""``) first."""
        yield prefix, self
        for name, child in self.children():
            yield from child.walk(f"{prefix}.{name}" if prefix else name)

    def replace(self, pattern: str, **changes: Any) -> Self:
        """A copy of the tree in which every spec whose path matches ``pattern`` has ``changes``.

        Raises:
            SelectionError: the pattern matches no path.
        """
        paths = {path for path, _ in self.walk() if matches(pattern, path)}
        if not paths:
            raise SelectionError(f"No spec matches {pattern!r}", remedy=f"Paths look like {_examples(self)}.")
        return cast("Self", _replaced(self, "", paths, changes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initialiser(Value):
    """How a weight starts."""

    @abstractmethod
    def fill(self, tensor: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """Overwrites ``tensor`` in place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normal(Initialiser):
    """Gaussian with mean 0 and the given standard deviation."""

    std: float = 0.02

    def fill(self, tensor: torch.Tensor, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            tensor.normal_(0.0, self.std, generator=generator)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant(Initialiser):
    """The same value everywhere."""

    value: float = 0.0

    def fill(self, tensor: torch.Tensor, generator: torch.Generator | None = None) -> None:
        with torch.no_grad():
            tensor.fill_(self.value)


def _replaced(spec: Spec, path: str, paths: set[str], changes: dict[str, Any]) -> Spec:
    own: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        below = f"{path}.{field.name}" if path else field.name
        if isinstance(value, Spec):
            own[field.name] = _replaced(value, below, paths, changes)
        elif isinstance(value, tuple):
            items = cast("tuple[Any, ...]", value)
            own[field.name] = tuple(
                _replaced(item, f"{below}.{index}", paths, changes) if isinstance(item, Spec) else item
                for index, item in enumerate(items)
            )
    rebuilt = dataclasses.replace(spec, **own) if own else spec
    return dataclasses.replace(rebuilt, **changes) if path in paths else rebuilt


def _examples(spec: Spec) -> str:
    return ", ".join(path for path, _ in list(spec.walk())[1:4])
