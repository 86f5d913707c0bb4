"""Zip archives of documents: every entry that has a reader becomes a document, ``archive.zip/inner/name.md``.

Archives inside archives are read one level deep. Entries that cannot be read are named, and the rest goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from almanac.core.errors import AlmanacError, FileFormatError
from almanac.retrieve.read.document import Reading
from almanac.retrieve.read.formats import formats, readers, suffix_of
from almanac.retrieve.read.wire import Begun, Event, Skipped
from almanac.retrieve.read.zipped import Box, Budget

SUFFIXES = (".zip",)
ARCHIVE = True
MAX_BYTES = 64 * 2**20
MAX_DEPTH = 2  # archives within each other, the outer one included


def members(data: bytes, path: str, *, after: str = "") -> Iterator[Event]:
    """What reading each entry gives, in order of name; `Begun` tells which one is next.

    Args:
        data: the archive.
        path: its name, the beginning of each document's path and their origin.
        after: an entry, told by an earlier `Begun`, behind which to go on: that one broke its reader.

    Raises:
        FileFormatError: the archive itself cannot be read.
    """
    walk = _Walk(path, Budget(len(data)), after)
    yield from walk.inside(Box(data, path, walk.budget), path, 1)


class _Walk:
    """One pass through an archive and those in it."""

    def __init__(self, origin: str, budget: Budget, after: str) -> None:
        self.budget = budget
        self._origin = origin
        self._after = after  # empty once it has been passed

    def inside(self, box: Box, path: str, depth: int) -> Iterator[Event]:
        if not self._after:
            yield from (Skipped(f"{path}/{name}", error) for name, error in box.refused.items())
        for entry in box.names:
            name = f"{path}/{entry}"
            suffix = suffix_of(entry)
            if any(part.startswith(".") or part == "__MACOSX" for part in entry.split("/")):
                continue
            if self._after == name:
                self._after = ""
            elif suffix in SUFFIXES and self._after.startswith(f"{name}/"):
                yield from self._nested(box, entry, name, depth)
            elif not self._after:
                yield Begun(name)
                yield from self._entry(box, entry, name, depth)

    def _entry(self, box: Box, entry: str, name: str, depth: int) -> Iterator[Event]:
        kind = formats().get(suffix_of(entry))
        if kind is None:
            error = FileFormatError(
                f"{name} has no reader for {suffix_of(entry) or 'a file without suffix'}", remedy="Convert it."
            )
            yield Skipped(name, error)
        elif kind.archive:
            yield from self._nested(box, entry, name, depth)
        else:
            try:
                reading = readers()[suffix_of(entry)](box.read(entry, max_bytes=kind.max_bytes), name)
            except AlmanacError as error:
                yield Skipped(name, error)
            else:
                document = dataclasses.replace(reading.document, origin=self._origin)
                yield Reading(document, reading.notes)

    def _nested(self, box: Box, entry: str, name: str, depth: int) -> Iterator[Event]:
        try:
            if depth >= MAX_DEPTH:
                raise FileFormatError(
                    f"{name} lies deeper than {MAX_DEPTH} archives within each other", remedy="Unpack it first."
                )
            inner = Box(box.read(entry, max_bytes=MAX_BYTES), name, self.budget)
        except AlmanacError as error:
            yield Skipped(name, error)
        else:
            yield from self.inside(inner, name, depth + 1)
