"""A snapshot: one generation in memory, ready to be searched. It is never changed; a change builds the next one.

What two generations share is not read again: the next snapshot takes the rows of every segment that stays and reads,
checks and merges only the new ones. A full load is the change from nothing.

Legend: N chunks, in the order of their documents' paths and of their places in them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from almanac.core.errors import FileFormatError, IntegrityError
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.index import layout
from almanac.retrieve.index.flat import FlatVectors
from almanac.retrieve.index.manifest import Filed, Manifest, ManifestName
from almanac.retrieve.index.segment import Segment
from almanac.retrieve.index.vectors import Vectors, VectorStore
from almanac.retrieve.lexical import ANALYSIS, Merge, Postings, chunk_terms, count_terms

_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """``owners`` int32 [N] is each chunk's document (its place in the manifest); ``rows`` are those of a segment."""

    name: ManifestName
    manifest: Manifest
    notes: tuple[str, ...]
    damaged: tuple[tuple[str, str], ...]
    chunks: tuple[Chunk, ...]
    owners: NDArray[np.int32]
    rows: Mapping[str, tuple[int, int]]
    postings: Postings
    vectors: VectorStore


def load(folder: Path, found: layout.Found, *, after: Snapshot | None = None) -> Snapshot:
    """The generation ``found``, read from ``folder`` as far as ``after`` does not hold it already.

    A document whose segment is damaged is named and left out. OSError where the system refuses to read.
    """
    manifest = found.manifest
    if after is None or not _akin(after.manifest, manifest):
        after = _nothing(found)
    gathered = _Gathered(folder, manifest, after)
    for number, filed in enumerate(manifest.filed):
        gathered.take(number, filed)
    total = len(gathered.chunks)
    return Snapshot(
        found.name,
        manifest,
        found.notes,
        tuple(gathered.damaged),
        tuple(gathered.chunks),
        np.array(gathered.owners, np.int32),
        gathered.rows,
        gathered.merge.postings(gathered.place, total),
        after.vectors.changed(gathered.place, gathered.vectors(), np.array(gathered.new_rows, np.int64)),
    )


def settled(folder: Path, *, after: Snapshot | None = None) -> Snapshot:
    """The generation that counts, read again if a writer took files away meanwhile. Errors as `layout.find`."""
    for _ in range(_ATTEMPTS):
        before = layout.pointer(folder)
        snapshot = load(folder, layout.find(folder), after=after)
        if not (snapshot.damaged or snapshot.notes) or layout.pointer(folder) == before:
            break
    return snapshot


def _akin(left: Manifest, right: Manifest) -> bool:
    return (left.settings, left.embedder, left.dim, left.analysis) == (
        right.settings,
        right.embedder,
        right.dim,
        right.analysis,
    )


def _nothing(found: layout.Found) -> Snapshot:
    settings, dim = found.manifest.settings, found.manifest.dim
    postings = Postings.empty(k1=settings.k1, b=settings.b)
    owners = np.zeros(0, np.int32)
    return Snapshot(found.name, found.manifest, (), (), (), owners, {}, postings, FlatVectors.empty(dim))


class _Gathered:
    """What `load` collects, document by document."""

    def __init__(self, folder: Path, manifest: Manifest, after: Snapshot) -> None:
        self._folder, self._manifest, self._after = folder, manifest, after
        self.place = np.full(len(after.chunks), -1, np.int64)
        self.chunks: list[Chunk] = []
        self.owners: list[int] = []
        self.rows: dict[str, tuple[int, int]] = {}
        self.merge = Merge(after.postings)
        self.new_rows: list[int] = []
        self.damaged: list[tuple[str, str]] = []
        self._room = np.empty((256, manifest.dim), np.float32)  # grows; no size in a file is trusted

    def take(self, number: int, filed: Filed) -> None:
        """The next document: from the snapshot before, or from its file."""
        row = len(self.chunks)
        old = self._after.rows.get(filed.segment)
        if old is not None:
            self.place[slice(*old)] = np.arange(row, row + old[1] - old[0])
            self.chunks.extend(self._after.chunks[slice(*old)])
        else:
            try:
                segment = layout.read_segment(self._folder, filed, dim=self._manifest.dim)
            except (IntegrityError, FileFormatError) as error:
                self.damaged.append((filed.entry.path, str(error)))
                return
            self._read(row, segment)
        self.owners.extend([number] * (len(self.chunks) - row))
        self.rows[filed.segment] = (row, len(self.chunks))

    def _read(self, row: int, segment: Segment) -> None:
        chunks, counts = segment.document.chunks, segment.counts
        if self._manifest.analysis != ANALYSIS:
            counts = count_terms([chunk_terms(chunk, self._manifest.settings.boost) for chunk in chunks])
        start, stop = len(self.new_rows), len(self.new_rows) + len(chunks)
        while stop > len(self._room):
            self._room.resize((2 * len(self._room), self._manifest.dim), refcheck=False)
        self._room[start:stop] = segment.vectors
        self.merge.add(row, counts)
        self.new_rows.extend(range(row, row + len(chunks)))
        self.chunks.extend(chunks)

    def vectors(self) -> Vectors:
        """float32 [chunks read, dim]."""
        self._room.resize((len(self.new_rows), self._manifest.dim), refcheck=False)
        return self._room
