"""What a reading process says, as bytes: frames of a fixed prefix, one JSON object and one text. Never pickle.

    frame = kind (1 byte), length of the object, length of the text (uint32 little-endian), object, text in UTF-8

``B`` a member of an archive is begun, ``D`` a document, ``S`` a file or member that could not be read, ``E`` the end.
The process that writes may be in the hands of the file that it reads, so `unpack` takes nothing on trust: sizes are
bounded before anything is stored, and a document is taken only if its offsets fit its text.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from typing import Any

from almanac.core.errors import (
    AlmanacError,
    FileFormatError,
    MissingExtraError,
    UnsafeFileError,
    UnsupportedError,
)
from almanac.retrieve.read.document import Document, Reading, Section

PREFIX = struct.Struct("<cII")
MAX_OBJECT_BYTES = 16 * 2**20
MAX_TEXT_BYTES = 64 * 2**20
MAX_SECTIONS = 200_000
_MAX_REASON = 500  # characters
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ERRORS: dict[str, type[AlmanacError]] = {
    kind.__name__: kind for kind in (FileFormatError, UnsafeFileError, MissingExtraError, UnsupportedError)
}


@dataclasses.dataclass(frozen=True)
class Begun:
    """The reader turns to this member of an archive; if it dies now, this is the member to blame."""

    name: str


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file or member that was not read."""

    name: str
    error: AlmanacError


@dataclasses.dataclass(frozen=True)
class Ended:
    """Everything has been said."""


Event = Begun | Reading | Skipped | Ended


def pack(event: Event) -> bytes:
    """The frame of ``event``.

    Raises:
        FileFormatError: the document is larger than a frame may be.
    """
    text = b""
    if isinstance(event, Begun):
        kind, fields = b"B", {"name": event.name}
    elif isinstance(event, Skipped):
        kind, fields = b"S", {"name": event.name, **_error_fields(event.error)}
    elif isinstance(event, Reading):
        kind, fields, text = b"D", _document_fields(event), event.document.text.encode()
    else:
        kind, fields = b"E", {}
    body = json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace")
    if len(body) > MAX_OBJECT_BYTES or len(text) > MAX_TEXT_BYTES:
        raise FileFormatError(
            f"{fields['path']} makes more text or headings than the {MAX_TEXT_BYTES >> 20} MiB allowed",
            remedy="Split it into several files.",
        )
    return PREFIX.pack(kind, len(body), len(text)) + body + text


def sizes(prefix: bytes) -> tuple[int, int]:
    """Bytes of the object and of the text that follow a prefix.

    Raises:
        ValueError: more than is allowed.
    """
    _, body, text = PREFIX.unpack(prefix)
    if body > MAX_OBJECT_BYTES or text > MAX_TEXT_BYTES:
        raise ValueError("a frame larger than allowed")
    return body, text


def unpack(prefix: bytes, body: bytes, text: bytes) -> Event:
    """The event in a frame.

    Raises:
        ValueError: it is none (also as KeyError's and TypeError's cousin: whatever does not fit is a ValueError).
    """
    kind = PREFIX.unpack(prefix)[0]
    try:
        fields = json.loads(body)
        if kind == b"B":
            return Begun(_text(fields["name"]))
        if kind == b"S":
            error = _ERRORS.get(fields["kind"], FileFormatError)
            return Skipped(_text(fields["name"]), error(_text(fields["cause"]), remedy=_text(fields["remedy"])))
        if kind == b"D":
            return _reading(fields, text.decode())
    except (KeyError, TypeError, RecursionError, AttributeError) as error:
        raise ValueError(f"a frame that does not hold what it should: {error!r}") from error
    if kind != b"E":
        raise ValueError("a frame of unknown kind")
    return Ended()


def _error_fields(error: AlmanacError) -> dict[str, str]:
    return {"kind": type(error).__name__, "cause": error.cause[:_MAX_REASON], "remedy": error.remedy[:_MAX_REASON]}


def _document_fields(reading: Reading) -> dict[str, Any]:
    document = reading.document
    if len(document.sections) > MAX_SECTIONS:
        raise FileFormatError(
            f"{document.path} has more than {MAX_SECTIONS:,} headings", remedy="Split it into several files."
        )
    return {
        "path": document.path,
        "title": document.title,
        "digest": document.digest,
        "origin": document.origin,
        "pages": document.pages,
        "notes": reading.notes,
        "sections": [
            (len(section.heading), section.level, section.heading[-1] if section.heading else "", section.start)
            for section in document.sections
        ],
        "ends": [section.end for section in document.sections],
    }


def _reading(fields: dict[str, Any], text: str) -> Reading:
    sections: list[Section] = []
    path: list[str] = []
    previous = 0
    for (depth, level, name, start), end in zip(fields["sections"], fields["ends"], strict=True):
        if not previous <= start <= end <= len(text) or not 0 <= depth <= len(path) + 1 or not 0 <= level <= 1_000:
            raise ValueError("sections that do not fit the text")
        if depth:
            path[depth - 1 :] = [_text(name)]
        sections.append(Section(tuple(path[:depth]), level, text[start:end], start, end))
        previous = end
    pages = tuple(fields["pages"])
    if not all(isinstance(page, int) for page in pages) or list(pages) != sorted(pages):
        raise ValueError("pages out of order")
    if pages and not 0 <= pages[0] <= pages[-1] <= len(text):
        raise ValueError("pages outside the text")
    digest = _text(fields["digest"])
    names = [_text(fields[key]) for key in ("path", "title", "origin")]
    document = Document(names[0], names[1], tuple(sections), digest, pages, names[2])
    if not _DIGEST.fullmatch(digest) or document.text != text:
        raise ValueError("sections that are not the text")
    return Reading(document, tuple(_text(note) for note in fields["notes"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text where text should be")
    return value
