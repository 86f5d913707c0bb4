"""Substrings that stand twice: every later copy of ``min_bytes`` or more is cut out, wherever it lies.

Lee et al. 2021, "Deduplicating Training Data Makes Language Models Better" (arXiv 2107.06499, section 4.1): any run of 50
tokens that stands more than once. They sort all suffixes of the corpus; only whether the first L bytes of two suffixes agree
matters, so here the numbers of all runs of L bytes are sorted (`partitions`), on disk, 16 bytes for each byte of
text, in memory that does not grow. What agrees by number is compared byte by byte before it counts, so nothing is cut by
chance.

Deviations. L counts bytes of UTF-8, 200 for their 50 tokens. The first copy stays whole, theirs go all or all but one. A copy
that overlaps the first (``abababab``) counts from where it no longer does. A cut never divides a character.

Legend: L least length in bytes, n bytes in all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from almanac.core.value import Value
from almanac.data.dedup.partitions import Partitions, first_of_runs, mapped
from almanac.data.fingerprint import fold, scramble

TEXT, ENDS = "text.bin", "text-ends.bin"
_COMPARED = 1 << 14  # runs at once
_BLOCK = 1 << 20  # bytes of a text at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatedSubstrings(Value):
    """From how many bytes on a repeated substring is cut out."""

    min_bytes: int = 200


def write_texts(texts: Iterable[str], folder: Path) -> tuple[int, int]:
    """Writes the bytes of all texts in one file; returns how many texts and how many bytes there are."""
    folder.mkdir(parents=True, exist_ok=True)
    total = count = 0
    with (folder / TEXT).open("wb") as file, (folder / ENDS).open("wb") as ends:
        for text in texts:
            data = text.encode("utf-8")
            file.write(data)
            total, count = total + len(data), count + 1
            ends.write(np.array([total], "<i8").tobytes())
    return count, total


def repeated_spans(
    folder: Path, count: int, total: int, *, settings: RepeatedSubstrings
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(number of the text, spans in bytes of it, in order and apart) of every text that has something to cut."""
    data = mapped(folder / TEXT, "u1", total)
    ends = mapped(folder / ENDS, "<i8", count)
    length = settings.min_bytes
    grams = Partitions(folder / "grams", [("key", "<u8"), ("place", "<i8")], bound=2**64, rows=total)
    start = 0
    for end in ends:
        for block in range(start, max(start, int(end) - length + 1), _BLOCK):
            keys = gram_numbers(np.asarray(data[block : min(int(end), block + _BLOCK + length - 1)]), length)
            grams.add(keys, np.arange(block, block + len(keys)))
        start = int(end)
    later = Partitions(folder / "later", [("place", "<i8")], bound=max(1, total), rows=total)
    for part in grams.sorted():
        first = first_of_runs(part["key"])
        places, origins = part["place"], part["place"][first]
        far = np.flatnonzero(places - origins >= length)
        for at in range(0, len(far), _COMPARED):
            chosen = far[at : at + _COMPARED]
            offsets = np.arange(length)
            same = (data[places[chosen, None] + offsets] == data[origins[chosen, None] + offsets]).all(axis=1)
            later.add(places[chosen[same]])
    yield from _by_text(later, data, ends, length)


def gram_numbers(data: np.ndarray, length: int) -> np.ndarray:
    """Numbers of all runs of ``length`` bytes, uint64 [n - L + 1], from those of runs of 1, 2, 4, ... bytes."""
    count = len(data) - length + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    doubled = scramble(data.astype(np.uint64) + np.uint64(1))
    state = np.zeros(count, np.uint64)
    size, offset = 1, 0
    while True:
        if length & size:
            state = fold(state, doubled[offset : offset + count])
            offset += size
        if offset == length:
            return state
        doubled = fold(doubled[:-size], doubled[size:])
        size *= 2


def without_spans(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text without these spans of its bytes."""
    data = text.encode("utf-8")
    pieces, end = [], 0
    for start, stop in spans:
        pieces.append(data[end:start])
        end = stop
    return b"".join([*pieces, data[end:]]).decode("utf-8")


def _by_text(
    later: Partitions, data: np.ndarray, ends: np.ndarray, length: int
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    number, spans = -1, list[tuple[int, int]]()
    for part in later.sorted():
        places = part["place"]
        breaks = np.flatnonzero(np.diff(places, prepend=-length - 1) > length)  # spans that touch are one
        owners = np.searchsorted(ends, places, side="right")
        breaks = np.union1d(breaks, np.flatnonzero(np.diff(owners, prepend=-1)))
        for at, following in zip(breaks, [*breaks[1:], len(places)], strict=True):
            owner = int(owners[at])
            begin = int(ends[owner - 1]) if owner else 0
            start, stop = int(places[at]), int(places[following - 1]) + length
            if owner != number:
                if spans:
                    yield number, spans
                number, spans = owner, []
            span = _whole_characters(data, start, stop, int(ends[owner]))
            if spans and begin + spans[-1][1] >= span[0]:  # a span that goes on from the part before
                spans[-1] = (spans[-1][0], max(spans[-1][1], span[1] - begin))
            elif span[0] < span[1]:
                spans.append((span[0] - begin, span[1] - begin))
    if spans:
        yield number, spans


def _whole_characters(data: np.ndarray, start: int, stop: int, end: int) -> tuple[int, int]:
    while start < stop and data[start] & 0xC0 == 0x80:
        start += 1
    while start < stop < end and data[stop] & 0xC0 == 0x80:
        stop -= 1
    return start, stop
