"""What a family's writer asks of a spec before it looks closer: are all layers made of the kinds it can express?

A writer may be generous beyond that: `hub_folder.family_of` reads every configuration back and takes none that gives
another spec.
"""

from __future__ import annotations

from typing import TypeVar

from almanac.core.spec import Spec
from almanac.models.llama import ACTIVATIONS
from almanac.nn.activation import Activation

Kind = TypeVar("Kind", bound=Spec)


def all_of(specs: tuple[Spec | None, ...] | list[Spec | None], kind: type[Kind]) -> list[Kind] | None:
    """The specs if there are some and each is of ``kind``, else None."""
    found = [item for item in specs if isinstance(item, kind)]
    return found if found and len(found) == len(specs) else None


def activation_name(activation: Activation) -> str | None:
    """The hub's word for an activation, or None."""
    return {item: name for name, item in reversed(ACTIVATIONS.items())}.get(activation)
