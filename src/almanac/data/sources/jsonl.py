"""JSON lines: one record a line, the text in one of its fields; a bad line is a `Fault` and the next one is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

from almanac.data.sources.document import Document, Fault, metadata_of, unicode_text

MAX_LINE = 64 << 20  # bytes; a record is parsed as a whole
_SKIPPED_AT_ONCE = 1 << 20


def documents(
    stream: BinaryIO, name: str, *, field: str = "text", max_line: int = MAX_LINE
) -> Iterator[Document | Fault]:
    """The records of ``stream``; their ids are ``name`` and the number of the line, from 1."""
    number = 0
    while line := stream.readline(max_line + 1):
        number += 1
        where = f"{name}:{number}"
        if len(line) > max_line:
            while line and not line.endswith(b"\n"):
                line = stream.readline(_SKIPPED_AT_ONCE)
            yield Fault(where, f"the line is longer than {max_line:,} bytes")
        elif line.strip():
            yield _record(line, where, field)


def _record(line: bytes, where: str, field: str) -> Document | Fault:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return Fault(where, "the line is not JSON")
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        return Fault(where, f"the record has no text in {field!r}")
    return Document(where, unicode_text(text), metadata=metadata_of(record))
