"""Shards of a corpus: JSON lines under gzip, the same documents always as the same bytes."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from almanac.core.errors import IntegrityError
from almanac.data.sources.document import Document
from almanac.files.store import Sink

LEVEL = 6


class Lines:
    """Records in, gzip out; no name and no time in its head."""

    def __init__(self, sink: Sink) -> None:
        self.bytes = 0
        self._sink = sink
        self._pack = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)

    def add(self, record: Mapping[str, Any]) -> None:
        """Writes one line."""
        line = json.dumps(record, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"
        self.bytes += len(line)
        if packed := self._pack.compress(line):
            self._sink.write(packed)

    def close(self) -> None:
        """Writes what is left."""
        self._sink.write(self._pack.flush())


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a shard of ours. Raises IntegrityError where it is not what was written."""
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                yield json.loads(line)
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise IntegrityError(f"{path} has changed", remedy="Remove the work folder beside it; run again.") from error


def documents(path: Path) -> Iterator[Document]:
    """The documents of a shard of ours. Raises as `records`."""
    return map(Document.from_record, records(path))
