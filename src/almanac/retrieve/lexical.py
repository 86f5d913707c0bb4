"""The lexical index: BM25 in Lucene's variant, scored by the library bm25s.

    score(q, d) = sum over terms t of q:  idf(t) * tf / (tf + k1 * (1 - b + b * |d| / avgdl))
    idf(t)      = ln(1 + (N - df + 0.5) / (df + 0.5))

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009); the variant: Kamphuis et al.,
"Which BM25 Do You Mean?" (ECIR 2020). A chunk's terms are those of its text, and those of its title and headings as
often as `LexicalIndex.boost` says. Equal scores rank in the order of the chunks, so a ranking never changes by itself.

On disk an index is one file, ``lexical.jsonl``: a line of settings, a line per chunk, and a last line with the SHA-256
of all bytes before it. It is replaced as a whole, so a reader sees the old index or the new one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from almanac.core.errors import FileFormatError, IntegrityError, NotFoundError, RequestError
from almanac.files.store import write_atomic
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.index import Hit
from almanac.retrieve.terms import terms

# The library sets its logger to DEBUG when imported, which passes every handler of the application.
logging.getLogger("bm25s").setLevel(logging.WARNING)

FILE = "lexical.jsonl"
FORMAT = "almanac.lexical.1"
# How people address an assistant; in most document folders these words are rare and would outweigh the topic.
_ASKING = re.compile(r"\b(?:the |these |my |our )?documents? (?:say|says|tell|tells)\b", re.IGNORECASE)


class LexicalIndex:
    """BM25 over chunks. Build it with `build` or `load`."""

    def __init__(self, chunks: Sequence[Chunk], *, k1: float = 1.2, b: float = 0.5, boost: int = 2) -> None:
        self.chunks = tuple(chunks)
        self.k1, self.b, self.boost = k1, b, boost
        self._scorer: bm25s.BM25 | None = None
        counted = [self.terms_of(chunk) for chunk in self.chunks]
        vocabulary = {term: number for number, term in enumerate(sorted({term for found in counted for term in found}))}
        if vocabulary:
            scorer = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64", backend="numpy", csc_backend="numpy")
            numbers = [[vocabulary[term] for term in found] for found in counted]
            scorer.index((numbers, vocabulary), create_empty_token=False, show_progress=False)
            self._scorer = scorer
        self._vocabulary = vocabulary

    @classmethod
    def build(cls, chunks: Sequence[Chunk]) -> LexicalIndex:
        """An index of ``chunks`` with the default settings."""
        return cls(chunks)

    def __len__(self) -> int:
        return len(self.chunks)

    def terms_of(self, chunk: Chunk) -> list[str]:
        """What ``chunk`` is indexed under."""
        names = dict.fromkeys((chunk.title, *chunk.heading))  # the outermost heading often is the title
        return terms(chunk.text) + self.boost * terms("\n".join(names))

    def search(self, query: str, k: int) -> list[Hit]:
        """The at most ``k`` best chunks with a score above zero, best first; none if no term of ``query`` is known.

        Raises:
            RequestError: ``k`` is below 1.
        """
        if k < 1:
            raise RequestError(f"A search for the best {k} chunks", remedy="Ask for one or more.")
        asked = terms(_ASKING.sub(" ", query))
        numbers = [self._vocabulary[term] for term in asked if term in self._vocabulary]
        if self._scorer is None or not numbers:
            return []
        scores = self._scorer.get_scores_from_ids(numbers)
        order = np.argsort(-scores, kind="stable")[:k]
        return [Hit(self.chunks[place], float(scores[place])) for place in order if scores[place] > 0]

    def save(self, folder: Path | str) -> Path:
        """Writes the index into ``folder`` (made if need be), all or nothing, and returns the file's path."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = {"format": FORMAT, "chunks": len(self), "k1": self.k1, "b": self.b, "boost": self.boost}
        lines = [settings, *(dataclasses.asdict(chunk) for chunk in self.chunks)]
        body = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode("ascii")
        write_atomic(path, body + _seal(body))
        return path

    @classmethod
    def load(cls, folder: Path | str) -> LexicalIndex:
        """The index that `save` wrote into ``folder``.

        Raises:
            NotFoundError: there is none.
            IntegrityError: the file is not what was written.
            FileFormatError: the file is whole, but from another version.
        """
        path = Path(folder) / FILE
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} does not exist", remedy="Build the index first.") from error
        cut = data.rfind(b"\n", 0, len(data) - 1) + 1
        if data[cut:] != _seal(data[:cut]):
            raise IntegrityError(f"{path} does not match its checksum", remedy="Build the index again.")
        try:
            return cls._from_lines([json.loads(line) for line in data[:cut].splitlines()])
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"{path} was written by another version ({error})", remedy="Build the index again."
            ) from error

    @classmethod
    def _from_lines(cls, lines: list[dict[str, Any]]) -> LexicalIndex:
        settings, *rows = lines
        if settings["format"] != FORMAT or settings["chunks"] != len(rows):
            raise ValueError(f"format {settings['format']!r}")
        chunks = [Chunk(**{**row, "heading": tuple(row["heading"])}) for row in rows]
        return cls(chunks, k1=settings["k1"], b=settings["b"], boost=settings["boost"])


def _seal(body: bytes) -> bytes:
    return json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode("ascii") + b"\n"
