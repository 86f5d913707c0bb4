"""Near copies by MinHash and locality-sensitive hashing, every one confirmed on the shingles themselves.

Broder 1997, "On the resemblance and containment of documents": the resemblance of two texts is the Jaccard similarity
of their sets of w-word shingles, ``J(A, B) = |A ∩ B| / |A ∪ B|``, and for a random hash ``P[min h(A) = min h(B)] = J``.
A signature of ``k`` such minima is cut into ``b`` bands of ``r`` rows (``b r = k``); two texts become candidates when
one band agrees, with probability ``1 - (1 - J^r)^b``. Lee et al. 2021 (arXiv 2107.06499) clean training corpora so.

Deviations. (1) Lee et al. drop all but one member of each connected component; a chain A~B~C then drops C although C
is not like A. Here texts are taken in order, and one is a duplicate only of a *kept* text it is verified against;
union-find still reports who belongs together. (2) Verification is exact Jaccard, of the candidates in the order of
their estimated similarity, at most ``MAX_VERIFIED`` of them. (3) Hashes are keyed BLAKE2 and fixed-seed multiply-shift,
never Python's salted ``hash()``: the same texts give the same groups on every machine.

Legend: n shingles of a text, k signature length, b bands, r rows a band.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np

from almanac.core.errors import RequestError
from almanac.core.value import Value
from almanac.data.fingerprint import number_of, runs

SEED = 20_107_069
BLOCK = 4096  # shingles hashed at once: 4096 x 128 x 8 bytes = 4 MiB
MAX_VERIFIED = 16
BAND_RECALL = 0.99  # of pairs exactly at the threshold; those above it are found more surely

Key = TypeVar("Key", bound=Hashable)

# Scripts written without spaces: one character is one word, or a page would be a single shingle.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearDuplicates(Value):
    """How near copies are found: ``threshold`` is the Jaccard similarity from which two texts count as one."""

    threshold: float = 0.85
    shingle_words: int = 5
    signature: int = 128


@dataclasses.dataclass(frozen=True)
class Duplicate:
    """Text ``index`` is a near copy of the kept text ``of``; ``similarity`` is their exact Jaccard similarity."""

    index: int
    of: int
    similarity: float


@dataclasses.dataclass(frozen=True)
class Group:
    """Texts linked by verified similarity: indices ``kept`` (at least one) and the ``duplicates`` of these."""

    kept: tuple[int, ...]
    duplicates: tuple[Duplicate, ...]


def words(text: str) -> list[str]:
    """The words of ``text`` in lower case; in scripts without spaces every character is a word."""
    return _WORD.findall(text.casefold())


def shingles(text: str, *, size: int = 5) -> np.ndarray:
    """The set of ``size``-word shingles of ``text`` as sorted unique hashes, uint64 [n].

    A text with fewer words than ``size`` is one shingle, one without words has none.
    """
    found = words(text)
    if not found:
        return np.zeros(0, np.uint64)
    known: dict[str, int] = {}
    hashes = np.array(
        [known[word] if word in known else known.setdefault(word, number_of(word)) for word in found], "<u8"
    )
    return np.unique(runs(hashes, min(size, len(found))))


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted unique arrays; 0 where both are empty."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - common
    return common / union if union else 0.0


def minhash(found: np.ndarray, *, length: int = 128) -> np.ndarray:
    """The MinHash signature of a set of shingles, uint32 [k]; an empty set gives all ones."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    odd, shift = generator.integers(0, 2**63, (2, length), dtype=np.uint64)
    odd = odd * np.uint64(2) + np.uint64(1)
    lowest = np.full(length, 2**32 - 1, np.uint32)
    for start in range(0, len(found), BLOCK):
        products = found[start : start + BLOCK, None] * odd + shift  # uint64 [block, k], wraps on purpose
        np.minimum(lowest, (products >> np.uint64(32)).astype(np.uint32).min(axis=0), out=lowest)
    return lowest


