"""Tables as text (CSV, TSV): each row is one line, ``column: value; column: value``, so that a row can be cited.

Which character separates the cells is found by trying: the one that gives most rows the same number of cells.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from almanac.core.errors import FileFormatError
from almanac.retrieve.read.decode import decode
from almanac.retrieve.read.document import Outline, Reading

SUFFIXES = (".csv", ".tsv")

MAX_COLUMNS = 1_000
MAX_CHARACTERS = 32 * 2**20  # of the text made, in which the columns' names are repeated for each row
MAX_NAME = 80  # characters of a column's name
SAMPLE_ROWS = 50
_DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"[-+]?[\d.,\s]*\d[\d.,\s]*%?")
_REMEDY = "Split it into smaller tables."


def read(data: bytes, path: str) -> Reading:
    """The document in a table: its title is the file's name, its text one line a row.

    Raises:
        FileFormatError: the bytes are not text, no table, or one with too many columns or too much text.
    """
    decoded = decode(data, path)
    outline = Outline()
    title = PurePosixPath(path).stem.replace("_", " ").strip()
    outline.title(title)
    outline.heading(1, title)
    delimiter = "\t" if path.lower().endswith(".tsv") else _delimiter(decoded.text)
    rows = (row for row in _rows(decoded.text, delimiter, path) if any(row))
    first = next(rows, [])
    second = next(rows, None)
    if _is_header(first, second):
        names = [name[:MAX_NAME] or f"column {number}" for number, name in enumerate(first, 1)]
    else:
        names = [f"column {number}" for number in range(1, len(first) + 1)]
        rows = itertools.chain([first, second] if second else [first], rows)
        second = None
    lines, size = [], 0
    for row in itertools.chain([second] if second else [], rows):
        lines.append(_line(names, row))
        size += len(lines[-1]) + 1
        if size > MAX_CHARACTERS:
            raise FileFormatError(f"{path} makes more than {MAX_CHARACTERS >> 20} MiB of text", remedy=_REMEDY)
    outline.block("\n".join(lines))
    return outline.build(path, hashlib.sha256(data).hexdigest(), notes=decoded.notes)


def _rows(text: str, delimiter: str, path: str) -> Iterator[list[str]]:
    """Cells without line breaks or surrounding space."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            if len(row) > MAX_COLUMNS:
                raise FileFormatError(
                    f"{path} has more than {MAX_COLUMNS:,} columns in row {reader.line_num}", remedy=_REMEDY
                )
            yield [" ".join(cell.split()) for cell in row]
    except csv.Error as error:
        raise FileFormatError(
            f"{path} is no table that can be read: {error} (line {reader.line_num})",
            remedy="Check the quotation marks around its cells.",
        ) from error


def _delimiter(text: str) -> str:
    """The separator under which most of the first rows have the same number of cells, two at least."""
    sample = "\n".join(text[:200_000].split("\n")[: SAMPLE_ROWS + 1][:SAMPLE_ROWS])
    scores: dict[str, tuple[int, int]] = {}
    for delimiter in _DELIMITERS:
        try:
            widths = Counter(
                len(row) for row in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter) if len(row) > 1
            )
        except csv.Error:
            continue
        width, rows = widths.most_common(1)[0] if widths else (1, 0)
        scores[delimiter] = (rows, width)
    return max(scores, key=lambda delimiter: scores[delimiter], default=",")


def _is_header(first: list[str], second: list[str] | None) -> bool:
    """Names stand above values: all different, none empty but the first, and none a number."""
    if second is None or not first:
        return False
    named = first if first[0] else first[1:]
    return all(named) and len(set(first)) == len(first) and not any(_NUMBER.fullmatch(name) for name in named)


def _line(names: list[str], row: list[str]) -> str:
    if len(row) > len(names):
        names = names + [f"column {number}" for number in range(len(names) + 1, len(row) + 1)]
    return "; ".join(f"{name}: {cell}" for name, cell in zip(names, row, strict=False) if cell)
