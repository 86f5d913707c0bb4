"""Plain text of any length and encoding, a bounded part at a time.

The encoding is told by a byte-order mark; without one it is UTF-8, and bytes that are not UTF-8 are read as Windows-1252
one by one, so a file pieced together from both reads right (WHATWG Encoding does the same for a whole page). A file that
is longer than ``MAX_CHARACTERS``, or a line of it, becomes several documents, so a gigabyte without a line end costs no more
memory than a page.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

from almanac.core.errors import FileFormatError

MAX_CHARACTERS = 1 << 22  # of one document
MAX_CONTROL_SHARE = 0.02  # of a block; text has next to none, compressed or executable data have about a tenth

_BLOCK = 1 << 20  # bytes
_MARKS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_ESCAPED = re.compile("[\udc80-\udcff]")


def texts(stream: BinaryIO, name: str, *, max_characters: int = MAX_CHARACTERS) -> Iterator[str]:
    """The text of ``stream`` in parts of at most ``max_characters``, cut after a line where there is one.

    Raises:
        FileFormatError: binary data, or bytes that contradict their byte-order mark.
    """
    rest = ""
    for block in blocks(stream, name):
        rest += block
        while len(rest) > max_characters:
            end = _cut(rest, max_characters)
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def blocks(stream: BinaryIO, name: str) -> Iterator[str]:
    """The text of ``stream`` as it comes, line ends as ``\\n``. Raises as `texts`."""
    data = stream.read(_BLOCK)
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    decoder = codecs.getincrementaldecoder(encoding or "utf-8")("strict" if encoding else "surrogateescape")
    carried = ""
    while True:
        if encoding in (None, "utf-8-sig") and (
            b"\x00" in data or len(_CONTROLS.findall(data)) > MAX_CONTROL_SHARE * len(data)
        ):
            raise FileFormatError(f"{name} is binary, not text", remedy="Leave it out of the corpus.")
        try:
            text = carried + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"{name} is marked {encoding} but cannot be decoded", remedy="Save the file again as UTF-8."
            ) from error
        carried = "\r" if data and text.endswith("\r") else ""  # it may be half of a line end
        text = text[: len(text) - len(carried)].replace("\r\n", "\n").replace("\r", "\n")
        if text:
            yield _ESCAPED.sub(_as_windows_1252, text)
        if not data:
            return
        data = stream.read(_BLOCK)


def _as_windows_1252(match: re.Match[str]) -> str:
    return bytes([ord(match[0]) - 0xDC00]).decode("cp1252", "replace")


def _cut(text: str, limit: int) -> int:
    for mark, least in (("\n", limit // 2), (" ", limit // 2)):
        place = text.rfind(mark, least, limit)
        if place >= 0:
            return place + 1
    return limit