def band_shape(threshold: float, *, length: int = 128) -> tuple[int, int]:
    """(bands, rows) with ``bands * rows == length``: the most selective that finds pairs at the threshold."""
    for rows in range(length, 1, -1):
        if length % rows == 0 and 1 - (1 - threshold**rows) ** (length // rows) >= BAND_RECALL:
            return length // rows, rows
    return length, 1


class NearIndex(Generic[Key]):
    """Kept texts by key, to which a new text is compared; grows by `add`.

    Args:
        settings: threshold, shingle size and signature length.

    Raises:
        RequestError: a threshold outside (0, 1], or sizes below 1.
    """

    def __init__(self, settings: NearDuplicates | None = None) -> None:
        self.settings = settings or NearDuplicates()
        if not 0 < self.settings.threshold <= 1 or self.settings.shingle_words < 1 or self.settings.signature < 1:
            raise RequestError(
                f"Near duplicates at threshold {self.settings.threshold}, shingles of {self.settings.shingle_words} "
                f"words and a signature of {self.settings.signature}",
                remedy="Give a threshold above 0 and at most 1, and sizes of at least 1.",
            )
        self.bands, self._rows = band_shape(self.settings.threshold, length=self.settings.signature)
        self._keys: list[Key] = []
        self._numbers: dict[Key, list[int]] = defaultdict(list)
        self._gone: set[int] = set()
        self._sets: list[np.ndarray] = []  # uint64 [n] each
        self._signatures = np.zeros((0, self.settings.signature), np.uint32)  # [capacity, k]
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._keys) - len(self._gone)

    def add(self, key: Key, text: str) -> None:
        """Keeps ``text`` under ``key`` (a key may come more than once: a text may have several versions)."""
        found = shingles(text, size=self.settings.shingle_words)
        if not len(found):
            return
        signature = minhash(found, length=self.settings.signature)
        number = len(self._keys)
        if number == len(self._signatures):
            more = np.zeros((max(16, number), self.settings.signature), np.uint32)
            self._signatures = np.concatenate([self._signatures, more])
        self._signatures[number] = signature
        self._keys.append(key)
        self._numbers[key].append(number)
        self._sets.append(found)
        for band in self._bands_of(signature):
            self._buckets[band].append(number)

    def remove(self, key: Key) -> None:
        """Forgets every text kept under ``key``; an unknown key is nothing to forget."""
        self._gone.update(self._numbers.pop(key, ()))

    def matches(self, text: str, *, without: Key | None = None) -> list[tuple[Key, float]]:
        """(key, exact similarity) of the kept texts at or above the threshold, most similar first, then oldest first.

        ``without`` is a key to leave out: a new version of a text is no copy of the old one.
        """
        found = shingles(text, size=self.settings.shingle_words)
        if not len(found):
            return []
        signature = minhash(found, length=self.settings.signature)
        numbers = sorted({number for band in self._bands_of(signature) for number in self._buckets.get(band, ())})
        numbers = [number for number in numbers if number not in self._gone]
        numbers = [number for number in numbers if without is None or self._keys[number] != without]
        if len(numbers) > MAX_VERIFIED:
            estimate = (self._signatures[numbers] == signature).mean(axis=1)
            numbers = [numbers[place] for place in np.argsort(-estimate, kind="stable")[:MAX_VERIFIED]]
        scored = [(jaccard(found, self._sets[number]), number) for number in numbers]
        scored = sorted((-value, number) for value, number in scored if value >= self.settings.threshold)
        return [(self._keys[number], -value) for value, number in scored]

    def _bands_of(self, signature: np.ndarray) -> Iterable[tuple[int, bytes]]:
        rows = signature.astype("<u4").reshape(self.bands, self._rows)
        return ((band, row.tobytes()) for band, row in enumerate(rows))


def near_duplicates(texts: Sequence[str], *, settings: NearDuplicates | None = None) -> tuple[Group, ...]:
    """The groups of near copies among ``texts``, in the order of their first member; the earlier text is kept."""
    index: NearIndex[int] = NearIndex(settings)
    parent = list(range(len(texts)))
    duplicates: list[Duplicate] = []
    for number, text in enumerate(texts):
        matches = index.matches(text)
        for key, _ in matches:
            _union(parent, number, key)
        if matches:
            duplicates.append(Duplicate(number, *matches[0]))
        else:
            index.add(number, text)
    dropped = {item.index for item in duplicates}
    members: dict[int, list[int]] = defaultdict(list)
    for number in range(len(texts)):
        members[_root(parent, number)].append(number)
    by_index = {item.index: item for item in duplicates}
    return tuple(
        Group(
            tuple(number for number in group if number not in dropped),
            tuple(by_index[number] for number in group if number in dropped),
        )
        for group in members.values()
        if len(group) > 1
    )


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def _union(parent: list[int], left: int, right: int) -> None:
    low, high = sorted((_root(parent, left), _root(parent, right)))
    parent[high] = low
