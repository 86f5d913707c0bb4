"""The catalog: a thing's name is its path. Nothing is registered; a name is resolved by importing its file.

``adapt.lora`` is the module ``almanac.adapt.lora``; ``nn.linear.Linear`` the class ``Linear`` (or its nested ``Spec``).
Other distributions join through the entry-point group ``almanac`` (name: first segment, value: package).
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from difflib import get_close_matches
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, TypeVar, cast

from almanac.core.errors import NotFoundError

T = TypeVar("T")

ROOT = "almanac"
GROUP = "almanac"


def resolve(kind: str, *, of: type[T]) -> type[T]:
    """The class that ``kind`` names.

    Only modules below ``almanac`` and the packages that joined by entry point are ever imported, and only a class
    derived from ``of`` is returned: a saved file cannot name anything else.

    Raises:
        NotFoundError: no such module or class, or one of another type.
    """
    module, names = _split(kind)
    target: object = module
    for name in names:
        target = cast("dict[str, object]", vars(target)).get(name) if not name.startswith("_") else None
        if target is None:
            break
    candidate = cast("dict[str, object]", vars(target)).get("Spec", target) if isinstance(target, type) else None
    if not (isinstance(candidate, type) and issubclass(candidate, of) and candidate.__module__ == module.__name__):
        raise NotFoundError(f"{kind!r} names no {of.__name__}", remedy="`almanac list` shows what there is.")
    return candidate


def techniques(room: str | None = None) -> dict[str, ModuleType]:
    """Every technique file, by catalog name (``adapt.lora``), found by walking the rooms that hold techniques."""
    rooms = (room,) if room else ("adapt", "compress")
    found: dict[str, ModuleType] = {}
    for name in rooms:
        package = importlib.import_module(f"{ROOT}.{name}")
        for info in pkgutil.walk_packages(package.__path__, f"{ROOT}.{name}."):
            if not info.ispkg:
                found[info.name.removeprefix(f"{ROOT}.")] = importlib.import_module(info.name)
    return {name: module for name, module in sorted(found.items()) if technique_classes(module)}


def technique_classes(module: ModuleType) -> list[type[Any]]:
    """The technique values that a file defines itself (not those it imports)."""
    from almanac.core.technique import Technique

    return [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Technique) and item.__module__ == module.__name__
    ]


def _split(kind: str) -> tuple[ModuleType, list[str]]:
    """The longest importable module prefix of ``kind`` and the attribute names that follow."""
    segments = kind.split(".")
    if not all(segment.isidentifier() and not segment.startswith("_") for segment in segments):
        raise NotFoundError(f"{kind!r} is not a catalog name", remedy="`almanac list` shows what there is.")
    prefix = _package_of(segments[0])
    for cut in range(len(segments), 0, -1):
        name = ".".join([prefix, *segments[1:cut]])
        if _exists(name):
            return importlib.import_module(name), segments[cut:]
    close = get_close_matches(kind, list(techniques()), n=1)
    raise NotFoundError(
        f"Nothing is called {kind!r}",
        remedy=f"Did you mean {close[0]!r}?" if close else "`almanac list` shows what there is.",
    )


def _package_of(first: str) -> str:
    for point in entry_points(group=GROUP):
        if point.name == first:
            return point.value
    return f"{ROOT}.{first}"


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
