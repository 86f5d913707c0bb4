"""The lexical index: BM25 in Lucene's variant, by column sums over postings.

    score(q, d) = sum over terms t of q:  idf(t) * tf / (tf + k1 * (1 - b + b * |d| / avgdl))
    idf(t)      = ln(1 + (N - df + 0.5) / (df + 0.5))

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009); the variant: Kamphuis et al.,
"Which BM25 Do You Mean?" (ECIR 2020). A chunk's terms are those of its text, and those of its title and headings as
often as `boost` says. Equal scores rank in the order of the chunks, so a ranking never changes by itself.

Postings hold tf term by term (a term-by-chunk matrix in compressed columns) and are weighted when a query asks for
them: a new chunk changes N, avgdl and with them every weight, but no other chunk's counts.

Legend: N chunks; V terms known; E postings (pairs of a chunk and a term in it).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from almanac.core.errors import RequestError
from almanac.retrieve.chunk.chunk import Chunk
from almanac.retrieve.index.best import Places, Scores, best_of_groups
from almanac.retrieve.index.hit import Hit
from almanac.retrieve.terms import terms

# Says how texts become terms: a store whose counts were made another way counts again. A test pins what it stands for.
ANALYSIS = "english.1"
# How people address an assistant; in most document folders these words are rare and would outweigh the topic.
_ASKING = re.compile(r"\b(?:the |these |my |our )?documents? (?:say|says|tell|tells)\b", re.IGNORECASE)
_DENSE = 8  # a term in more than one of so many chunks keeps a weight for every chunk


@dataclasses.dataclass(frozen=True)
class Counts:
    """Which terms stand how often in some chunks: three arrays int32 [entries] in the order of chunk, then term."""

    vocabulary: Sequence[str]
    rows: NDArray[np.int32]  # the chunk
    terms: NDArray[np.int32]  # the place in `vocabulary`
    counts: NDArray[np.int32]  # at least 1
    chunks: int


def chunk_terms(chunk: Chunk, boost: int) -> list[str]:
    """What ``chunk`` is indexed under."""
    names = dict.fromkeys((chunk.title, *chunk.heading))  # the outermost heading often is the title
    return terms(chunk.text) + boost * terms("\n".join(names))


def query_terms(query: str) -> list[str]:
    """What ``query`` asks for."""
    return terms(_ASKING.sub(" ", query))


def count_terms(found: Sequence[Sequence[str]]) -> Counts:
    """The counts of chunks whose terms are ``found``; the vocabulary is sorted."""
    counted = [Counter(one) for one in found]
    vocabulary = sorted({term for one in counted for term in one})
    number = {term: place for place, term in enumerate(vocabulary)}
    ordered = [sorted(one.items()) for one in counted]
    return Counts(
        vocabulary,
        np.repeat(np.arange(len(counted), dtype=np.int32), [len(one) for one in counted]),
        np.fromiter((number[term] for one in ordered for term, _ in one), np.int32),
        np.fromiter((count for one in ordered for _, count in one), np.int32),
        len(counted),
    )


@dataclasses.dataclass(frozen=True)
class Postings:
    """All counts, term by term; term ``t`` owns ``rows[starts[t] : starts[t + 1]]``. It is never changed."""

    vocabulary: Mapping[str, int]
    starts: NDArray[np.int64]  # [V + 1]
    rows: NDArray[np.int32]  # [E], each once per term
    counts: NDArray[np.float32]  # [E]
    lengths: NDArray[np.float64]  # [N], terms in each chunk
    norms: NDArray[np.float64]  # [N], k1 * (1 - b + b * |d| / avgdl)
    k1: float
    b: float
    _columns: dict[int, tuple[Places | None, NDArray[np.float64]]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def empty(cls, *, k1: float, b: float) -> Postings:
        """No chunks."""
        none = np.zeros(0)
        return cls({}, np.zeros(1, np.int64), none.astype(np.int32), none.astype(np.float32), none, none, k1, b)

    def changed(self, place: Places, added: Sequence[tuple[int, Counts]], chunks: int) -> Postings:
        """The postings with old chunk ``i`` at ``place[i]`` (dropped if -1), and each of ``added`` from a row on.

        Places and added rows together must be 0 to ``chunks`` - 1. Costs a few passes over the postings and no text.
        """
        merge = Merge(self)
        for row, part in added:
            merge.add(row, part)
        return merge.postings(place, chunks)

    def scores(self, asked: Sequence[str]) -> NDArray[np.float64]:
        """float64 [N]: how well each chunk matches the terms ``asked``, a repeated term as often as it is asked."""
        total = np.zeros(len(self.lengths))
        for term, times in Counter(asked).items():
            column = self.vocabulary.get(term)
            if column is None:
                continue
            rows, weighted = self._column(column)
            if rows is None:
                total += times * weighted
            else:
                np.add.at(total, rows, times * weighted)
        return total

    def _column(self, column: int) -> tuple[Places | None, NDArray[np.float64]]:
        """What a term adds to the scores of the chunks that hold it, or of all chunks (no rows) where many do, which
        is several times faster; worked out when first asked for.
        """
        known = self._columns.get(column)
        if known is None:
            part = slice(self.starts[column], self.starts[column + 1])
            rows, counts = self.rows[part].astype(np.int64), self.counts[part]
            weighted = self.idf(len(rows)) * (counts / (counts + self.norms[rows]))  # the norms make it float64
            known = (rows, weighted)
            if _DENSE * len(rows) > len(self.norms):
                spread = np.zeros(len(self.norms))
                spread[rows] = weighted
                known = (None, spread)
            self._columns[column] = known
        return known

    def idf(self, holding: int) -> float:
        """How much a term weighs that ``holding`` chunks hold."""
        return math.log(1 + (len(self.lengths) - holding + 0.5) / (holding + 0.5))

    def weights(self, query: str) -> dict[str, float]:
        """Each term that ``query`` asks for with its idf; a term that no chunk holds weighs most."""
        places = {term: self.vocabulary.get(term) for term in query_terms(query)}
        held = {term: 0 if at is None else int(self.starts[at + 1] - self.starts[at]) for term, at in places.items()}
        return {term: self.idf(count) for term, count in held.items()}

    def search(
        self, query: str, k: int, *, groups: NDArray[np.int32] | None = None, per_group: int | None = None
    ) -> tuple[Places, Scores]:
        """Rows and scores of the at most ``k`` best chunks that match ``query`` at all; see `best_of_groups`."""
        scores = self.scores(query_terms(query))
        found = np.flatnonzero(scores > 0)
        groups = None if groups is None else groups[found]
        rows = found[best_of_groups(scores[found], k, groups=groups, per_group=per_group)]
        return rows, scores[rows]


class Merge:
    """Makes the next postings out of ``old`` ones, taking new counts one by one and keeping none of their words."""

    def __init__(self, old: Postings) -> None:
        self._old = old
        self._vocabulary = dict(old.vocabulary)
        none = np.zeros(0, np.int32)
        self._columns, self._rows, self._counts = [none], [none], [none]
        self._lengths: list[tuple[int, NDArray[np.float64]]] = []

    def add(self, row: int, part: Counts) -> None:
        """Takes the counts of chunks that will stand at ``row`` and after."""
        self._columns.append(_numbers(self._vocabulary, part.vocabulary)[part.terms])
        self._rows.append(part.rows + np.int32(row))
        self._counts.append(part.counts.copy())  # a view would keep the file it came from
        self._lengths.append((row, np.bincount(part.rows, weights=part.counts, minlength=part.chunks)))

    def postings(self, place: Places, chunks: int) -> Postings:
        """See `Postings.changed`."""
        old = self._old
        sizes, rows, counts = self._kept(place)
        lengths = np.zeros(chunks)
        stay = place >= 0
        lengths[place[stay]] = old.lengths[stay]
        for row, those in self._lengths:
            lengths[row : row + len(those)] = those
        column = np.concatenate(self._columns)
        order = np.argsort(column, kind="stable")
        sizes = np.concatenate([sizes, np.zeros(len(self._vocabulary) - len(sizes), np.int64)])
        at = np.cumsum(sizes)[column[order]]  # the end of each new posting's column as it was
        rows = _joined(rows, at, np.concatenate(self._rows)[order])
        counts = _joined(counts, at, np.concatenate(self._counts).astype(np.float32)[order])
        sizes += np.bincount(column, minlength=len(sizes))
        average = lengths.mean() if lengths.any() else 1.0
        norms = old.k1 * (1 - old.b + old.b * lengths / average)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        return Postings(self._vocabulary, starts, rows, counts, lengths, norms, old.k1, old.b)

    def _kept(self, place: Places) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """Column sizes, rows and counts of the chunks that stay, at their new rows."""
        sizes = np.diff(self._old.starts)
        rows = place.astype(np.int32)[self._old.rows]
        stay = rows >= 0
        if stay.all():
            return sizes, rows, self._old.counts
        kept = np.repeat(np.arange(len(sizes)), sizes)[stay]
        return np.bincount(kept, minlength=len(sizes)), rows[stay], self._old.counts[stay]


def _numbers(vocabulary: dict[str, int], words: Sequence[str]) -> NDArray[np.int32]:
    """The number of each of ``words``; a new word gets the next one."""
    numbers = list(map(vocabulary.get, words))
    if None in numbers:
        new = dict.fromkeys(word for word, number in zip(words, numbers, strict=True) if number is None)
        vocabulary.update(zip(new, range(len(vocabulary), len(vocabulary) + len(new)), strict=True))
        numbers = list(map(vocabulary.__getitem__, words))
    return np.array(numbers, np.int32)


def _joined(old: NDArray, at: Places, new: NDArray) -> NDArray:
    return np.insert(old, at, new) if len(old) else new


class LexicalIndex:
    """BM25 over chunks in memory. A store of documents that lasts is `almanac.retrieve.index.store`."""

    def __init__(self, chunks: Sequence[Chunk], *, k1: float = 1.2, b: float = 0.5, boost: int = 2) -> None:
        self.chunks = tuple(chunks)
        self.k1, self.b, self.boost = k1, b, boost
        counts = count_terms([self.terms_of(chunk) for chunk in self.chunks])
        self._postings = Postings.empty(k1=k1, b=b).changed(np.zeros(0, np.int64), [(0, counts)], len(self.chunks))

    @classmethod
    def build(cls, chunks: Sequence[Chunk]) -> LexicalIndex:
        """An index of ``chunks`` with the default settings."""
        return cls(chunks)

    def __len__(self) -> int:
        return len(self.chunks)

    def terms_of(self, chunk: Chunk) -> list[str]:
        """What ``chunk`` is indexed under."""
        return chunk_terms(chunk, self.boost)

    def search(self, query: str, k: int) -> list[Hit]:
        """The at most ``k`` best chunks with a score above zero, best first; none if no term of ``query`` is known.

        Raises:
            RequestError: ``k`` is below 1.
        """
        if k < 1:
            raise RequestError(f"A search for the best {k} chunks", remedy="Ask for one or more.")
        rows, scores = self._postings.search(query, k)
        return [Hit(self.chunks[row], float(score)) for row, score in zip(rows, scores, strict=True)]
