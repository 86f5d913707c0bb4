"""Small documents, and an embedder that needs no model: a text's vector is the sum of its words' fixed vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from almanac.retrieve.chunk.chunk import Chunk, chunk_id
from almanac.retrieve.index.store import DocumentIndex
from almanac.retrieve.read.document import Document, Outline

Pair = tuple[Document, list[Chunk]]


class WordVectors:
    """An `Embedder` of ``dim`` numbers; counts the texts it was given."""

    def __init__(self, dim: int = 16, digest: str = "words") -> None:
        self.dim, self.digest, self.texts = dim, digest, 0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        return np.array([self._of(text) for text in texts], np.float32).reshape(len(texts), self.dim)

    def _of(self, text: str) -> np.ndarray:
        return sum((_word(word, self.dim) for word in text.lower().split()), np.zeros(self.dim))


@cache
def _word(word: str, dim: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(dim)


def document(path: str, *paragraphs: str, title: str = "", digest: str | None = None) -> Pair:
    """A document with one section and one chunk per paragraph."""
    outline = Outline()
    outline.title(title or f"Title of {path}")
    for number, paragraph in enumerate(paragraphs):
        outline.heading(1, f"Section {number}")
        outline.block(paragraph)
    made = outline.build(path, digest or hashlib.sha256("\0".join(paragraphs).encode()).hexdigest()).document
    return made, chunks_of(made)


def chunks_of(made: Document) -> list[Chunk]:
    """One chunk per section."""
    return [
        Chunk(
            chunk_id(made.path, one.heading, text=one.text, occurrence=number),
            made.path, made.title, one.heading, one.text, one.start, one.end, made.page_at(one.start),
        )
        for number, one in enumerate(made.sections)
    ]  # fmt: skip


def fingerprint(index: DocumentIndex) -> tuple[object, ...]:
    """Everything that an index tells, its scores to the last bit; not its generation and times."""
    entries = tuple((one.path, one.title, one.digest, one.chunks, one.characters) for one in index.documents)
    damaged = {path for path, _ in index.damaged}
    texts = tuple(index.document(one.path) for one in index.documents if one.path not in damaged)
    words = sorted({word for chunk in index.chunks for word in chunk.text.split()})[:40]
    modes = ("lexical",) if index.embedder is None else ("lexical", "dense")
    found = tuple(
        (hit.chunk.id, hit.score) for mode in modes for hit in index.search(" ".join(words) or "none", 50, mode=mode)
    )
    return entries, texts, index.chunks, found, tuple(sorted(damaged))
