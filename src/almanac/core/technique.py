"""A technique: what is done to a model; a plan: all that was done, in order.

A technique is a small frozen value. It either *attaches* to sites (and may detach, and may fold into the weights) or
*rewrites* spec and weights together. A checkpoint is (spec, plan, weights, provenance): loading builds the spec on the
meta device, replays the plan there, and assigns the saved tensors.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from almanac.core.errors import FileFormatError, ShapeError, UnsupportedError
from almanac.core.spec import Spec
from almanac.core.value import Value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Technique(Value):
    """Base of all techniques.

    Class attributes state what the contract suite then tests, for every family and every weight format:

    - ``identity_at_start``: a freshly attached technique leaves every output as it was.
    - ``folds``: ``fold`` moves the effect into the base weights, exactly.
    - ``trains``: it brings parameters that receive gradients (and only those do).
    - ``stores``: it only changes how weights are held; expanding them undoes all but the rounding.
    - ``rounds_activations``: what flows is rounded, so where it lies near the edge of a step, another order of summation may
      give another output; equal computations agree in float64 only.
    - ``unsupported``: pairs it refuses, {family or weight kind: reason}; shown in the generated matrix.
    """

    identity_at_start: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    stores: ClassVar[bool] = False
    rounds_activations: ClassVar[bool] = False
    unsupported: ClassVar[Mapping[str, str]] = {}

    @property
    def title(self) -> str:
        """The catalog name, ``adapt.lora``."""
        return type(self).__module__.removeprefix("almanac.")

    def loss_bound(self) -> float:
        """The largest mean KL divergence (nats per token) that this step may cost; 0 for one that changes nothing."""
        return 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attachment(Technique):
    """A technique that acts on sites of a built model, in place."""

    @abstractmethod
    def attach(self, model: nn.Module, calibration: Iterable[Tensor] | None = None) -> None:
        """Acts on ``model``. Must also work on the meta device, where only shapes are known."""

    def detach(self, model: nn.Module) -> None:
        """Undoes ``attach`` exactly. Raises UnsupportedError where information was lost."""
        raise UnsupportedError(f"{self.title} cannot be undone", remedy="Load the model from before it was applied.")

    def fold(self, model: nn.Module) -> None:
        """Moves the effect into the base weights and detaches. Raises UnsupportedError where it has none to move."""
        raise UnsupportedError(f"{self.title} has nothing to fold", remedy="Leave it in the plan.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewrite(Technique):
    """A technique that changes what the model is: spec and weights together."""

    @abstractmethod
    def rewrite(self, spec: Spec, model: nn.Module) -> tuple[Spec, nn.Module]:
        """The new spec and a model of it. On the meta device only shapes need be right."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Value):
    """Techniques in the order they were applied; the first acted on the bare spec."""

    techniques: tuple[Technique, ...] = ()

    def then(self, technique: Technique) -> Plan:
        """This plan with one more step."""
        return Plan(techniques=(*self.techniques, technique))

    def without(self, technique: Technique) -> Plan:
        """This plan with one step less. Raises ValueError if it is not in it."""
        items = list(self.techniques)
        items.remove(technique)
        return Plan(techniques=tuple(items))

    def replay(self, spec: Spec, model: nn.Module) -> tuple[Spec, nn.Module]:
        """Applies every step to a model of the bare ``spec``; returns the resulting spec and model."""
        for technique in self.techniques:
            if isinstance(technique, Rewrite):
                spec, model = technique.rewrite(spec, model)
            elif isinstance(technique, Attachment):
                technique.attach(model)
        return spec, model


def assemble(spec: Spec, plan: Plan, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model of ``spec`` after ``plan``, holding ``tensors`` (spec path + ``.weight`` ... -> tensor) themselves.

    Nothing is allocated but what the tensors already hold. Every parameter must be given and every tensor used.

    Raises:
        FileFormatError: tensors missing or left over.
        ShapeError: a tensor of another shape than the spec's, or numbers where codes belong.
    """
    with torch.device("meta"):
        _, model = plan.replay(spec, spec.build())
    expected = dict(model.named_parameters(remove_duplicate=False))
    _require_same_names(set(expected), set(tensors))
    for name, parameter in expected.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise ShapeError(
                f"{name}: the file holds {tuple(tensor.shape)}, the spec says {tuple(parameter.shape)}",
                remedy="The configuration and the weights belong to different models; fetch both from one place.",
            )
        owner, _, leaf = name.rpartition(".")
        if tensor.is_floating_point() != parameter.is_floating_point():
            raise ShapeError(
                f"{name}: the file holds {tensor.dtype}, the plan needs {parameter.dtype}",
                remedy="The plan and the weights belong to different models; fetch both from one place.",
            )
        module = model.get_submodule(owner)
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
    for module in model.modules():
        if isinstance(module, Derived):
            module.derive()
    return model.eval()


class Derived:
    """A module holding tensors that follow from its spec and are not saved; ``derive`` makes them anew."""

    @abstractmethod
    def derive(self) -> None:
        """Recomputes the derived tensors on a real device, after loading onto the meta device."""


def initialise(model: nn.Module, *, seed: int) -> nn.Module:
    """Fills every leaf of a freshly built model as its spec says, deterministically; returns the model."""
    from almanac.core.site import Leaf

    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Leaf):
            module.initialise(generator)
    return model


def _require_same_names(expected: set[str], given: set[str]) -> None:
    remedy = "Use the files of one model, complete; nothing was loaded."
    if missing := sorted(expected - given):
        raise FileFormatError(f"{len(missing)} tensors are missing, first {missing[0]!r}", remedy=remedy)
    if surplus := sorted(given - expected):
        raise FileFormatError(f"{len(surplus)} tensors are not part of this model, first {surplus[0]!r}", remedy=remedy)
