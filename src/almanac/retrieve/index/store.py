"""The document index: one durable store that finds passages by words (BM25), by meaning (vectors), or by both.

Adding or removing a document writes that document and a manifest, whatever the index holds already. Every change is a
new generation, published by moving one pointer last (`layout`): killed or failing anywhere, the folder opens to the
generation before or the one after. Removed and replaced documents leave no byte behind in the folder.

One process writes at a time; any number read, in this process or others, and no reader ever waits: a search runs on
the snapshot that stood when it began.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np

from almanac.core.errors import NotFoundError, RequestError, UnsupportedError
from almanac.files.quoting import quoted
from almanac.files.store import Lock
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.fuse import fuse
from almanac.retrieve.index import layout
from almanac.retrieve.index.best import Places, Scores, occurrence
from almanac.retrieve.index.change import chunk_vectors, clear, publish, write_document
from almanac.retrieve.index.hit import Hit
from almanac.retrieve.index.manifest import Entry, Manifest
from almanac.retrieve.index.segment import StoredDocument, content_of
from almanac.retrieve.index.settings import IndexSettings
from almanac.retrieve.index.snapshot import Snapshot, settled
from almanac.retrieve.index.vectors import Embedder, embed
from almanac.retrieve.lexical import ANALYSIS
from almanac.retrieve.read.document import Document

Mode = Literal["fused", "lexical", "dense"]


@dataclasses.dataclass(frozen=True)
class Change:
    """The paths that `DocumentIndex.add` added, replaced and found unchanged."""

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    unchanged: tuple[str, ...]


def _silent(done: int, total: int) -> None:
    del done, total


class DocumentIndex:
    """See the head of this file. Make one with `create` or `open`."""

    def __init__(self, folder: Path, embedder: Embedder | None, snapshot: Snapshot) -> None:
        self.folder, self.embedder = folder, embedder
        self._snapshot = snapshot
        self._one_writer = threading.Lock()

    @classmethod
    def create(
        cls, folder: Path | str, *, embedder: Embedder | None, settings: IndexSettings | None = None
    ) -> DocumentIndex:
        """An empty index in ``folder``, made if need be. Without an embedder it finds by words only, for good.

        Raises:
            RequestError: an index is there already.
            LockedError: another process is writing there.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        with Lock(root):
            if layout.pointer(root) or layout.manifest_names(root):
                raise RequestError(f"{quoted(root, limit=200)} holds an index", remedy="Open it, or name another one.")
            digest, dim = (embedder.digest, embedder.dim) if embedder else ("", 0)
            manifest = Manifest(1, settings or IndexSettings(), digest, dim, ANALYSIS, ())
            layout.move_pointer(root, layout.write_manifest(root, manifest))
        return cls.open(root, embedder=embedder)

    @classmethod
    def open(cls, folder: Path | str, *, embedder: Embedder | None) -> DocumentIndex:
        """The index in ``folder``; writes nothing. Without an embedder an index with vectors finds by words only.

        Raises:
            NotFoundError: there is none.
            IntegrityError: there was one, and no generation of it is whole.
            FileFormatError: another version wrote it.
            UnsupportedError: its vectors are not this embedder's.
        """
        root = Path(folder)
        snapshot = settled(root)
        manifest = snapshot.manifest
        if embedder is not None and (manifest.embedder, manifest.dim) != (embedder.digest, embedder.dim):
            made = f"by the model {manifest.embedder[:16]}" if manifest.embedder else "without vectors"
            raise UnsupportedError(
                f"The index in {quoted(root, limit=200)} was made {made}, not by {embedder.digest[:16]}",
                remedy="Open it with the embedding model it was made with, or build it again.",
            )
        return cls(root, embedder, snapshot)

    def __len__(self) -> int:
        return len(self._snapshot.chunks)

    @property
    def generation(self) -> int:
        """Rises with every change."""
        return self._snapshot.manifest.generation

    @property
    def settings(self) -> IndexSettings:
        """How it ranks."""
        return self._snapshot.manifest.settings

    @property
    def documents(self) -> tuple[Entry, ...]:
        """Every document, damaged ones too, in the order of their paths."""
        return tuple(filed.entry for filed in self._snapshot.manifest.filed)

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """Every chunk, document by document."""
        return self._snapshot.chunks

    @property
    def damaged(self) -> tuple[tuple[str, str], ...]:
        """(path, reason) of every document whose file is lost or rotten; it is not searched. Adding it again heals."""
        return self._snapshot.damaged

    @property
    def notes(self) -> tuple[str, ...]:
        """What else was amiss when it was opened and could be made up for; the next change repairs it."""
        return self._snapshot.notes

    def document(self, path: str) -> StoredDocument:
        """A document with its text, read and checked anew.

        Raises:
            NotFoundError: it is not in the index.
            IntegrityError, FileFormatError: its file is damaged.
        """
        manifest = self._snapshot.manifest
        for filed in manifest.filed:
            if filed.entry.path == path:
                return layout.read_segment(self.folder, filed, dim=manifest.dim).document
        raise NotFoundError(f"No document {quoted(path)} is in the index", remedy="Look into the list of documents.")

    def refresh(self) -> bool:
        """Takes up what another process has changed since; tells whether there was anything. Errors as `open`."""
        before = self._snapshot
        if not before.notes and layout.points_to(self.folder, before.name):
            return False
        self._snapshot = settled(self.folder, after=before)
        return self._snapshot.name != before.name

    def search(self, query: str, k: int, *, mode: Mode = "fused", per_document: int | None = None) -> list[Hit]:
        """The at most ``k`` best chunks, best first; scores compare within one search only.

        ``lexical`` and ``dense`` rank by BM25 and by cosine; ``fused`` fuses the best of both, and is ``lexical``
        where there is no embedder. ``per_document`` bounds the chunks of one document, so that one that repeats itself,
        or was planted, cannot fill the list (PoisonedRAG, Zou et al. 2024, arXiv:2402.07867).

        Raises:
            RequestError: ``k`` or ``per_document`` is below 1, or there is no such mode.
            UnsupportedError: ``dense`` without an embedder.
        """
        if k < 1 or (per_document is not None and per_document < 1) or mode not in ("fused", "lexical", "dense"):
            raise RequestError(
                f"A search for the best {k} chunks, mode {mode!r}, {per_document} per document",
                remedy='Ask for one or more; the modes are "fused", "lexical" and "dense".',
            )
        if mode == "dense" and self.embedder is None:
            raise UnsupportedError("This index was opened without an embedding model", remedy='Use mode="lexical".')
        snapshot = self._snapshot
        if mode == "lexical" or self.embedder is None:
            return _hits(snapshot, *self._lexical(snapshot, query, k, per_document))
        if mode == "dense":
            return _hits(snapshot, *self._dense(snapshot, query, k, per_document))
        return self._fused(snapshot, query, k, per_document)

    def _fused(self, snapshot: Snapshot, query: str, k: int, per: int | None) -> list[Hit]:
        settings = snapshot.manifest.settings
        weights = (settings.lexical_weight, settings.dense_weight)
        depth = max(k, settings.candidates)
        while True:
            rankings = [find(snapshot, query, depth, None)[0].tolist() for find in (self._lexical, self._dense)]
            fused = fuse(rankings, k=settings.rank_constant, weights=weights)
            if per is not None:
                seen = occurrence(snapshot.owners[[row for row, _ in fused]])
                fused = [pair for pair, before in zip(fused, seen, strict=True) if before < per]
            if per is None or len(fused) >= k or depth >= len(snapshot.chunks):
                return [Hit(snapshot.chunks[row], score) for row, score in fused[:k]]
            depth *= 4  # one document fills the rankings: look further down

    def term_weights(self, query: str) -> dict[str, float]:
        """Each term that ``query`` asks for with its weight, the rarer the more; see `lexical.Postings.weights`."""
        return self._snapshot.postings.weights(query)

    def _lexical(self, snapshot: Snapshot, query: str, k: int, per: int | None) -> tuple[Places, Scores]:
        return snapshot.postings.search(query, k, groups=snapshot.owners, per_group=per)

    def _dense(self, snapshot: Snapshot, query: str, k: int, per: int | None) -> tuple[Places, Scores]:
        asked = query.encode("utf-8", "replace").decode("utf-8").strip()  # a tokenizer may refuse lone surrogates
        if self.embedder is None or not asked or not len(snapshot.chunks):
            return np.zeros(0, np.int64), np.zeros(0)
        vector = embed(self.embedder, [asked])[0]
        return snapshot.vectors.search(vector, k, groups=snapshot.owners, per_group=per)

    def add(
        self,
        documents: Sequence[tuple[Document, Sequence[Chunk]]],
        *,
        languages: Mapping[str, str] = MappingProxyType({}),
        tell: Callable[[int, int], None] = _silent,
    ) -> Change:
        """Adds documents, or replaces those whose path is known: all of them, durable when this returns, or none.

        Args:
            documents: each with its chunks.
            languages: for the list of documents; path to language code.
            tell: called with (chunks embedded, chunks to embed).

        Raises:
            RequestError: a path twice, or a document that `segment.content_of` refuses.
            UnsupportedError: the index has vectors and was opened without an embedder.
            LockedError: another process is writing.
            OSError: the system refused; the index is as it was.
        """
        contents = {one.path: content_of(one, its, language=languages.get(one.path, "")) for one, its in documents}
        if len(contents) != len(documents):
            raise RequestError("Documents of one path in one addition", remedy="Give each document a path of its own.")
        with self._writing() as snapshot:
            if snapshot.manifest.dim and self.embedder is None:
                raise UnsupportedError(
                    "This index has vectors and was opened without an embedding model",
                    remedy="Open it with the embedding model it was made with.",
                )
            known = {filed.entry.path: filed for filed in snapshot.manifest.filed}
            lost = {path for path, _ in snapshot.damaged}
            same = {
                path for path in known.keys() & contents.keys() - lost if known[path].content == contents[path].digest
            }
            new = [path for path in contents if path not in same]
            replaced = tuple(path for path in new if path in known)
            if new:
                vectors = chunk_vectors(snapshot, [contents[path].chunks for path in new], self.embedder, tell)
                for path, made in zip(new, vectors, strict=True):
                    known[path] = write_document(self.folder, snapshot.manifest, contents[path], made)
                self._snapshot = publish(self.folder, snapshot, known)
                clear(self.folder, self._snapshot, forget=bool(replaced))
        added = tuple(path for path in new if path not in replaced)
        return Change(added, replaced, tuple(path for path in contents if path in same))

    def remove(self, paths: Sequence[str]) -> tuple[str, ...]:
        """Removes documents, all or none. When this returns, no byte of them is left in the folder.

        Raises:
            NotFoundError: one of them is not in the index.
            LockedError, OSError: as `add`.
        """
        wanted = dict.fromkeys([paths] if isinstance(paths, str) else paths)
        with self._writing() as snapshot:
            known = {filed.entry.path: filed for filed in snapshot.manifest.filed}
            for path in wanted:
                if known.pop(path, None) is None:
                    raise NotFoundError(
                        f"No document {quoted(path)} is in the index", remedy="Look into the list of documents."
                    )
            if wanted:
                self._snapshot = publish(self.folder, snapshot, known)
                clear(self.folder, self._snapshot, forget=True)
        return tuple(wanted)

    def purge(self) -> None:
        """Deletes everything that the present generation does not need, and repairs what `notes` tells. Errors as
        `add`.
        """
        with self._writing() as snapshot:
            if snapshot.notes:
                known = {filed.entry.path: filed for filed in snapshot.manifest.filed}
                self._snapshot = publish(self.folder, snapshot, known)
            clear(self.folder, self._snapshot, forget=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Snapshot]:
        """The newest snapshot, under the lock and over a clean folder; clean again if the block fails."""
        with self._one_writer, Lock(self.folder):
            self.refresh()
            snapshot = self._snapshot
            clear(self.folder, snapshot, forget=False)
            try:
                yield snapshot
            except BaseException:
                # Where the pointer has moved already, or cannot be read, the next writer decides.
                with contextlib.suppress(OSError):
                    if layout.points_to(self.folder, snapshot.name):
                        clear(self.folder, snapshot, forget=False)
                raise


def _hits(snapshot: Snapshot, rows: Places, scores: Scores) -> list[Hit]:
    return [Hit(snapshot.chunks[row], float(score)) for row, score in zip(rows, scores, strict=True)]
