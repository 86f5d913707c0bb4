"""A change of the index, step by step: vectors, segments, manifest, reading it back, pointer, clearing away."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from almanac.core.errors import IntegrityError
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.index import layout
from almanac.retrieve.index.manifest import Entry, Filed, Manifest
from almanac.retrieve.index.segment import Content, encode_segment
from almanac.retrieve.index.snapshot import Snapshot, load
from almanac.retrieve.index.vectors import Embedder, Vectors, embed
from almanac.retrieve.lexical import chunk_terms, count_terms

EMBED_AT_ONCE = 256  # texts between two reports of progress


def embedding_text(chunk: Chunk) -> str:
    """What of a chunk is embedded: its title and headings, then its text."""
    return "\n".join([*dict.fromkeys(name for name in (chunk.title, *chunk.heading) if name), chunk.text])


def chunk_vectors(
    snapshot: Snapshot,
    documents: Sequence[Sequence[Chunk]],
    embedder: Embedder | None,
    tell: Callable[[int, int], None],
) -> list[Vectors]:
    """float32 [chunks, dim] for each of ``documents``; what an older text of them has already is not embedded again."""
    if embedder is None:
        return [np.zeros((len(chunks), 0), np.float32) for chunks in documents]
    flat = [chunk for chunks in documents for chunk in chunks]
    texts = [embedding_text(chunk) for chunk in flat]
    known = _known_rows(snapshot, {chunk.document for chunk in flat})
    missing = list(dict.fromkeys(text for text in texts if text not in known))
    place = {text: number for number, text in enumerate(missing)}
    made = np.empty((len(missing), embedder.dim), np.float32)
    for start in range(0, len(missing), EMBED_AT_ONCE):
        part = missing[start : start + EMBED_AT_ONCE]
        made[start : start + len(part)] = embed(embedder, part)
        tell(start + len(part), len(missing))
    out = np.empty((len(texts), embedder.dim), np.float32)
    for row, text in enumerate(texts):
        out[row] = made[place[text]] if text in place else snapshot.vectors.vector(known[text])
    return np.split(out, np.cumsum([len(chunks) for chunks in documents])[:-1])


def _known_rows(snapshot: Snapshot, paths: set[str]) -> dict[str, int]:
    filed = [one for one in snapshot.manifest.filed if one.entry.path in paths]
    rows = (row for one in filed for row in range(*snapshot.rows.get(one.segment, (0, 0))))
    return {embedding_text(snapshot.chunks[row]): row for row in rows}


def write_document(folder: Path, manifest: Manifest, content: Content, vectors: Vectors) -> Filed:
    """Writes a document's segment, which counts only once a manifest that names it is published."""
    document, chunks = content.document, content.chunks
    counts = count_terms([chunk_terms(chunk, manifest.settings.boost) for chunk in chunks])
    data = encode_segment(content, counts, vectors)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = Entry(
        path=document.path,
        title=document.title,
        digest=document.digest,
        language=content.language,
        pages=len(document.pages),
        chunks=len(chunks),
        characters=len(document.text),
        added=now,
        origin=document.origin,
    )
    return Filed(entry, layout.write_segment(folder, data), len(data), content.digest)


def publish(folder: Path, before: Snapshot, filed: Mapping[str, Filed]) -> Snapshot:
    """The next generation, holding ``filed``: written, read back from the disk, then pointed to.

    Raises:
        IntegrityError: what was written does not read back; the pointer has not moved.
        OSError: the system refused. The pointer stands at the generation before, or has just moved.
    """
    manifest = dataclasses.replace(
        before.manifest,
        generation=before.manifest.generation + 1,
        filed=tuple(filed[path] for path in sorted(filed)),
    )
    name = layout.write_manifest(folder, manifest)
    after = load(folder, layout.Found(name, manifest, ()), after=before)
    known = {path for path, _ in before.damaged}
    for path, reason in after.damaged:
        if path not in known:
            raise IntegrityError(reason, remedy="Check the disk; the index is as it was.")
    layout.move_pointer(folder, name)
    return after


def clear(folder: Path, snapshot: Snapshot, *, forget: bool) -> None:
    """Deletes what neither this generation nor, unless it is to be forgotten, the one before it needs."""
    present = snapshot.manifest.generation
    older = {name.generation for name in layout.manifest_names(folder) if name.generation < present}
    kept = {present} if forget or not older else {present, max(older)}
    # The generation before needs no other segments: one that replaced or removed any has been forgotten.
    layout.sweep(folder, generations=kept, segments={filed.segment for filed in snapshot.manifest.filed})
