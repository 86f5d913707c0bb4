"""Exact copies among any number of documents, by `exact`'s digest; memory does not grow with them.

128 bits of the digest are kept for each, sorted on disk (`partitions`), and the first document of a digest is its original.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from almanac.data.dedup.exact import normalise
from almanac.data.dedup.partitions import Partitions, first_of_runs

_AT_ONCE = 4096


def exact_copies(texts: Iterable[str], folder: Path, *, count: int) -> np.ndarray:
    """For each text the number of the first one that is the same, -1 for these: int64 [texts].

    Args:
        texts: in order. folder: for what is in work; made, and removed at the end. count: how many, about.
    """
    rows = Partitions(folder, [("key", "<u8"), ("check", "<u8"), ("place", "<i8")], bound=2**64, rows=count)
    total = 0
    waiting: list[bytes] = []
    for text in texts:
        waiting.append(hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).digest()[:16])
        if len(waiting) == _AT_ONCE:
            total = _add(rows, waiting, total)
    total = _add(rows, waiting, total)
    original = np.full(total, -1, np.int64)
    for part in rows.sorted():
        first = first_of_runs(part["key"], part["check"])
        copies = first != np.arange(len(part))
        original[part["place"][copies]] = part["place"][first[copies]]
    return original


def _add(rows: Partitions, waiting: list[bytes], total: int) -> int:
    halves = np.frombuffer(b"".join(waiting), "<u8").reshape(-1, 2)
    if len(halves):
        rows.add(halves[:, 0], halves[:, 1], np.arange(total, total + len(halves)))
    waiting.clear()
    return total + len(halves)
