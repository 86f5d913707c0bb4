"""Atomic writes survive every failing call and SIGKILL; locks end with their holder; names stay inside."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from almanac.core.errors import FileFormatError, IntegrityError, LockedError, NotFoundError, UnsafeFileError
from almanac.files import store
from almanac.files.store import (
    Lock,
    canonical_json,
    remove_partials,
    safe_member,
    sha256_file,
    write_atomic,
    write_json,
)

OLD, NEW = b"old content", b"new content, longer " * 4000


def _write_in_pieces(sink: store.Sink) -> None:
    for start in range(0, len(NEW), 20_000):
        sink.write(memoryview(NEW)[start : start + 20_000])


class _FailingCalls:
    """Stands in for `os` inside the store: call number `fatal` of the watched ones raises `code`; counts them all."""

    WATCHED = ("open", "write", "fsync", "close", "posix_fadvise")

    def __init__(self, fatal: int, code: int) -> None:
        self.count, self.fatal, self.code, self.failed = 0, fatal, code, ""

    def wrap(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            self.count += 1
            if self.count == self.fatal:
                self.failed = name
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments)

        return call

    def as_os(self) -> SimpleNamespace:
        replaced = {name: self.wrap(name, getattr(os, name)) for name in self.WATCHED}
        return SimpleNamespace(**({name: getattr(os, name) for name in dir(os)} | replaced))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE])
def test_every_call_failing_in_turn_leaves_the_old_content_or_the_whole_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = tmp_path / "state.json"
    failed_in: list[str] = []
    for fatal in range(1, 60):
        target.write_bytes(OLD)
        shim = _FailingCalls(fatal, code)
        with monkeypatch.context() as patch:
            patch.setattr(store, "os", shim.as_os())
            patch.setattr(Path, "replace", shim.wrap("replace", Path.replace))
            if not _fails(lambda: write_atomic(target, _write_in_pieces)):
                break
        failed_in.append(shim.failed)
        renamed = "replace" in failed_in[:-1] and shim.failed != "replace"
        assert target.read_bytes() == (NEW if renamed else OLD), shim.failed
        assert [p.name for p in tmp_path.iterdir()] == ["state.json"], f"leftover after {shim.failed}"
    assert shim.failed == "", "the loop must end with a call that does not fail"
    assert {"open", "write", "fsync", "close", "replace"} <= set(failed_in)
    assert failed_in.count("write") == len(range(0, len(NEW), 20_000))
    assert failed_in.index("fsync") < failed_in.index("replace") < len(failed_in) - 1 - failed_in[::-1].index("fsync")
    assert write_atomic(target, NEW) == hashlib.sha256(NEW).hexdigest()
    assert target.read_bytes() == NEW


def _fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return True
    return False


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    write_atomic(tmp_path / "x", NEW[:5000])
    assert (tmp_path / "x").read_bytes() == NEW[:5000]


def test_a_changed_byte_on_the_disk_is_noticed_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = tmp_path / "x", os.fsync

    def corrupting_fsync(descriptor: int) -> None:
        os.pwrite(descriptor, b"\xff", 3)
        real(descriptor)

    target.write_bytes(OLD)
    monkeypatch.setattr(os, "fsync", corrupting_fsync)
    with pytest.raises(IntegrityError):
        write_atomic(target, NEW)
    assert target.read_bytes() == OLD


def test_an_interrupted_or_refused_write_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(OLD)

    def interrupted(sink: store.Sink) -> None:
        sink.write(NEW)
        raise KeyboardInterrupt

    def refuse(path: Path) -> None:
        assert path.read_bytes() == NEW
        raise FileFormatError("no", remedy="none")

    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, interrupted)
    with pytest.raises(FileFormatError):
        write_atomic(target, NEW, verify=refuse)
    assert target.read_bytes() == OLD
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(NotFoundError):
        write_atomic(tmp_path / "absent" / "x", NEW)


def test_mode_is_applied(tmp_path: Path) -> None:
    write_atomic(tmp_path / "secret", b"token", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


_WRITER = """
import sys
from almanac.files.store import write_atomic
print("ready", flush=True)
while True:
    for letter in (b"a", b"b"):
        write_atomic(sys.argv[1], letter * 3_000_000)
