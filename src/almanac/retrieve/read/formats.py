"""Which file suffix is read by which module: found by importing the modules of this folder.

A reader is a module with ``SUFFIXES`` and ``read(data, path) -> Reading``, or, if one file holds many documents, with
``members(data, path, after=) -> Iterator[Event]`` and ``ARCHIVE = True``. It may say ``MAX_BYTES``, and in ``IMPORTS``
what it imports late. Adding a format edits no list.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

from almanac.retrieve.read.document import Reading

MAX_BYTES = 16 * 2**20  # of one file, where its reader does not say otherwise

Reader = Callable[[bytes, str], Reading]


@dataclasses.dataclass(frozen=True)
class Format:
    """How files of one suffix are read; ``module`` is the reader's full name."""

    module: str
    archive: bool = False
    max_bytes: int = MAX_BYTES


@functools.cache
def formats() -> dict[str, Format]:
    """The format of each file suffix (lower case, with its dot)."""
    package = __name__.rpartition(".")[0]
    found: dict[str, Format] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        name = f"{package}.{info.name}"
        module = importlib.import_module(name)
        kind = Format(name, getattr(module, "ARCHIVE", False), getattr(module, "MAX_BYTES", MAX_BYTES))
        found |= dict.fromkeys(getattr(module, "SUFFIXES", ()), kind)
    return found


@functools.cache
def readers() -> dict[str, Reader]:
    """The reader of each suffix that holds one document a file. For files that can be trusted, and for archives."""
    return {suffix: importlib.import_module(kind.module).read for suffix, kind in formats().items() if not kind.archive}


def suffix_of(name: str) -> str:
    """The suffix that decides how a file of this name is read."""
    return Path(name).suffix.lower()
