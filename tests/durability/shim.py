"""Stands between a store and the system: records what an operation asks of the disk, or makes one call of it fail.

Both act on the functions of `os` (which `pathlib` calls too) and on `io.open`, for the length of a `with` block, and on
files below one folder only. A store that writes by another way is found out: `io.open` for writing is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from durability.disk import Disk, Effect, moved

OPENS = ("open", "io.open")
WRITES = ("write", "pwrite", "ftruncate")
SYNCS = ("fsync", "fdatasync")
NAMES = ("replace", "rename", "unlink", "mkdir", "rmdir")


class Recorder:
    """The trace of everything that happened below ``folder`` while `watching`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.before = Disk.of(folder)
        self.trace: list[Effect] = []
        self._names = dict(self.before.names)
        self._folders: dict[int, str] = {}  # open descriptors of folders
        self._inodes: dict[int, int] = {}  # and of files
        self._offsets: dict[int, int] = {}
        self._next = max([*self.before.files, 0]) + 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Records while the block runs."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", *WRITES, *SYNCS, *NAMES):
                patch.setattr(os, name, self._watched(getattr(self, f"_{name}"), getattr(os, name)))
            patch.setattr(io, "open", self._reading_only(io.open))
            yield

    def _watched(self, record: Callable[..., None], real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            first, *others = arguments
            if (at := options.get("dir_fd")) in self._folders:  # as shutil.rmtree names what it removes
                first = self.folder / self._folders[at] / first
            existed = Path(first).exists() if real.__name__ == "open" else False
            result = real(*arguments, **options)
            record(result, existed, first, *others)
            return result

        return call

    def _inside(self, path: Any) -> str | None:
        if isinstance(path, int):
            return None
        full = Path(path).absolute()
        return full.relative_to(self.folder).as_posix() if full.is_relative_to(self.folder) else None

    def _open(self, descriptor: int, existed: bool, path: Any, flags: int, *mode: int) -> None:
        self._folders.pop(descriptor, None)
        self._inodes.pop(descriptor, None)
        name = self._inside(path)
        if name is None:
            return
        if flags & os.O_DIRECTORY or Path(path).is_dir():
            self._folders[descriptor] = name
            return
        assert not flags & os.O_APPEND, "not modelled"
        if not existed:
            self._names[name] = self._next
            self.trace.append(Effect("create", self._next, name))
            self._next += 1
        elif flags & os.O_TRUNC:
            self.trace.append(Effect("truncate", self._names[name]))
        self._inodes[descriptor], self._offsets[descriptor] = self._names[name], 0

    def _reading_only(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            assert self._inside(path) is None or not set(mode) & set("wax+"), f"{path} is written past the shim"
            return real(path, mode, *rest, **options)

        return call

    def _write(self, count: int, existed: bool, descriptor: int, data: Any) -> None:
        if descriptor in self._inodes:
            taken = bytes(data)[:count]
            self.trace.append(Effect("write", self._inodes[descriptor], "", "", self._offsets[descriptor], taken))
            self._offsets[descriptor] += count

    def _pwrite(self, count: int, existed: bool, descriptor: int, data: Any, offset: int) -> None:
        if descriptor in self._inodes:
            self.trace.append(Effect("write", self._inodes[descriptor], "", "", offset, bytes(data)[:count]))

    def _ftruncate(self, result: None, existed: bool, descriptor: int, length: int) -> None:
        if descriptor in self._inodes:
            self.trace.append(Effect("truncate", self._inodes[descriptor], offset=length))

    def _fsync(self, result: None, existed: bool, descriptor: int) -> None:
        if descriptor in self._folders:
            self.trace.append(Effect("sync_folder", path=self._folders[descriptor]))
        elif descriptor in self._inodes:
            self.trace.append(Effect("sync", self._inodes[descriptor]))

    _fdatasync = _fsync

    def _replace(self, result: None, existed: bool, source: Any, target: Any) -> None:
        name, new = self._inside(source), self._inside(target)
        if name is not None and new is not None:
            assert Path(name).parent == Path(new).parent, "a rename across folders is not modelled"
            if name in self._names:
                self._names[new] = self._names.pop(name)
                self.trace.append(Effect("rename", self._names[new], name, new))
            else:
                self._names = {moved(path, name, new): inode for path, inode in self._names.items()}
                self.trace.append(Effect("rename_folder", path=name, target=new))

    _rename = _replace

    def _unlink(self, result: None, existed: bool, path: Any) -> None:
        name = self._inside(path)
        if name is not None:
            self.trace.append(Effect("unlink", self._names.pop(name), name))

    def _mkdir(self, result: None, existed: bool, path: Any, *mode: int) -> None:
        name = self._inside(path)
        if name is not None:
            self.trace.append(Effect("mkdir", path=name))

    def _rmdir(self, result: None, existed: bool, path: Any) -> None:
        name = self._inside(path)
        if name is not None:
            self.trace.append(Effect("rmdir", path=name))


@dataclasses.dataclass
class Fault:
    """Makes call number ``nth`` (from 1) of the functions ``calls`` raise OSError(``code``); all later ones too if
    ``persistent``. ``code`` 0 makes a write short instead. ``count`` is how many calls there were.
    """

    calls: Sequence[str]
    code: int
    nth: int
    persistent: bool = False
    count: int = 0
    failed: str = ""

    @contextlib.contextmanager
    def injected(self) -> Iterator[Fault]:
        """Injects while the block runs."""
        with pytest.MonkeyPatch.context() as patch:
            for name in self.calls:
                owner, plain = (io, "open") if name == "io.open" else (os, name)
                patch.setattr(owner, plain, self._failing(name, getattr(owner, plain)))
            yield self

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.nth or (self.persistent and self.count > self.nth):
                self.failed = self.failed or name
                if self.code == 0:
                    descriptor, data = arguments
                    return real(descriptor, bytes(data)[: max(1, len(data) // 3)])
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments, **options)

        return call
