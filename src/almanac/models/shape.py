"""What a family's writer asks of a spec before it looks closer: are all layers made of the kinds it can express?

A writer may be generous beyond that: `hub_folder.family_of` reads every configuration back and takes none that gives
another spec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from almanac.core.spec import Spec
from almanac.models.family import Config, Fields

Kind = TypeVar("Kind", bound=Spec)


def all_of(specs: tuple[Spec | None, ...] | list[Spec | None], kind: type[Kind]) -> list[Kind] | None:
    """The specs if there are some and each is of ``kind``, else None."""
    found = [item for item in specs if isinstance(item, kind)]
    return found if found and len(found) == len(specs) else None


def if_read_back(config: Config | None, read: Callable[[Fields], Spec], spec: Spec) -> Config | None:
    """What was written of a spec if it reads as that spec again, else None."""
    return config if config is not None and read(Fields(config)) == spec else None
