"""Bytes to text: what a text file says, or why it cannot be read.

UTF-8 with or without its mark, UTF-16 and UTF-32 with theirs, and Latin-1 as the last resort, which is noted because a
wrong guess shows only to a person. Line ends become ``\\n``.
"""

from __future__ import annotations

import codecs
import dataclasses
import re

from almanac.core.errors import FileFormatError

# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
MAX_CONTROL_SHARE = 0.02  # text has next to none; compressed or executable data have about a tenth


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Text with ``\\n`` line ends, and a note where the encoding was a guess."""

    text: str
    notes: tuple[str, ...] = ()


def decode(data: bytes, path: str) -> Decoded:
    """The text in ``data``.

    Raises:
        FileFormatError: binary data, or bytes that contradict their byte-order mark.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    notes: tuple[str, ...] = ()
    if encoding is None and (b"\x00" in data or len(_CONTROLS.findall(data)) > MAX_CONTROL_SHARE * len(data)):
        raise FileFormatError(f"{path} is binary, not text", remedy="Convert it to text, Markdown or HTML first.")
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise FileFormatError(
                f"{path} is marked {encoding} but cannot be decoded ({error.reason} at byte {error.start})",
                remedy="Save the file again as UTF-8.",
            ) from error
        text = data.decode("latin-1")
        notes = ("not valid UTF-8, read as Latin-1: check accented letters, or save it as UTF-8",)
    return Decoded(text.replace("\r\n", "\n").replace("\r", "\n"), notes)
