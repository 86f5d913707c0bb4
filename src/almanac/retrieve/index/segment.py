"""A segment: one document with its chunks, vectors and term counts, as one immutable safetensors file.

Tensors: ``text`` and ``vocabulary`` (UTF-8, a term a line) and ``outline`` (JSON) as uint8; ``terms`` int32
[3, entries]: rows, terms and counts of `lexical.Counts`; ``vectors`` float32 [chunks, dim], with dim 0 in an index
without vectors. Chunks and sections are kept as places in the text, so no text is stored twice.
What is read is checked whatever its digest says: an index may come from somebody else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from almanac.core.errors import FileFormatError, RequestError
from almanac.files.quoting import quoted
from almanac.files.safetensors.header import header_length, parse_header
from almanac.files.safetensors.reading import SafetensorsFile
from almanac.files.strict_json import parse_json
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.index.vectors import Vectors
from almanac.retrieve.lexical import Counts
from almanac.retrieve.read.document import Document, Section

MAX_PATH_BYTES = 4096
_FORMAT = {"format": "almanac.segment.1"}


@dataclasses.dataclass(frozen=True)
class StoredDocument:
    """A document as the index keeps it; `Section` and `Chunk` offsets count characters of ``text``."""

    path: str
    title: str
    text: str
    sections: tuple[Section, ...]
    pages: tuple[int, ...]
    digest: str
    origin: str
    language: str
    chunks: tuple[Chunk, ...]


@dataclasses.dataclass(frozen=True)
class Segment:
    """What a segment file holds."""

    document: StoredDocument
    counts: Counts
    vectors: Vectors


@dataclasses.dataclass(frozen=True)
class Content:
    """A document and its bytes, before terms and vectors are made of it; ``digest`` tells whether anything changed."""

    document: Document
    chunks: tuple[Chunk, ...]
    language: str
    text: bytes
    outline: bytes
    digest: str


def content_of(document: Document, chunks: Sequence[Chunk], *, language: str = "") -> Content:
    """The bytes of a document with its chunks.

    Raises:
        RequestError: an empty or over-long path, text that is not valid Unicode, or chunks or sections that are not
            the pieces of this document that they say they are.
    """
    text = document.text
    for piece in (*document.sections, *chunks):
        if not 0 <= piece.start <= piece.end <= len(text) or text[piece.start : piece.end] != piece.text:
            raise _refused(document, f"a piece of it at {piece.start} to {piece.end} is not its text there")
    if any(chunk.document != document.path for chunk in chunks):
        raise _refused(document, "a chunk given for it belongs to another document")
    outline = {
        "path": document.path,
        "title": document.title,
        "digest": document.digest,
        "origin": document.origin,
        "language": language,
        "pages": list(document.pages),
        "sections": [[list(one.heading), one.level, one.start, one.end] for one in document.sections],
        "chunks": [[one.id, one.title, list(one.heading), one.start, one.end, one.page] for one in chunks],
    }
    try:
        if not 0 < len(document.path.encode("utf-8")) <= MAX_PATH_BYTES:
            raise _refused(document, f"its path is empty or longer than {MAX_PATH_BYTES} bytes")
        body = json.dumps(outline, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
        plain = text.encode("utf-8")
    except ValueError as error:  # UnicodeEncodeError: a lone surrogate
        raise _refused(document, "its path, title, headings or text are not valid Unicode") from error
    digest = hashlib.sha256(len(plain).to_bytes(8, "little") + plain + body).hexdigest()
    return Content(document, tuple(chunks), language, plain, body, digest)


def _refused(document: Document, why: str) -> RequestError:
    return RequestError(
        f"The document {quoted(document.path)} cannot be indexed: {why}", remedy="Read and cut the document again."
    )


def encode_segment(content: Content, counts: Counts, vectors: Vectors) -> bytes:
    """The segment's file; equal inputs give equal bytes."""
    import safetensors.numpy

    tensors = {
        "text": _bytes(content.text),
        "outline": _bytes(content.outline),
        "vocabulary": _bytes("\n".join(counts.vocabulary).encode("utf-8")),
        "terms": np.stack([counts.rows, counts.terms, counts.counts]),
        "vectors": np.ascontiguousarray(vectors, np.float32),
    }
    return safetensors.numpy.save(tensors, metadata=_FORMAT)


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def decode_segment(data: bytes | bytearray, *, source: str) -> Segment:
    """What `encode_segment` wrote, checked throughout. ``source`` names the file in errors.

    Raises:
        FileFormatError: it is something else, or its parts do not fit each other.
    """
    length = header_length(source, bytes(data[:512]), file_bytes=len(data))
    header = parse_header(source, bytes(data[8 : 8 + length]), file_bytes=len(data))
    file = SafetensorsFile(header, torch.frombuffer(bytearray(data), dtype=torch.uint8))
    try:
        if file.metadata != _FORMAT:
            raise ValueError(f"format {file.metadata.get('format')!r}")
        text = file["text"].numpy().tobytes().decode("utf-8")
        outline = parse_json(file["outline"].numpy().tobytes(), source=f"The outline in {source}", max_depth=6)
        document = _document(outline, text)
        lines = file["vocabulary"].numpy().tobytes().decode("utf-8")
        rows, numbers, times = file["terms"].numpy()
        counts = Counts(lines.split("\n") if lines else [], rows, numbers, times, len(document.chunks))
        _check_counts(counts)
        vectors = file["vectors"].numpy()
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(document.chunks):
            raise ValueError(f"vectors {vectors.dtype} {vectors.shape} for {len(document.chunks)} chunks")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors that are not finite")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FileFormatError(
            f"{source} is not a sound segment: {str(error)[:200]}", remedy="Add the document again."
        ) from error
    return Segment(document, counts, vectors)


