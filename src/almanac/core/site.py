"""A site: where a technique may act.

Every leaf (linear map, embedding) and every named sublayer (mixer, channel, block) is a site with an ordered chain of
*around* wrappers. A wrapper receives the next callable, as middleware does; the last one attached is the outermost.
Wrappers live under ``<site>.around.<name>``: no base key is ever renamed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from almanac.core.errors import SelectionError, ShapeError
from almanac.core.pattern import matches
from almanac.core.spec import Initialiser
from almanac.core.weight import StoredWeight

AROUND = "around"


class Around(nn.Module, ABC):
    """Something that happens around a call; ``forward(following, *inputs)`` calls ``following`` as it sees fit."""

    @abstractmethod
    def forward(self, following: Callable[..., Any], *inputs: Any) -> Any:
        """The wrapped call."""


class Site(nn.Module, ABC):
    """A named place in a model. Subclasses define ``compute``; ``forward`` runs it inside the chain."""

    def __init__(self) -> None:
        super().__init__()
        self._chain: tuple[Around, ...] = ()

    @abstractmethod
    def compute(self, *inputs: Any) -> Any:
        """What the site does when nothing is attached."""

    def forward(self, *inputs: Any) -> Any:
        if not self._chain:
            return self.compute(*inputs)
        call: Callable[..., Any] = self.compute
        for wrapper in self._chain:
            call = partial(wrapper, call)
        return call(*inputs)

    @property
    def chain(self) -> tuple[Around, ...]:
        """The wrappers, innermost first."""
        return self._chain

    def wrap(self, name: str, wrapper: Around) -> None:
        """Attaches ``wrapper`` as the outermost of the chain. Raises SelectionError if the name is taken or unfit."""
        if self.wrapper(name) is not None:
            raise SelectionError(f"{name!r} is already attached here", remedy="Detach it first or choose another name.")
        wrappers = self._wrappers() if AROUND in self._modules else nn.ModuleDict()
        try:
            wrappers[name] = wrapper.train(self.training)
        except KeyError as error:  # empty, dotted, or a word that torch keeps for itself
            raise SelectionError(f"{name!r} cannot name a wrapper", remedy="Choose another, such as 'lora'.") from error
        self.add_module(AROUND, wrappers)
        self._chain = (*self._chain, wrapper)

    def wrapper(self, name: str) -> Around | None:
        """The wrapper called ``name``, or None."""
        wrappers = self._wrappers() if AROUND in self._modules else None
        return cast("Around", wrappers[name]) if wrappers is not None and name in wrappers else None

    def unwrap(self, name: str) -> Around:
        """Removes and returns the wrapper called ``name``; the site is then as it was before."""
        found = self.wrapper(name)
        if found is None:
            raise SelectionError(f"No wrapper {name!r} is attached here", remedy="Attach it before detaching it.")
        wrappers = self._wrappers()
        del wrappers[name]
        self._chain = tuple(wrapper for wrapper in self._chain if wrapper is not found)
        if not len(wrappers):
            del self._modules[AROUND]
        return found

    def _wrappers(self) -> nn.ModuleDict:
        return cast("nn.ModuleDict", self._modules[AROUND])


class Leaf(Site):
    """A site that owns one weight, dense or stored, and perhaps a bias.

    ``weight`` is a parameter or a :class:`StoredWeight`; ``axes`` are the logical names of its dimensions.
    """

    weight: nn.Parameter | StoredWeight
    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], *, axes: tuple[str, ...], initialiser: Initialiser) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        self.axes = axes
        self.initialiser = initialiser
        self.weight = nn.Parameter(torch.empty(shape))

    def dense_weight(self) -> Tensor:
        """The weight as a dense tensor of ``shape``; the parameter itself when it is one."""
        return self.weight.dense() if isinstance(self.weight, StoredWeight) else self.weight

    def set_weight(self, weight: Tensor | StoredWeight) -> None:
        """Puts another weight of the same dense shape in place. Raises ShapeError otherwise."""
        if weight.shape != self.shape:
            raise ShapeError(
                f"A weight of shape {tuple(weight.shape)} does not fit a leaf of shape {tuple(self.shape)}",
                remedy="Check that spec and weights belong to the same model.",
            )
        self._parameters.pop("weight", None)
        self._modules.pop("weight", None)
        if isinstance(weight, StoredWeight):
            self.add_module("weight", weight)
        else:
            parameter = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
            self.register_parameter("weight", parameter)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fills weight and bias as the spec says."""
        if isinstance(self.weight, StoredWeight):
            raise ShapeError("A stored weight cannot be initialised", remedy="Initialise before quantizing.")
        self.initialiser.fill(self.weight, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


SiteKind = TypeVar("SiteKind", bound=Site)


def select(model: nn.Module, pattern: str, *, of: type[SiteKind] = Site) -> dict[str, SiteKind]:
    """The sites of kind ``of`` whose path matches ``pattern``, in module order; sites inside wrappers are skipped.

    Raises:
        SelectionError: nothing matches; a pattern that silently selects nothing trains nothing.
    """
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    sites = {path: module for path, module in modules if isinstance(module, of) and _outside(path)}
    chosen = {path: site for path, site in sites.items() if matches(pattern, path)}
    if not chosen:
        near = ", ".join(list(sites)[:4]) or "none"
        raise SelectionError(f"{pattern!r} selects no {of.__name__}", remedy=f"Sites here are: {near}, ...")
    return chosen


def _outside(path: str) -> bool:
    return AROUND not in path.split(".")
