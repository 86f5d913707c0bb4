"""The texts of a file that a step learns from or compares with: one a line, or the strings of records.

``.txt`` and ``.md``: every line that is not blank. ``.jsonl`` and ``.csv``: one record a line or row, of which a field is
asked for, or all strings however deep. All of them also as ``.gz``.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from almanac.core.errors import FileFormatError, NotFoundError
from almanac.data.sources.document import unicode_text
from almanac.data.sources.jsonl import MAX_LINE
from almanac.data.sources.plain import texts

MAX_DEPTH = 20


def records(path: str) -> Iterator[dict[str, Any]]:
    """The records of a file in order; a line of text is ``{"text": line}``.

    Raises:
        NotFoundError: there is no such file. FileFormatError: it is damaged, or of a kind that is not read.
    """
    file = Path(path)
    name = file.name.lower().removesuffix(".gz")
    if not file.is_file():
        raise NotFoundError(f"There is no file {path}", remedy="Name a file of texts (.txt, .jsonl, .csv, also .gz).")
    try:
        with cast(BinaryIO, gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb")) as stream:
            if name.endswith(".jsonl"):
                yield from _json_lines(stream, path)
            elif name.endswith(".csv"):
                lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
                yield from csv.DictReader(lines)
            elif name.endswith((".txt", ".md")):
                for part in texts(stream, file.name):
                    yield from ({"text": line} for line in part.split("\n") if line.strip())
            else:
                raise FileFormatError(f"{path} is of no kind that is read", remedy="Give .txt, .jsonl or .csv.")
    except (gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise FileFormatError(f"{path} is damaged ({error})", remedy="Fetch the file again.") from error


def texts_of(path: str, field: str = "text") -> Iterator[str]:
    """The texts in one field of the records. Raises as `records`, and FileFormatError for a record without it."""
    for number, record in enumerate(records(path), 1):
        text = record.get(field)
        if not isinstance(text, str):
            raise FileFormatError(f"Record {number} of {path} has no text in {field!r}", remedy="Name the field.")
        yield unicode_text(text)


def strings_of(value: Any, depth: int = 0) -> Iterator[str]:
    """All strings in a record, however deep."""
    if isinstance(value, str):
        yield unicode_text(value)
    elif isinstance(value, dict | list) and depth < MAX_DEPTH:
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_of(item, depth + 1)


def _json_lines(stream: BinaryIO, path: str) -> Iterator[dict[str, Any]]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"Line {number} of {path} is not JSON", remedy="One JSON object a line.") from error
        yield record if isinstance(record, dict) else {"text": record}
