"""The index's folder: how a generation is found, published and cleared away.

    current                                the name of the manifest that counts; moved last
    manifest-<generation>-<copy>-<sha>.json   see `manifest`
    segments/<sha256>.safetensors          see `segment`; the name is the digest of the bytes
    .lock                                  the writer's, see `almanac.files.store.Lock`

No file is ever named after anything that a document says. A file that is absent, rotten or not a regular file counts as
lost and something else is fallen back to; a system that refuses to open it (too many open files, no permission) is an
error, because the file may be whole.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

from almanac.core.errors import FileFormatError, IntegrityError, NotFoundError
from almanac.files.quoting import quoted
from almanac.files.store import remove_partials, sync_folder, write_atomic
from almanac.retrieve.index.manifest import COPIES, Filed, Manifest, ManifestName, encode_manifest, parse_manifest
from almanac.retrieve.index.manifest import parse_name as parse_manifest_name
from almanac.retrieve.index.segment import Segment, decode_segment

POINTER, SEGMENTS, _SUFFIX = "current", "segments", ".safetensors"
MAX_MANIFEST_BYTES, MAX_SEGMENT_BYTES = 1 << 30, 4 << 30
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class Found:
    """The generation that counts, and what was amiss on the way to it."""

    name: ManifestName
    manifest: Manifest
    notes: tuple[str, ...]


def segment_path(folder: Path, segment: str) -> Path:
    """Where the segment of that digest lies."""
    return folder / SEGMENTS / f"{segment}{_SUFFIX}"


def pointer(folder: Path) -> bytes:
    """What the pointer says; nothing if it is lost."""
    return bytes(_read(folder / POINTER, 1024) or b"")


def points_to(folder: Path, name: ManifestName) -> bool:
    """Whether that manifest counts."""
    return pointer(folder) == _line(name)


def _line(name: ManifestName) -> bytes:
    return f"{name.file}\n".encode("ascii")


def find(folder: Path) -> Found:
    """The generation that the pointer names or, where that is damaged, the best one that is whole.

    Raises:
        NotFoundError: no index is here.
        IntegrityError: one was, and no generation of it is whole.
        FileFormatError: another version wrote it.
    """
    for _ in range(_ATTEMPTS):
        before = pointer(folder)
        names = manifest_names(folder)
        if not names and not before:
            raise NotFoundError(f"No index is in {quoted(folder, limit=200)}", remedy="Build the index first.")
        pointed = _pointed(before)
        notes = [] if pointed else ["the pointer to the current generation was damaged"]
        tried = []
        for name in _in_order(names, pointed):
            tried.append(name)
            data = _whole(folder, name)
            if data is not None:
                manifest = parse_manifest(data, name)
                rotten = [other for other in names if other not in tried and _whole(folder, other) is None]
                # Gone since the folder was listed is no damage: a writer has cleared it away.
                notes += [f"{other.file} was damaged" for other in rotten if (folder / other.file).exists()]
                if sum(other.generation == name.generation for other in names) < len(COPIES):
                    notes.append(f"a copy of generation {name.generation} was missing")
                return Found(name, manifest, tuple(notes))
            notes.append(f"{name.file} was damaged or missing")
        if pointer(folder) == before:
            break
    raise IntegrityError(
        f"No generation of the index in {quoted(folder, limit=200)} is whole", remedy="Build the index again."
    )


def _whole(folder: Path, name: ManifestName) -> bytes | None:
    """The manifest's bytes if their digest is the one in its name."""
    data = _read(folder / name.file, MAX_MANIFEST_BYTES)
    return bytes(data) if data is not None and hashlib.sha256(data).hexdigest() == name.sha256 else None


def _pointed(data: bytes) -> ManifestName | None:
    line, end, rest = data.decode("ascii", "replace").partition("\n")
    return parse_manifest_name(line) if end and not rest else None