"""


def test_sigkill_at_any_moment_leaves_one_whole_generation(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"a" * 3_000_000)
    for cycle in range(6):
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(target)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            time.sleep(0.02 + 0.011 * cycle)
            child.send_signal(signal.SIGKILL)
        content = target.read_bytes()
        assert content in (b"a" * 3_000_000, b"b" * 3_000_000)
    with Lock(tmp_path):
        remove_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "x"]


_HOLDER = """
import sys, time
from almanac.files.store import Lock
lock = Lock(sys.argv[1])
lock.acquire()
print(1, flush=True)
time.sleep(60)
"""


def test_lock_excludes_other_processes_and_ends_with_sigkill(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"1\n"
        with pytest.raises(LockedError, match=str(child.pid)):
            Lock(tmp_path).acquire()
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Lock(tmp_path), pytest.raises(LockedError, match=str(os.getpid())), Lock(tmp_path):
            pass
    with Lock(tmp_path):
        pass
    with pytest.raises(NotFoundError):
        Lock(tmp_path / "absent").acquire()


def test_canonical_json_is_one_form_and_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    assert canonical_json({"b": [1, 2.5, "ü"], "a": None}) == canonical_json({"a": None, "b": [1, 2.5, "ü"]})
    assert canonical_json({"a": "ü"}) == '{\n  "a": "ü"\n}\n'.encode()
    assert write_json(tmp_path / "x.json", {"a": 1}) == sha256_file(tmp_path / "x.json")
    for bad in (float("nan"), [float("inf")], "\ud800", {"a": b"bytes"}, {1, 2}):
        with pytest.raises(FileFormatError):
            canonical_json(bad)


def test_safe_member_gives_paths_inside(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "real.txt").write_text("x")
    (tmp_path / "link.txt").symlink_to("real.txt")
    for name in (
        "model.safetensors",
        "1_Pooling/config.json",
        "link.txt",
        "modèle-00001.safetensors",
        ".hidden",
        "a b",
    ):
        assert safe_member(tmp_path, name) == tmp_path / name


WRONG_NAMES = ["", "/x", "~", "~root", "..", "../x", "a/../../x", ".", "./x", "a//x", "x/", "x.", "x ", " x", "a/x./b"]
WRONG_NAMES += ["a" * 256, "é" * 128, "a/" * 2100 + "x", "a\\b", "C:", "C:x", "x:stream", "x*", "x?", "<x", "x>", "x|y"]
WRONG_NAMES += ['"x"', "nul", "sub/COM1.txt", "aux .x", ".lock", "sub/.lock", ".almanac-7.partial", "x\0", "x\x7f"]
WRONG_NAMES += ["x\u200b", "\ud800", "．．", "x／y", "℀", "ｎｕｌ", "x：y", "x\u2028", "\ufeffx", "x\ufdd0"]


@pytest.mark.parametrize("name", WRONG_NAMES, ids=lambda name: ascii(name)[:30])
def test_safe_member_refuses_names_that_mean_more_than_a_place_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafeFileError):
        safe_member(tmp_path, name)


def test_safe_member_refuses_what_leaves_or_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "model-2").mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "up").symlink_to("..")
    (folder / "absolute").symlink_to(tmp_path / "secret")
    (folder / "sibling").symlink_to("../model-2")  # shares the folder's name as a prefix
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        for name in ("up", "up/secret", "absolute", "sibling", "sibling/x", "loop", "pipe", "socket"):
            with pytest.raises(UnsafeFileError):
                safe_member(folder, name)