def _check_counts(counts: Counts) -> None:
    rows, terms, times = counts.rows, counts.terms, counts.counts
    if rows.dtype != np.int32 or rows.ndim != 1:
        raise ValueError("term arrays that are not int32 [3, entries]")
    limits = ((rows, 0, counts.chunks), (terms, 0, len(counts.vocabulary)), (times, 1, 1 << 31))
    if any(len(part) and not (low <= part.min() and part.max() < high) for part, low, high in limits):
        raise ValueError("term arrays that point outside")
    pairs = rows.astype(np.int64) * (len(counts.vocabulary) + 1) + terms
    if not (pairs[1:] > pairs[:-1]).all():
        raise ValueError("a term counted twice for one chunk, or out of order")


def _document(outline: Any, text: str) -> StoredDocument:
    if type(outline) is not dict or outline.keys() != {
        "path",
        "title",
        "digest",
        "origin",
        "language",
        "pages",
        "sections",
        "chunks",
    }:
        raise ValueError("an outline of other fields")
    path, title, digest = _text(outline["path"]), _text(outline["title"]), _text(outline["digest"])
    sections = []
    for heading, level, start, end in outline["sections"]:
        start, end = _span(start, end, text)
        sections.append(Section(_texts(heading), _count(level), text[start:end], start, end))
    chunks = []
    for name, above, heading, start, end, page in outline["chunks"]:
        start, end = _span(start, end, text)
        page = page if page is None else _count(page)
        chunks.append(Chunk(_text(name), path, _text(above), _texts(heading), text[start:end], start, end, page))
    pages = tuple(_count(one) for one in outline["pages"])
    origin, language = _text(outline["origin"]), _text(outline["language"])
    return StoredDocument(path, title, text, tuple(sections), pages, digest, origin, language, tuple(chunks))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{quoted(value, limit=40)} where a text should stand")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if type(value) is not list:
        raise ValueError("a heading that is not a list")
    return tuple(_text(one) for one in value)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{quoted(value, limit=40)} where a number from 0 should stand")
    return value


def _span(start: Any, end: Any, text: str) -> tuple[int, int]:
    if not _count(start) <= _count(end) <= len(text):
        raise ValueError("a piece that lies outside the text")
    return start, end
