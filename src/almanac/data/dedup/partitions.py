"""Rows on disk, sorted without ever being in memory together: parted by a key's range, then sorted part by part.

The rows of one key lie in one part, and the parts are in the order of the keys, so going through them is going through a
sorted file. What is needed beyond one part is the disk: as many bytes as there are rows, written once and read once.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from almanac.core.errors import IntegrityError

PART_BYTES = 64 << 20
HELD_BYTES = 32 << 20  # rows that wait in memory, over all parts


class Partitions:
    """Rows of ``fields`` (name and numpy type), of which the first is the key, a number below ``bound``.

    Args:
        folder: made anew; whatever lay there is removed.
        rows: how many there will be, about.
    """

    def __init__(self, folder: Path, fields: list[tuple[str, str]], *, bound: int, rows: int) -> None:
        self.dtype = np.dtype(fields)
        self._key = fields[0][0]
        count = max(1, min(1024, -(-rows * self.dtype.itemsize // PART_BYTES), bound))
        self._width = -(-bound // count)
        self._folder = folder
        self._held: list[list[np.ndarray]] = [[] for _ in range(-(-bound // self._width))]
        self._written = [0] * len(self._held)
        self._waiting = 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, *columns: np.ndarray) -> None:
        """Adds rows, given as one array for each field, all of one length."""
        if not len(columns[0]):
            return
        rows = np.empty(len(columns[0]), self.dtype)
        for (name, _), column in zip(self.dtype.descr, columns, strict=True):
            rows[name] = column
        parts = np.zeros(len(rows), np.int64)
        if len(self._held) > 1:
            parts = (columns[0].astype(np.uint64) // np.uint64(self._width)).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        places = np.flatnonzero(np.diff(parts[order], prepend=-1))
        for start, end in zip(places, [*places[1:], len(rows)], strict=True):
            self._held[parts[order[start]]].append(rows[order[start:end]])
        self._waiting += rows.nbytes
        if self._waiting > HELD_BYTES:
            self._flush()

    def sorted(self) -> Iterator[np.ndarray]:
        """The rows of one part after another, sorted by all fields in their order; each part is removed when it was read.

        Raises IntegrityError where the disk gives less than was written.
        """
        self._flush()
        for number, expected in enumerate(self._written):
            if not expected:
                continue
            path = self._folder / f"{number:04}"
            rows = np.fromfile(path, self.dtype)
            if len(rows) != expected:
                raise IntegrityError(
                    f"{path} holds {len(rows)} of {expected} rows", remedy="Check the disk; run again."
                )
            path.unlink()
            yield rows[np.lexsort([rows[name] for name, _ in reversed(self.dtype.descr)])]
        shutil.rmtree(self._folder, ignore_errors=True)

    def _flush(self) -> None:
        for number, waiting in enumerate(self._held):
            if waiting:
                rows = np.concatenate(waiting)
                with (self._folder / f"{number:04}").open("ab") as file:
                    file.write(rows.tobytes())
                self._written[number] += len(rows)
                waiting.clear()
        self._waiting = 0


def first_of_runs(*columns: np.ndarray) -> np.ndarray:
    """Of rows that are sorted: for each the place of the first that agrees with it in these columns, int64 [n]."""
    if not len(columns[0]):
        return np.zeros(0, np.int64)
    differs = np.zeros(len(columns[0]), bool)
    differs[0] = True
    for column in columns:
        differs[1:] |= column[1:] != column[:-1]
    return np.maximum.accumulate(np.where(differs, np.arange(len(differs)), 0))


def mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    """``count`` numbers of a file, mapped read-only; an empty array where there are none."""
    if not count:
        return np.zeros(0, dtype)
    if path.stat().st_size != count * np.dtype(dtype).itemsize:
        raise IntegrityError(f"{path} has {path.stat().st_size} bytes", remedy="Check the disk; run again.")
    return np.memmap(path, dtype, "r", shape=(count,))
