"""Writing that survives: atomic files, canonical JSON, checksums, one writer at a time, names that stay inside.

The order of `write_atomic` is SQLite's and every careful database's: a temporary name in the same folder -> write ->
fsync -> read back and compare -> rename over the target -> fsync the folder. Killed or failing at any point, the
target holds its old bytes or its new bytes, never a mixture. An fsync that fails is final: the kernel may have dropped
the pages, so trying again would report a success that never happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from almanac.core.errors import FileFormatError, IntegrityError, LockedError, NotFoundError, UnsafeFileError
from almanac.files.quoting import quoted

_PARTIAL_PREFIX, _PARTIAL_SUFFIX = ".almanac-", ".partial"
_LOCK_NAME = ".lock"


class Sink(Protocol):
    """Where a writer callback puts its bytes."""

    def write(self, data: bytes | memoryview, /) -> None: ...


class _HashingSink:
    """Writes everything it is given, however short the kernel's writes, and digests it on the way."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview, /) -> None:
        if memoryview(data).nbytes == 0:
            return
        view = memoryview(data).cast("B")
        self.digest.update(view)
        while view.nbytes:
            view = view[os.write(self._descriptor, view) :]


def write_atomic(
    path: str | os.PathLike[str],
    content: bytes | Callable[[Sink], None],
    *,
    verify: Callable[[Path], object] | None = None,
    mode: int = 0o666,
) -> str:
    """Replace the file at `path` as one step, durable when this returns.

    Args:
        path: the target; its folder must exist.
        content: the bytes, or a callback that writes them (as bytes or one-dimensional byte views) to a sink.
        verify: called with the temporary file after it was read back; an exception from it cancels the write.
        mode: permission bits before the umask (0o600 for secrets).

    Returns:
        SHA-256 of the content, in hexadecimal.

    Raises:
        NotFoundError: the folder does not exist.
        IntegrityError: the bytes read back are not those written.
        OSError: the system refused (disk full, read-only, ...); the previous content is intact.
    """
    target = Path(path)
    temporary = target.with_name(f"{_PARTIAL_PREFIX}{os.getpid()}-{secrets.token_hex(6)}{_PARTIAL_SUFFIX}")
    try:
        digest = _write_and_sync(temporary, content, mode)
        if sha256_file(temporary) != digest:
            raise IntegrityError(
                f"What was written for {quoted(target, limit=200)} does not read back the same",
                remedy="Check the disk; the previous file is intact.",
            )
        if verify is not None:
            verify(temporary)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(target.parent)
    return digest


def _write_and_sync(path: Path, content: bytes | Callable[[Sink], None], mode: int) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except FileNotFoundError as error:
        raise NotFoundError(f"The folder {quoted(path.parent, limit=200)} does not exist", remedy="Make it.") from error
    try:
        sink = _HashingSink(descriptor)
        if isinstance(content, bytes):
            sink.write(content)
        else:
            content(sink)
        os.fsync(descriptor)
        if sys.platform == "linux":  # so that reading back asks the disk and not the cache
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return sink.digest.hexdigest()


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: str | os.PathLike[str]) -> int:
    """Delete what writers killed in mid-write left in `folder`; returns how many. Call it under the folder's `Lock`."""
    leftovers = [p for p in Path(folder).glob(f"{_PARTIAL_PREFIX}*{_PARTIAL_SUFFIX}") if not p.is_dir()]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: object) -> bytes:
    """The one JSON form of a value: sorted keys, two-space indent, UTF-8, final newline. Equal values, equal bytes.

    Raises:
        FileFormatError: NaN, an infinity, a lone surrogate, or something that is not JSON.
    """
    try:
        text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"
    except (ValueError, TypeError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise FileFormatError(
            f"A value cannot be written as JSON: {str(error)[:200]}",
            remedy="Write only finite numbers, valid text, lists and dictionaries with text keys.",
        ) from error


def write_json(path: str | os.PathLike[str], value: object, *, mode: int = 0o666) -> str:
    """Write `canonical_json(value)` atomically; returns its SHA-256. Errors as `canonical_json`, `write_atomic`."""
    return write_atomic(path, canonical_json(value), mode=mode)


class Lock:
    """One writer at a time in a folder: `with Lock(folder): ...`.

    It is the kernel's lock on the open file `.lock` (flock), so it ends with the process, SIGKILL included; the file
    itself stays and means nothing. A second `Lock` on the folder fails at once, in this process too.

    Raises:
        LockedError: somebody else is writing there.
        NotFoundError: the folder does not exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise; see the class."""
        assert self._descriptor is None, "this Lock is already held"
        try:
            descriptor = os.open(self.folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"The folder {quoted(self.folder, limit=200)} does not exist", remedy="Make it."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0)
            os.close(descriptor)
            raise LockedError(
                f"Process {quoted(holder.decode('ascii', 'replace'))} is writing in {quoted(self.folder, limit=200)}",
                remedy="Wait until it is done, or end it; the lock goes with it.",
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_WINDOWS_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$", "clock$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"]
)
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _name_fault(name: str) -> str | None:
    """Why a relative name is refused, or None."""
    if not name or len(name.encode("utf-8", "surrogatepass")) > 4096:
        return "it is empty or too long"
    if any(unicodedata.category(character) in _HIDDEN_CATEGORIES for character in name):
        return "it holds control, invisible or unassigned characters"
    if any(character in '\\:<>"|?*' for character in name):
        return "it holds a character that some system reads as a drive, a stream, a pattern or a separator"
    if name.startswith(("/", "~")):
        return "it starts at a root or a home folder"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "it walks through the folder tree"
        if part[-1] in ". " or part[0] == " " or len(part.encode()) > 255:
            return "it has a part that some system would shorten or trim"
        stem = part.split(".")[0].strip().lower()
        if stem in _WINDOWS_DEVICES or part == _LOCK_NAME or part.startswith(_PARTIAL_PREFIX):
            return "it is a reserved name"
    return None


def safe_member(folder: str | os.PathLike[str], name: str) -> Path:
    """The path `folder/name` for a name that came from outside, if it stays inside whatever the system.

    The name is judged as it stands and in compatibility form (NFKC, where full-width dots and slashes become plain
    ones). If something exists there, it must be a file or a folder and, with links followed, lie within `folder`.

    Raises:
        UnsafeFileError: absolute, upward, drive, stream, device, reserved or hidden-character names; links that leave.
    """
    root = Path(folder)
    plain = unicodedata.normalize("NFKC", name)
    if plain.count("/") != name.count("/"):
        fault: str | None = "it holds a look-alike of a slash"
    else:
        fault = _name_fault(name) or _name_fault(plain) or _place_fault(root, root / name)
    if fault is not None:
        raise UnsafeFileError(
            f"The name {quoted(name)} is refused: {fault}",
            remedy=f"Name a file inside {quoted(root, limit=200)}; copy linked files into it.",
        )
    return root / name


def _place_fault(root: Path, path: Path) -> str | None:
    """Why what is at `path` now is refused, or None; nothing there is no fault."""
    try:
        if not path.resolve().is_relative_to(root.resolve()):
            return "it is, or goes through, a link that leaves the folder"
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return "it cannot be followed"
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "it is a device, a pipe or a socket"