def _in_order(names: Collection[ManifestName], pointed: ManifestName | None) -> list[ManifestName]:
    """The pointed one, its copy, then the latest first."""
    latest = sorted(names, reverse=True)
    if pointed is None:
        return latest
    others = [name for name in latest if name != pointed]
    return [pointed, *sorted(others, key=lambda name: name.generation != pointed.generation)]


def manifest_names(folder: Path) -> list[ManifestName]:
    """Every manifest in the folder, whole or not; none if there is no folder."""
    try:
        listed = _names(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in map(parse_manifest_name, listed) if name is not None]


def read_segment(folder: Path, filed: Filed, *, dim: int) -> Segment:
    """The segment of a document, its digest compared and its parts checked.

    Raises:
        IntegrityError: it is lost or not what was written.
        FileFormatError: it is, but that was no sound segment of this document.
    """
    path = segment_path(folder, filed.segment)
    data = _read(path, min(filed.size_bytes, MAX_SEGMENT_BYTES))
    if data is None or hashlib.sha256(data).hexdigest() != filed.segment:
        state = "is missing" if data is None else "does not match its checksum"
        raise IntegrityError(
            f"The file {quoted(path, limit=200)} of the document {quoted(filed.entry.path)} {state}",
            remedy="Add the document again.",
        )
    segment = decode_segment(data, source=quoted(path, limit=200))
    if segment.document.path != filed.entry.path or segment.vectors.shape[1] != dim:
        raise FileFormatError(
            f"The file {quoted(path, limit=200)} holds another document or other vectors than its manifest says",
            remedy="Add the document again.",
        )
    return segment


def write_segment(folder: Path, data: bytes) -> str:
    """Writes a segment and returns its name; no generation names it yet. Errors as `write_atomic`."""
    (folder / SEGMENTS).mkdir(exist_ok=True)  # made durable with the manifest that first names something in it
    segment = hashlib.sha256(data).hexdigest()
    write_atomic(segment_path(folder, segment), data)
    return segment


def write_manifest(folder: Path, manifest: Manifest) -> ManifestName:
    """Writes both copies and returns the first one's name; the pointer stays. Errors as `write_atomic`."""
    names = []
    for copy in COPIES:
        name, data = encode_manifest(manifest, copy)
        write_atomic(folder / name.file, data)
        names.append(name)
    return names[0]


def move_pointer(folder: Path, name: ManifestName) -> None:
    """From here on, that manifest counts. Errors as `write_atomic`."""
    write_atomic(folder / POINTER, _line(name))


def sweep(folder: Path, *, generations: Collection[int], segments: Collection[str]) -> None:
    """Deletes manifests and segments of other generations, and what killed writers left; durable on return.

    Call it under the folder's lock. Manifests go first: none may name a segment that is gone.
    """
    remove_partials(folder)
    _delete(folder, [name.file for name in manifest_names(folder) if name.generation not in generations])
    below = folder / SEGMENTS
    if below.is_dir():
        remove_partials(below)
        kept = {f"{segment}{_SUFFIX}" for segment in segments}
        _delete(below, [name for name in _names(below) if name.endswith(_SUFFIX) and name not in kept])


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:  # `Path.iterdir` takes ten times as long over many thousand names
        return [entry.name for entry in entries]


def _delete(folder: Path, names: Collection[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if names:
        sync_folder(folder)


def _read(path: Path, limit_bytes: int) -> bytearray | None:
    """All bytes of a regular file; None if it is lost or larger than ``limit_bytes``."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _LOST:
            return None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            return None
        data = bytearray(status.st_size)
        at = 0
        with os.fdopen(os.dup(descriptor), "rb", buffering=0) as stream:
            while at < len(data) and (count := stream.readinto(memoryview(data)[at:])):
                at += count
        return data[:at]
    except OSError as error:
        if error.errno == errno.EIO:  # a sector that the disk cannot read any more
            return None
        raise
    finally:
        os.close(descriptor)
