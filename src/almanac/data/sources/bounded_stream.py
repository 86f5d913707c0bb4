"""Bytes of a crawl's file, plain or of many gzip members, of which every step that reads them is bounded.

A crawl's ``.gz`` is one member a record (ISO 28500 annex D), so that a reader may begin anywhere. That is used here to go on
behind a damaged member: the next one is found by its mark. The standard library's ``gzip`` gives up at the first fault.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

MAX_MEMBER = 4 << 30  # bytes that one member may unfold to
_BLOCK = 1 << 16
_MARK = b"\x1f\x8b\x08"


class Member:
    """The bytes of one gzip member, or of a whole plain file. ``fault`` says what was wrong once it is at its end."""

    def __init__(self, pull: Iterator[bytes]) -> None:
        self.fault = ""
        self._pull = pull
        self._held = bytearray()

    def line(self, limit: int) -> bytes:
        """Bytes up to and with the next line end, at most ``limit``; empty at the end."""
        searched = 0
        while (end := self._held.find(b"\n", searched)) < 0 and len(self._held) < limit:
            searched = len(self._held)
            if not self._more():
                break
        return self._out(min(limit, end + 1 if end >= 0 else len(self._held)))

    def take(self, count: int, *, keep: int) -> tuple[bytes, int]:
        """The next ``count`` bytes, of which the first ``keep`` are kept, and how many there were."""
        kept, got = bytearray(), 0
        while got < count and (self._held or self._more()):
            part = self._out(min(count - got, len(self._held)))
            got += len(part)
            if len(kept) < keep:
                kept += part[: keep - len(kept)]
        return bytes(kept), got

    def _more(self) -> bool:
        block = next(self._pull, b"")
        self._held += block
        return bool(block)

    def _out(self, count: int) -> bytes:
        part = bytes(self._held[:count])
        del self._held[:count]
        return part


def members(stream: BinaryIO, *, max_member: int = MAX_MEMBER) -> Iterator[Member]:
    """The members of a file in order; a plain file is one. What is left unread of a member is passed over."""
    head = stream.read(_BLOCK)
    if head.startswith(_MARK):
        yield from _Gzip(stream, head, max_member).members()
    elif head:
        yield Member(_plain(stream, head))


def _plain(stream: BinaryIO, head: bytes) -> Iterator[bytes]:
    while head:
        yield head
        head = stream.read(_BLOCK)


class _Gzip:
    """A file of gzip members; ``_raw`` holds compressed bytes that were read and not yet used."""

    def __init__(self, stream: BinaryIO, head: bytes, max_member: int) -> None:
        self._stream, self._raw, self._max = stream, head, max_member
        self._member: Member | None = None

    def members(self) -> Iterator[Member]:
        while self._find_mark():
            pull = self._unfolded()
            self._member = Member(pull)
            yield self._member
            for _ in pull:  # to find where the next begins
                continue

    def _find_mark(self) -> bool:
        while True:
            place = self._raw.find(_MARK)
            if place >= 0:
                self._raw = self._raw[place:]
                return True
            block = self._stream.read(_BLOCK)
            if not block:
                return False
            self._raw = self._raw[-2:] + block

    def _unfolded(self) -> Iterator[bytes]:
        unfold = zlib.decompressobj(31)
        total = 0
        while not unfold.eof:
            if not self._raw:
                self._raw = self._stream.read(_BLOCK)
            if not self._raw:
                return self._blame("the file ends within a record")
            try:
                block = unfold.decompress(self._raw, _BLOCK)
            except zlib.error:
                self._raw = self._raw[1:]  # the mark that led here is no beginning
                return self._blame("a gzip member is damaged")
            self._raw = unfold.unconsumed_tail or unfold.unused_data
            total += len(block)
            if total > self._max:
                return self._blame(f"a gzip member unfolds to more than {self._max:,} bytes")
            if block:
                yield block
        return None

    def _blame(self, fault: str) -> None:
        assert self._member is not None
        self._member.fault = fault
