"""Folders that change as one step: made beside their place and then exchanged with what stands there.

Whoever is killed while writing leaves a folder beside the place, which the next writer removes: each holds the kernel's lock
on its own folder, which ends with the process, so a folder that can be locked belongs to nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from almanac.files.store import sync_folder

_SUFFIX, _ASIDE = ".staging", ".old.staging"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h and linux/fs.h
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)  # file systems and sandboxes without the call


@contextlib.contextmanager
def staging(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` to make something in, on the same file system; gone afterwards, whatever happens.

    What writers of ``path`` left who were killed is removed first. The parents of ``path`` are made.

    Raises:
        OSError: the system refused (disk full, read-only, ...).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    while True:
        folder = path.with_name(f".{path.name}.{secrets.token_hex(6)}{_SUFFIX}")
        folder.mkdir()
        with _locked(folder) as is_ours:
            if not is_ours:
                continue  # another writer took it for a leftover in the instant before the lock
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


def _remove_leftovers(path: Path) -> None:
    """What killed writers of ``path`` left; an older folder that was just set aside goes back to its place."""
    for leftover in path.parent.glob(f".{_literal(path.name)}.*{_SUFFIX}"):
        with _locked(leftover) as is_ours:
            if is_ours and leftover.name.endswith(_ASIDE) and not path.exists():
                leftover.rename(path)
            elif is_ours:
                shutil.rmtree(leftover, ignore_errors=True)


def move_into_place(folder: Path, path: Path) -> None:
    """``folder`` stands at ``path`` when this returns, durable; what stood there is then at ``folder``.

    One step where the system can exchange two names (Linux), so that ``path`` is never without a folder; elsewhere two.

    Raises:
        OSError: the system refused; what stood at ``path`` stands there still.
    """
    if not path.exists():
        folder.rename(path)
    elif not _exchanged(folder, path):
        aside = folder.with_name(folder.name.removesuffix(_SUFFIX) + _ASIDE)
        path.rename(aside)
        try:
            folder.rename(path)
        except BaseException:
            aside.rename(path)
            raise
        aside.rename(folder)
    sync_folder(path.parent)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; False where the system has no such step."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether this process holds the lock of the folder, and the folder is still there; until the end of the block."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield folder.exists()
    finally:
        os.close(descriptor)


def _literal(name: str) -> str:
    """A name as a pattern that matches only it."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
