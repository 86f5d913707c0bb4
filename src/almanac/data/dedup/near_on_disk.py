"""Near copies among any number of documents: the method of `near` in four steps over files.

1. `write_signatures`: of each text its MinHash signature and its shingles, appended to files.
2. `write_candidates`: band by band, texts of one band hash stand together after sorting; each is a candidate for the copy of
   the first ``LINKS`` of them and of the ``LINKS`` before it, so a menu that a million pages share costs a million links,
   not their square.
3. `near_copies`: candidates in the order of the later text, confirmed by the exact Jaccard similarity of the shingles.
4. Whoever asked leaves the copies out.

Lee et al. 2021 (arXiv 2107.06499, appendix A) drop all but one of each connected component, found by union-find. As in
`near` a text goes only if it is like one that *stays*, so no chain drops what is like nothing; taken in order, that needs
one bit a text and no union. Memory: 16 bytes a text and one part of a file; disk: about 8 bytes a word and 0.5 kB a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from almanac.data.dedup.near import NearDuplicates, band_shape, jaccard, minhash, shingles
from almanac.data.dedup.partitions import Partitions, first_of_runs, mapped
from almanac.data.fingerprint import runs

LINKS = 8
SIGNATURES, SHINGLES, ENDS = "signatures.bin", "shingles.bin", "shingle-ends.bin"
_AT_ONCE = 1 << 14  # texts


@dataclass(frozen=True)
class NearCopies:
    """For each text the number of the text that it is a copy of, int64 [n], -1 for none; and how alike, float64 [n]."""

    original: np.ndarray
    similarity: np.ndarray


def write_signatures(texts: Iterable[str], folder: Path, *, settings: NearDuplicates) -> int:
    """Step 1; returns how many texts there are."""
    folder.mkdir(parents=True, exist_ok=True)
    total = count = 0
    with (
        (folder / SIGNATURES).open("wb") as signatures,
        (folder / SHINGLES).open("wb") as stored,
        (folder / ENDS).open("wb") as ends,
    ):
        for text in texts:
            found = shingles(text, size=settings.shingle_words)
            signatures.write(minhash(found, length=settings.signature).astype("<u4").tobytes())
            stored.write(found.astype("<u8").tobytes())
            total, count = total + len(found), count + 1
            ends.write(np.array([total], "<i8").tobytes())
    return count


def write_candidates(folder: Path, count: int, *, settings: NearDuplicates) -> Partitions:
    """Step 2: pairs (later, earlier) of texts that agree in a band, parted by the later; a pair may come more than once."""
    bands, rows = band_shape(settings.threshold, length=settings.signature)
    signatures = mapped(folder / SIGNATURES, "<u4", count * settings.signature).reshape(count, settings.signature)
    ends = mapped(folder / ENDS, "<i8", count)
    pairs = Partitions(
        folder / "pairs", [("later", "<i8"), ("earlier", "<i8")], bound=max(1, count), rows=count * LINKS
    )
    for band in range(bands):
        grouped = Partitions(folder / "band", [("key", "<u8"), ("place", "<i8")], bound=2**64, rows=count)
        for start in range(0, count, _AT_ONCE):
            part = signatures[start : start + _AT_ONCE, band * rows : (band + 1) * rows].astype(np.uint64)
            before = np.concatenate(
                [ends[start - 1 : start] if start else np.zeros(1, np.int64), ends[start:][:_AT_ONCE]]
            )
            has_words = np.flatnonzero(np.diff(before))
            keys = runs(np.ascontiguousarray(part.T), rows)[0] if len(part) else np.zeros(0, np.uint64)
            if len(has_words):
                grouped.add(keys[has_words], start + has_words)
        for part in grouped.sorted():
            _link(pairs, part)
    return pairs


def near_copies(folder: Path, pairs: Partitions, count: int, *, settings: NearDuplicates) -> NearCopies:
    """Step 3."""
    ends = mapped(folder / ENDS, "<i8", count)
    stored = mapped(folder / SHINGLES, "<u8", int(ends[-1]) if count else 0)
    original = np.full(count, -1, np.int64)
    similarity = np.zeros(count)
    for part in pairs.sorted():
        later = -1
        own = np.zeros(0, np.uint64)
        for late, early in np.unique(part).tolist():
            if original[early] >= 0:
                continue
            if late != later:
                later, own = late, _shingles(stored, ends, late)
            value = jaccard(own, _shingles(stored, ends, early))
            if value >= settings.threshold and value > similarity[late]:
                original[late], similarity[late] = early, value
    return NearCopies(original, similarity)


def _shingles(stored: np.ndarray, ends: np.ndarray, number: int) -> np.ndarray:
    return np.asarray(stored[int(ends[number - 1]) if number else 0 : int(ends[number])])


def _link(pairs: Partitions, part: np.ndarray) -> None:
    """Candidates of one sorted part: each row with the first of its key and with those just before it."""
    first = first_of_runs(part["key"])
    own = np.arange(len(part))
    for back in range(1, LINKS + 1):
        near = own - back >= first
        pairs.add(part["place"][near], part["place"][own[near] - back])
        early = (first + back - 1 < own - LINKS) & (own > first)
        pairs.add(part["place"][early], part["place"][first[early] + back - 1])
