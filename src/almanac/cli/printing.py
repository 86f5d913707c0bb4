"""What verbs print: results on stdout, everything about them on stderr, JSON for machines.

Texts of models and documents are not trusted: on a terminal their control characters are shown, not obeyed, as they could
move the cursor, rename the window or fill the clipboard. Where the output is not a terminal it is left as it is.
"""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

_KEPT = "\n\t"


def visible(text: str, stream: TextIO) -> str:
    """``text`` as it may be written to ``stream``: for a terminal, control characters become U+FFFD."""
    if not stream.isatty():
        return text
    return "".join(c if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cs") else "\ufffd" for c in text)


def write(text: str) -> None:
    """Text to stdout, at once and without a line end."""
    sys.stdout.write(visible(text, sys.stdout))
    sys.stdout.flush()


def line(text: str = "") -> None:
    """A line to stdout."""
    write(f"{text}\n")


def note(text: str) -> None:
    """A line about the result, to stderr."""
    sys.stderr.write(f"{visible(text, sys.stderr)}\n")
    sys.stderr.flush()


def emit(value: Mapping[str, Any], *, stream: TextIO | None = None) -> None:
    """One JSON object on a line of its own, in ASCII, so that no locale can break it; what is not finite is null."""
    out = stream or sys.stdout
    out.write(json.dumps(_finite(value), allow_nan=False) + "\n")
    out.flush()


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns on stdout; the last one is never cut."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    for row in cells:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def size(nbytes: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit in ("bytes", "kB") else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as people read them: ``0.4 s``, ``12:05``, ``1:00:30``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
