"""Web archives: WARC (pages as they were fetched) and WET (text that was drawn from them), plain or gzip.

ISO 28500:2017 (WARC 1.1), sections 4-6, and RFC 9112 for the responses within: a record is a line ``WARC/1.x``, named
fields, an empty line, ``Content-Length`` bytes and two line ends. Written here on the standard library: the format is a
page long, and FastWARC (Bevendorff et al. 2018), faster on a core, gives up a file at its first damaged member.

A file lies where it can, so every length is a claim: content beyond ``max_content`` is passed over and never held, a record
that does not end where it says costs itself and whatever its length swallowed, and reading goes on at the next ``WARC/1.``.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from almanac.data.sources.bounded_stream import MAX_MEMBER, Member, members
from almanac.data.sources.document import Fault

MAX_CONTENT = 16 << 20  # bytes of one record
MAX_FIELDS, MAX_LINE = 200, 1 << 16
_FIRST = re.compile(rb"WARC/1\.\d\r?\n")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_PAGES = ("text/html", "application/xhtml+xml")


@dataclasses.dataclass(frozen=True)
class Record:
    """One record: names of ``fields`` are in lower case; ``content`` is whole."""

    fields: Mapping[str, str]
    content: bytes

    @property
    def type(self) -> str:
        """``response``, ``conversion``, ``warcinfo``, ..."""
        return self.fields.get("warc-type", "")


@dataclasses.dataclass(frozen=True)
class Page:
    """A page that was fetched: HTML as bytes, and the encoding that the server named (or nothing)."""

    html: bytes
    charset: str


def records(
    stream: BinaryIO, name: str, *, max_content: int = MAX_CONTENT, max_member: int = MAX_MEMBER
) -> Iterator[Record | Fault]:
    """The records of a file in order, and a fault for each that cannot be had."""
    number = 0
    for member in members(stream, max_member=max_member):
        first = _next_first(member)
        while first is not None:
            number += 1
            record, first = _record(member, f"{name}:{number}", max_content)
            yield record
        if member.fault:
            yield Fault(f"{name}:{number}", member.fault)
    if not number:
        yield Fault(name, "there is no WARC record in it")


def _next_first(member: Member) -> bytes | None:
    """Passes over lines until one begins a record; None at the end."""
    while line := member.line(MAX_LINE):
        if _FIRST.fullmatch(line):
            return line
    return None


def _record(member: Member, where: str, max_content: int) -> tuple[Record | Fault, bytes | None]:
    """One record whose first line was read, and the first line of the next."""
    fields = _fields(member)
    length = fields.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        return Fault(where, "the record does not tell its length"), _next_first(member)
    content, got = member.take(int(length), keep=max_content)
    if got < int(length):
        return Fault(where, f"the record ends after {got:,} of {int(length):,} bytes"), None
    ending = member.line(MAX_LINE) + member.line(MAX_LINE)
    following = _next_first(member) if not ending.strip() else None
    if ending.strip():  # its length is a lie; what stands here may be the next record
        lines = [line for line in ending.splitlines(keepends=True) if _FIRST.fullmatch(line)]
        following = lines[-1] if lines and ending.endswith(lines[-1]) else _next_first(member)
        return Fault(where, "the record does not end where it says"), following
    if got > max_content:
        return Fault(where, f"the record has {got:,} bytes, of {max_content:,} that are read"), following
    return Record(fields, content), following


def _fields(member: Member) -> dict[str, str]:
    fields: dict[str, str] = {}
    for _ in range(MAX_FIELDS):
        line = member.line(MAX_LINE)
        if not line.strip():
            break
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def page_of(record: Record) -> Page | Fault | None:
    """The page in a response; None for what is no page: other types of record and content, errors, redirections."""
    kind = record.fields.get("content-type", "").lower()
    if record.type != "response" or "application/http" not in kind:
        return None
    head, _, body = record.content.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status = first.split(" ", 2)[1:2]
    if status != ["200"] or headers.get("content-type", "").partition(";")[0].strip().lower() not in _PAGES:
        return None
    where = record.fields.get("warc-target-uri", "")[:200]
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _joined(body)
    coding = headers.get("content-encoding", "").lower()
    if coding in ("gzip", "x-gzip", "deflate"):
        unfold = zlib.decompressobj(47)
        try:
            body = unfold.decompress(body, MAX_CONTENT)
        except zlib.error:
            return Fault(where, f"the body is not {coding}")
        if not unfold.eof:
            return Fault(where, f"the body is cut off, or more than {MAX_CONTENT:,} bytes")
    elif coding not in ("", "identity"):
        return Fault(where, f"the body is packed by {coding[:20]}, which is not read")
    charset = _CHARSET.search(headers.get("content-type", ""))
    return Page(body, charset[1] if charset else "")


def _joined(body: bytes) -> bytes:
    """A chunked body (RFC 9112, 7.1) in one piece; as it is where it is none, since many archives store it joined."""
    parts, place = [], 0
    while True:
        end = body.find(b"\r\n", place, place + 1024)
        size = body[place:end].partition(b";")[0].strip()
        if end < 0 or not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
            return body if not parts else b"".join(parts)
        count = int(size, 16)
        if count == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + count])
        place = end + 2 + count + 2
