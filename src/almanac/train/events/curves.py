"""Curves of a log of steps, read as it grows, in memory that does not grow with it.

The steps are divided into at most `POINTS` stretches of equal length; of each the mean, the least and the most are kept, so
a spike of one step in a million is still to be seen. When there are too many stretches, neighbours become one. Nothing
in a log is trusted: it may be cut off, hostile or no log at all.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

POINTS = 1024
MAX_LINE_BYTES = 1 << 16
MAX_STEP = 1 << 48
LARGEST = 1e30
RECENT = 20  # steps over which the rate is taken
_TAIL_BYTES = 512  # before the place reached; if they are others than before, the file is another

Numbers = Mapping[str, float]
Pick = Callable[[Mapping[str, Any]], Numbers]
Point = tuple[int, int, float, float, float]
"""Number of the stretch, its last step, mean, least, most."""


@dataclass
class _Stretch:
    count: int
    total: float
    low: float
    high: float
    last: int


@dataclass
class Series:
    """One curve."""

    stretches: dict[int, _Stretch] = field(default_factory=dict)

    def add(self, place: int, step: int, value: float) -> None:
        """A value that belongs to the stretch ``place``."""
        found = self.stretches.get(place)
        if found is None:
            self.stretches[place] = _Stretch(1, value, value, value, step)
            return
        found.count, found.total = found.count + 1, found.total + value
        found.low, found.high, found.last = min(found.low, value), max(found.high, value), max(found.last, step)

    def halve(self) -> None:
        """Makes one stretch of every two."""
        merged: dict[int, _Stretch] = {}
        for place, item in self.stretches.items():
            other = merged.setdefault(place // 2, item)
            if other is not item:
                other.count, other.total = other.count + item.count, other.total + item.total
                other.low, other.high = min(other.low, item.low), max(other.high, item.high)
                other.last = max(other.last, item.last)
        self.stretches = merged

    def points(self, since: int = 0) -> list[Point]:
        """The points whose stretch ends at ``since`` or later, in order."""
        chosen = sorted(item for item in self.stretches.items() if item[1].last >= since)
        return [(place, item.last, item.total / item.count, item.low, item.high) for place, item in chosen]


@dataclass
class Tally:
    """What is counted along the way: tokens, seconds, steps without an update, returns to a checkpoint, the recent rate."""

    tokens: float = 0.0
    seconds: float = 0.0
    skipped: int = 0
    rollbacks: int = 0
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, line: Mapping[str, Any]) -> None:
        """Counts a line of ``metrics.jsonl``; of another log there is nothing to count."""
        tokens, seconds = number(line.get("tokens")), number(line.get("seconds"))
        if tokens >= 0 and seconds >= 0:
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
            self.recent.append((tokens, seconds))
        self.skipped += line.get("skipped") is not None
        self.rollbacks += line.get("rolled_back_to") is not None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the last steps."""
        seconds = sum(second for _, second in self.recent)
        return sum(token for token, _ in self.recent) / seconds if seconds > 0 else None

    @property
    def seconds_per_step(self) -> float | None:
        """Of the last steps."""
        return sum(second for _, second in self.recent) / len(self.recent) if self.recent else None


class Curves:
    """The curves of one log.

    Args:
        path: a file of lines of JSON with ``step``; it may not exist yet. A link is not followed.
        pick: the numbers of a line; those that are not finite are left out.
    """

    def __init__(self, path: Path, pick: Pick) -> None:
        self.path, self.pick = path, pick
        self.generation = 0  # rises when the log begins anew
        self._restart()

    def _restart(self) -> None:
        self.generation += 1
        self.series: dict[str, Series] = {}
        self.tally = Tally()
        self.stride = 1  # steps of a stretch
        self.step = 0  # the last
        self.lines = self.damaged = 0
        self.offset = self.size = 0
        self._tail = b""
        self._identity: tuple[int, int] | None = None
        self._skipping = False

    def read(self, most_bytes: int) -> bool:
        """Reads on, at most so much. True if all that is there has been read; an unfinished last line is left."""
        opened = open_plain(self.path)
        if opened is None:
            if self.offset:
                self._restart()
            return True
        with opened as stream:
            descriptor = stream.fileno()
            status = os.fstat(descriptor)
            identity = (status.st_dev, status.st_ino)
            if self._identity not in (None, identity) or status.st_size < self.offset or not self._is_same(descriptor):
                self._restart()
            self._identity, self.size = identity, status.st_size
            stream.seek(self.offset)
            data = stream.read(min(most_bytes, self.size - self.offset))
        is_all = self.offset + len(data) >= self.size
        self._take(data)
        return is_all

    def _is_same(self, descriptor: int) -> bool:
        return os.pread(descriptor, len(self._tail), self.offset - len(self._tail)) == self._tail

    def _take(self, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) > MAX_LINE_BYTES:  # a line without an end: what is read of it is left behind
            self._skipping, end = True, len(data)
            lines: list[bytes] = []
        else:
            lines = data[:end].split(b"\n")[:-1]
            if self._skipping and lines:
                del lines[0]
                self._skipping, self.damaged = False, self.damaged + 1
        self.offset += end
        self._tail = (self._tail + data[:end][-_TAIL_BYTES:])[-_TAIL_BYTES:]
        for text in lines:
            line = parsed(text)
            if line is None:
                self.damaged += 1
            else:
                self._add(line)

    def _add(self, line: Mapping[str, Any]) -> None:
        step = line["step"]
        self.lines, self.step = self.lines + 1, max(self.step, step)
        while step // self.stride >= POINTS:
            self.stride *= 2
            for series in self.series.values():
                series.halve()
        self.tally.add(line)
        for name, value in self.pick(line).items():
            if math.isfinite(value):
                self.series.setdefault(name, Series()).add(step // self.stride, step, value)


def parsed(text: bytes) -> dict[str, Any] | None:
    """A line as an object with a sensible ``step``, or None."""
    if len(text) > MAX_LINE_BYTES:
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if type(step) is int and 0 <= step < MAX_STEP else None


def number(value: object) -> float:
    """A number of a log as a float; NaN for anything else, and for what no measurement is and no sum could hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        return math.nan
    return float(value)


def of_step(line: Mapping[str, Any]) -> dict[str, float]:
    """The curves of a line of ``metrics.jsonl``."""
    seconds = number(line.get("seconds"))
    rate = number(line.get("tokens")) / seconds if seconds > 0 else math.nan
    return {
        "loss": number(line.get("loss")),
        "learning_rate": number(line.get("learning_rate")),
        "gradient_norm": number(line.get("gradient_norm")),
        "tokens_per_second": rate,
    }


def last_lines(path: Path, most_bytes: int) -> Iterator[dict[str, Any]]:
    """The whole lines at the end of a log, within its last bytes; nothing if it cannot be read. No link is followed."""
    opened = open_plain(path)
    if opened is None:
        return
    with opened as stream:
        status = os.fstat(stream.fileno())
        start = max(0, status.st_size - most_bytes)
        stream.seek(start)
        data = stream.read(most_bytes)
    whole = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]
    for text in whole[1 if start else 0 :]:
        line = parsed(text)
        if line is not None:
            yield line


def open_plain(path: Path) -> IO[bytes] | None:
    """A regular file that is no link, opened for reading; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")
