"""A folder of documents: every file is read, or named with the reason why not.

The order is that of the relative paths. Symbolic links are never followed: one that leads out of the folder would read
what was not offered, one that stays inside leads to a file that is read anyway. A reader is any module beside this one
with a ``SUFFIXES`` tuple and ``read(data, path) -> Reading``; adding a format edits no list.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pkgutil
import stat
from collections.abc import Callable
from pathlib import Path

from almanac.core.errors import AlmanacError, FileFormatError, NotFoundError
from almanac.retrieve.read.document import Document, Reading

MAX_FILES = 10_000
MAX_BYTES = 16 * 2**20  # of one file
# Not on every platform; where they are missing the check of the opened file still refuses pipes and devices.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

Reader = Callable[[bytes, str], Reading]


@dataclasses.dataclass(frozen=True)
class ReadResult:
    """``documents`` in order of path; ``skipped`` and ``notes`` are pairs (path, what happened)."""

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]


@functools.cache
def readers() -> dict[str, Reader]:
    """The reader of each file suffix (lower case, with its dot), found by importing the modules of this folder."""
    package = __name__.rpartition(".")[0]
    found: dict[str, Reader] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        module = importlib.import_module(f"{package}.{info.name}")
        for suffix in getattr(module, "SUFFIXES", ()):
            found[suffix] = module.read
    return found


def read_folder(path: Path | str, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> ReadResult:
    """Reads every document below ``path``. Hidden files and folders (a leading dot) are passed over in silence.

    Args:
        path: the folder.
        max_files: documents to read at most; files beyond it are skipped by name.
        max_bytes: size of one file; larger ones are skipped by name.

    Raises:
        NotFoundError: no such folder, or not one document in it could be read.
        AlmanacError: the folder cannot be opened.
    """
    root = Path(path)
    if not root.is_dir():
        what = "is a file, not a folder" if root.is_file() else "does not exist"
        raise NotFoundError(f"{root} {what}", remedy="Name the folder that holds your documents.")
    documents: list[Document] = []
    notes: list[tuple[str, str]] = []
    files, skipped = _walk(root.resolve())
    for name in sorted(files):
        if len(documents) >= max_files:
            skipped.append((name, f"over the limit of {max_files:,} files"))
            continue
        try:
            reading = _read_file(root / name, name, max_bytes)
        except AlmanacError as error:
            skipped.append((name, error.cause.removeprefix(f"{name} ")))
        except OSError as error:
            skipped.append((name, f"cannot be opened: {error.strerror}"))
        except Exception as error:  # a parser's fault on one hostile file must not cost the other documents
            skipped.append((name, f"its reader failed: {type(error).__name__}: {error}"))
        else:
            documents.append(reading.document)
            notes += ((name, note) for note in reading.notes)
    if not documents:
        raise _nothing_readable(root, skipped)
    return ReadResult(tuple(documents), tuple(sorted(skipped)), tuple(notes))


def _walk(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The regular files below ``root`` that have a reader, as relative posix paths, and what was passed over."""
    files: list[str] = []
    skipped: list[tuple[str, str]] = []
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as scan:
                entries = list(scan)
        except OSError as error:
            if not folder:
                raise AlmanacError(
                    f"{root} cannot be opened: {error.strerror}", remedy="Check that you may read this folder."
                ) from error
            skipped.append((folder, f"cannot be opened: {error.strerror}"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            if not name.isprintable():  # control characters, or bytes that are no text (lone surrogates)
                skipped.append((ascii(name)[1:-1], "its name is not readable text"))
            elif entry.is_symlink():
                skipped.append((name, "is a symbolic link"))
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(name)
            elif not entry.is_file(follow_symlinks=False):
                skipped.append((name, "is not a regular file"))
            elif Path(name).suffix.lower() not in readers():
                skipped.append((name, f"no reader for {Path(name).suffix or 'a file without suffix'}"))
            else:
                files.append(name)
    return files, skipped


def _read_file(path: Path, name: str, max_bytes: int) -> Reading:
    with os.fdopen(os.open(path, _OPEN_FLAGS), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{name} is not a regular file", remedy="Replace it by a copy of the document.")
        data = file.read(max_bytes + 1) if status.st_size <= max_bytes else b""
        if status.st_size > max_bytes or len(data) > max_bytes:
            raise FileFormatError(
                f"{name} is larger than {max_bytes / 2**20:,.1f} MiB", remedy="Split it, or raise the limit."
            )
    reading = readers()[path.suffix.lower()](data, name)
    if not reading.document.text:
        raise FileFormatError(f"{name} holds no readable text", remedy="Check that it is not a scan or a frame page.")
    return reading


def _nothing_readable(root: Path, skipped: list[tuple[str, str]]) -> NotFoundError:
    known = ", ".join(sorted(readers()))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(skipped)[:3])
    cause = f"No readable document in {root}" + (f" ({len(skipped)} skipped, such as {reasons})" if skipped else "")
    return NotFoundError(cause, remedy=f"Put documents there; these kinds are read: {known}.")
