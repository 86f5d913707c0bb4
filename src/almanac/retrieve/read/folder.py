"""A folder of documents: every file is read, or named with the reason why not.

The order is that of the relative paths. Symbolic links are never followed: one that leads out of the folder would read
what was not offered, one that stays inside leads to a file that is read anyway. Each file is parsed in a confined
process (`process`); here its bytes are only fetched. A new kind of file is a new module beside this one (`formats`).
"""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

from almanac.core.errors import AlmanacError, FileFormatError, MissingExtraError, NotFoundError
from almanac.retrieve.read.document import Document, Reading
from almanac.retrieve.read.formats import MAX_BYTES, Reader, formats, readers, suffix_of
from almanac.retrieve.read.process import Outcome, shared_process

__all__ = ["MAX_BYTES", "MAX_FILES", "ReadResult", "Reader", "read_file", "read_folder", "read_one", "readers"]

MAX_FILES = 10_000
# Not on every platform; where they are missing the check of the opened file still refuses pipes and devices.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclasses.dataclass(frozen=True)
class ReadResult:
    """``documents`` in order of path; ``skipped`` and ``notes`` are pairs (path, what happened)."""

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...]


def read_folder(path: Path | str, *, max_files: int = MAX_FILES, max_bytes: int | None = None) -> ReadResult:
    """Reads every document below ``path``. Hidden files and folders (a leading dot) are passed over in silence.

    Args:
        path: the folder.
        max_files: documents to read at most; files beyond it are skipped by name.
        max_bytes: size of one file; larger ones are skipped by name. None stands for each format's own limit.

    Raises:
        NotFoundError: no such folder, or not one document in it could be read.
        UnsupportedError: this system cannot confine the process that parses documents.
        AlmanacError: the folder cannot be opened.
    """
    root = Path(path)
    if not root.is_dir():
        what = "is a file, not a folder" if root.is_file() else "does not exist"
        raise NotFoundError(f"{root} {what}", remedy="Name the folder that holds your documents.")
    readings: list[Reading] = []
    files, skipped = _walk(root.resolve())
    for name in sorted(files):
        room = max_files - len(readings)
        if room <= 0:
            skipped.append((name, f"over the limit of {max_files:,} files"))
            continue
        try:
            outcome = _outcome(root / name, name, max_bytes)
        except FileFormatError as error:
            skipped.append((name, _reason(name, error)))
        except OSError as error:
            skipped.append((name, f"cannot be opened: {error.strerror}"))
        else:
            members = sorted(outcome.readings, key=lambda reading: reading.document.path)
            readings += members[:room]
            skipped += ((each.document.path, f"over the limit of {max_files:,} files") for each in members[room:])
            skipped += ((each, _reason(each, error)) for each, error in outcome.skipped.items())
    if not readings:
        raise _nothing_readable(root, skipped)
    return _result(readings, skipped)


def read_one(path: Path, name: str) -> ReadResult:
    """Reads the one file at ``path``, which its owner calls ``name``: an upload. An archive gives many documents.

    Raises:
        FileFormatError: it cannot be read (of an archive: nothing in it), with the reason.
        MissingExtraError: its reader needs a library that is not installed.
        NotFoundError: there is no such file, or no reader for its kind.
        UnsupportedError: this system cannot confine the process that parses documents.
    """
    if not name or not name.isprintable() or any(part in ("", ".", "..") for part in name.split("/")):
        raise FileFormatError(f"{name!a} is no name for a document", remedy="Give it a plain relative name.")
    try:
        outcome = _outcome(path, name, None)
    except FileNotFoundError as error:
        raise NotFoundError(f"{name} does not exist", remedy="Check the path.") from error
    except OSError as error:
        raise FileFormatError(
            f"{name} cannot be opened: {error.strerror}", remedy="Give a file that you may read."
        ) from error
    if not outcome.readings:
        if name in outcome.skipped:
            raise outcome.skipped[name]
        reasons = "; ".join(f"{each}: {_reason(each, error)}" for each, error in list(outcome.skipped.items())[:3])
        raise FileFormatError(
            f"{name} holds no readable document" + (f" ({reasons})" if reasons else ""),
            remedy=f"These kinds are read: {', '.join(sorted(formats()))}.",
        )
    readings = sorted(outcome.readings, key=lambda reading: reading.document.path)
    return _result(readings, [(each, _reason(each, error)) for each, error in outcome.skipped.items()])


def read_file(path: Path, name: str) -> tuple[Reading, ...]:
    """The documents in one file, each with its notes; what `read_one` skips of an archive is noted at the first.

    Raises:
        AlmanacError: as `read_one`.
    """
    result = read_one(path, name)
    notes: dict[str, list[str]] = {document.path: [] for document in result.documents}
    for member, note in result.notes:
        notes[member].append(note)
    notes[result.documents[0].path] += (f"skipped {member}: {reason}" for member, reason in result.skipped)
    return tuple(Reading(document, tuple(notes[document.path])) for document in result.documents)


def _result(readings: list[Reading], skipped: list[tuple[str, str]]) -> ReadResult:
    notes = tuple((each.document.path, note) for each in readings for note in each.notes)
    return ReadResult(tuple(each.document for each in readings), tuple(sorted(skipped)), notes)


def _reason(name: str, error: AlmanacError) -> str:
    """Why a file was skipped, without its name; what is only missing is named with the way to get it."""
    if isinstance(error, MissingExtraError):
        return str(error)
    return error.cause.removeprefix(f"{name} ")


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
            elif suffix_of(name) not in formats():
                skipped.append((name, f"no reader for {suffix_of(name) or 'a file without suffix'}"))
            else:
                files.append(name)
    return files, skipped


def _outcome(path: Path, name: str, max_bytes: int | None) -> Outcome:
    """What the reading process makes of one file. Documents without text count as skipped."""
    kind = formats().get(suffix_of(name))
    limit = max_bytes if max_bytes is not None or kind is None else kind.max_bytes
    outcome = shared_process().read(_bytes(path, name, MAX_BYTES if limit is None else limit), name)
    silent = [reading.document.path for reading in outcome.readings if not reading.document.text]
    outcome.readings = [reading for reading in outcome.readings if reading.document.text]
    for each in silent:
        outcome.skip(
            each,
            FileFormatError(f"{each} holds no readable text", remedy="Check that it is not a scan or a frame page."),
        )
    return outcome


def _bytes(path: Path, name: str, limit: int) -> bytes:
    with os.fdopen(os.open(path, _OPEN_FLAGS), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{name} is not a regular file", remedy="Replace it by a copy of the document.")
        data = file.read(limit + 1) if status.st_size <= limit else b""
        if status.st_size > limit or len(data) > limit:
            raise FileFormatError(
                f"{name} is larger than {limit / 2**20:,.1f} MiB", remedy="Split it, or raise the limit."
            )
    return data


def _nothing_readable(root: Path, skipped: list[tuple[str, str]]) -> NotFoundError:
    known = ", ".join(sorted(formats()))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(skipped)[:3])
    cause = f"No readable document in {root}" + (f" ({len(skipped)} skipped, such as {reasons})" if skipped else "")
    return NotFoundError(cause, remedy=f"Put documents there; these kinds are read: {known}.")
