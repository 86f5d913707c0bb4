"""Zip files from strangers: opened in memory, nothing ever extracted, every figure checked before it is believed.

What a zip can do to a careless reader: names that leave the folder, links and devices, two names that are one on another
file system, entries that share their bytes, sizes that explode, and copies of itself inside (incidents 23, 25 and 73 of
the reliability list). Entries that try are refused by name; a file whose directory cannot be trusted is refused whole.
"""

from __future__ import annotations

import dataclasses
import io
import re
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter

from almanac.core.errors import AlmanacError, FileFormatError, UnsafeFileError

MAX_ENTRIES = 10_000
MAX_TOTAL_BYTES = 2 * 2**30  # of all entries, nested archives included
MAX_RATIO = 100  # of size to packed size, for an entry and for the whole
RATIO_FREE_BYTES = 2**20  # up to this size any ratio is harmless, and a text of blanks has one
MAX_NAME = 1_000  # characters
_END = b"PK\x05\x06"
_END_BYTES, _COMMENT_BYTES = 22, 65_535
_DRIVE = re.compile(r"[A-Za-z]:")
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # the entry, strongly, and its directory
_PLAIN_TYPES = (0, stat.S_IFREG, stat.S_IFDIR)
_REMEDY = "Pack it again with an ordinary program, or give the documents without the archive."


@dataclasses.dataclass
class Budget:
    """What one file may unfold to, counted through all archives inside it."""

    file_bytes: int
    entries: int = 0
    unfolded_bytes: int = 0

    def take(self, name: str, entries: int, unfolded_bytes: int) -> None:
        """Raises FileFormatError: the file unfolds to more than is allowed."""
        self.entries += entries
        self.unfolded_bytes += unfolded_bytes
        if self.entries > MAX_ENTRIES:
            raise FileFormatError(f"{name} holds more than {MAX_ENTRIES:,} entries", remedy="Split it.")
        if self.unfolded_bytes > MAX_TOTAL_BYTES:
            raise FileFormatError(f"{name} unfolds to more than {MAX_TOTAL_BYTES >> 30} GiB", remedy="Split it.")
        if self.unfolded_bytes > max(RATIO_FREE_BYTES, MAX_RATIO * self.file_bytes):
            raise FileFormatError(f"{name} unfolds to more than {MAX_RATIO} times its size", remedy=_REMEDY)


class Box:
    """An opened zip file: ``names`` in order of path, and ``refused`` entries with their reasons.

    Raises:
        FileFormatError: no zip file, a lying directory, or more than the budget allows.
    """

    def __init__(self, data: bytes, path: str, budget: Budget | None = None) -> None:
        self._path = path
        counted = _counted(data, path)
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            entries = self._zip.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, zlib.error, EOFError) as error:
            raise FileFormatError(f"{path} is not a whole zip file: {error}", remedy=_REMEDY) from error
        if counted != len(entries):
            raise FileFormatError(f"{path} does not hold as many entries as it says", remedy=_REMEDY)
        budget = budget or Budget(len(data))
        budget.take(path, len(entries), sum(entry.file_size for entry in entries))
        _check_overlap(entries, path, len(data))
        self._entries: dict[str, zipfile.ZipInfo] = {}
        self.refused: dict[str, AlmanacError] = {}
        twins = Counter(_folded(entry.filename) for entry in entries)
        for entry in sorted(entries, key=lambda entry: entry.filename):
            reason = _unsafe(entry)
            if not reason and twins[_folded(entry.filename)] > 1:
                reason = "has a twin: another entry of the same name, or one that differs only in case or accents"
            name = shown(entry.orig_filename)
            if reason:
                self.refused[name] = UnsafeFileError(f"{path}/{name} {reason}", remedy=_REMEDY)
            elif not entry.is_dir():
                self._entries[entry.filename] = entry

    @property
    def names(self) -> tuple[str, ...]:
        """The entries that can be read."""
        return tuple(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """The bytes of an entry.

        Raises:
            FileFormatError: there is none, it is larger than ``max_bytes``, locked, packed too tightly or damaged.
        """
        entry = self._entries.get(name)
        whole = f"{self._path}/{name}"
        if entry is None:
            raise FileFormatError(f"{self._path} has no {name}", remedy=_REMEDY)
        if entry.flag_bits & _ENCRYPTED:
            raise FileFormatError(f"{whole} is encrypted", remedy="Pack it without a password.")
        if entry.compress_type not in _METHODS:
            raise FileFormatError(f"{whole} is packed by a method that is not read", remedy=_REMEDY)
        if entry.file_size > max_bytes:
            raise FileFormatError(f"{whole} is larger than {max_bytes / 2**20:,.1f} MiB", remedy="Split it.")
        if entry.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * entry.compress_size):
            raise FileFormatError(f"{whole} unfolds to more than {MAX_RATIO} times its size", remedy=_REMEDY)
        try:
            with self._zip.open(entry) as stream:
                data = stream.read(entry.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError) as error:
            raise FileFormatError(f"{whole} is damaged: {error}", remedy=_REMEDY) from error
        if len(data) != entry.file_size:
            raise FileFormatError(f"{whole} is not of the size it declares", remedy=_REMEDY)
        return data


def shown(name: str) -> str:
    """A name from an archive as it may be printed."""
    name = name[:MAX_NAME]
    return name if name.isprintable() else ascii(name)[1:-1]


def _counted(data: bytes, path: str) -> int:
    """The number of entries in the end record, checked before a directory of a million is parsed."""
    at = data.rfind(_END, max(0, len(data) - _END_BYTES - _COMMENT_BYTES))
    if at < 0 or at + _END_BYTES > len(data):
        raise FileFormatError(f"{path} is not a whole zip file", remedy=_REMEDY)
    counted = int.from_bytes(data[at + 10 : at + 12], "little")
    directory_bytes = int.from_bytes(data[at + 12 : at + 16], "little")
    if counted > MAX_ENTRIES or directory_bytes > MAX_ENTRIES * (46 + MAX_NAME):
        raise FileFormatError(f"{path} holds more than {MAX_ENTRIES:,} entries", remedy="Split it.")
    return counted


def _check_overlap(entries: list[zipfile.ZipInfo], path: str, file_bytes: int) -> None:
    """Entries that share their bytes are how a small file unfolds without end."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise FileFormatError(f"{path} has entries that overlap", remedy=_REMEDY)
        end = entry.header_offset + 30 + entry.compress_size
    if end > file_bytes:
        raise FileFormatError(f"{path} has entries beyond its end", remedy=_REMEDY)


def _folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip("/. ")


def _unsafe(entry: zipfile.ZipInfo) -> str:
    """Why an entry's name or type is refused; empty if it is not."""
    name = entry.filename
    parts = name.removesuffix("/").split("/")
    kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == 3 else 0
    if kind == stat.S_IFLNK:
        return "is a symbolic link"
    if kind not in _PLAIN_TYPES:
        return "is a device or another special file"
    if entry.orig_filename != name or not name.isprintable() or len(name) > MAX_NAME:
        return "has a name that is not readable text"
    if name.startswith("/") or "\\" in name or _DRIVE.match(name):
        return "has an absolute name or one of another system"
    if ".." in parts:
        return "has a name that leaves its folder"
    if "" in parts or "." in parts:
        return "has a name with empty parts"
    return ""
