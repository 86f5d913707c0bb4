"""Numbers that stand for runs of words: the same on every machine, and never Python's salted ``hash()``.

`scramble` is the finishing step of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators"); folding
with it between two items makes the order of items count. Two different runs agree by chance once in 2^64.
"""

from __future__ import annotations

import hashlib

import numpy as np

_STRIDE = np.uint64(0x9E3779B97F4A7C15)


def scramble(value: np.ndarray) -> np.ndarray:
    """Every input bit moves every output bit; uint64 of any shape, one to one."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def fold(state: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The numbers of runs ``state`` with one more item each; uint64 of one shape."""
    return scramble(state * _STRIDE + item)


def runs(items: np.ndarray, size: int) -> np.ndarray:
    """The numbers of all runs of ``size`` neighbours: uint64 [n] -> uint64 [n - size + 1]."""
    count = len(items) - size + 1
    mixed = np.zeros(max(0, count), np.uint64)
    for offset in range(size if count > 0 else 0):
        mixed = fold(mixed, items[offset : offset + count])
    return mixed


def number_of(text: str) -> int:
    """64 bits of BLAKE2 of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
