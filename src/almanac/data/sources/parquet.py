"""Parquet files, a few rows at a time, by pyarrow (the extra ``data``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from almanac.core.errors import FileFormatError, MissingExtraError
from almanac.data.sources.document import Document, Fault, metadata_of, unicode_text

ROWS = 256  # read at once: a row group may hold millions
MAX_TEXT = 64 << 20  # characters of one row


def documents(stream: BinaryIO, name: str, *, field: str = "text") -> Iterator[Document | Fault]:
    """The rows of a file; their ids are ``name`` and the number of the row, from 1.

    Raises:
        MissingExtraError: pyarrow is not installed. FileFormatError: not Parquet, damaged, or without the column.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is Parquet, which needs pyarrow", remedy="Install it: pip install 'almanac-lm[data]'."
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(stream) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise FileFormatError(
                    f"{name} has no column {field!r} among {', '.join(columns[:10])}",
                    remedy="Name the column that holds the text.",
                )
            number = 0
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(row, f"{name}:{number}", field)
    except (pyarrow.ArrowException, OSError) as error:
        raise FileFormatError(
            f"{name} is damaged or no Parquet ({str(error)[:100]})", remedy="Fetch the file again."
        ) from error


def _document(row: dict[str, Any], where: str, field: str) -> Document | Fault:
    text = row[field]
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        return Fault(where, f"the row has no text in {field!r}, or too much of it")
    return Document(where, unicode_text(text), metadata=metadata_of(row))
