"""The shim itself: it finds the classic mistakes of stores, and passes the protocol that makes none of them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from durability.disk import CrashState, Disk, crash_states
from durability.shim import WRITES, Fault, Recorder

from almanac.files.store import write_atomic

OLD, NEW = b"old" * 500, b"newer" * 1000


def _write(path: Path, data: bytes, *, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, data)
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)


def in_place(folder: Path) -> None:
    _write(folder / "state", NEW, sync=True)


def rename_without_sync(folder: Path) -> None:
    _write(folder / "next", NEW, sync=False)
    (folder / "next").replace(folder / "state")


def rename_without_folder_sync(folder: Path) -> None:
    _write(folder / "next", NEW, sync=True)
    (folder / "next").replace(folder / "state")


def delete_first(folder: Path) -> None:
    (folder / "state").unlink()
    write_atomic(folder / "state", NEW)


def careful(folder: Path) -> None:
    write_atomic(folder / "state", NEW)


def states_of(tmp_path: Path, operation: Callable[[Path], None]) -> list[CrashState]:
    folder = tmp_path / "live"
    folder.mkdir()
    (folder / "state").write_bytes(OLD)
    recorder = Recorder(folder)
    with recorder.watching():
        operation(folder)
    assert (folder / "state").read_bytes() == NEW
    replayed = recorder.before.copy()
    for effect in recorder.trace:
        replayed.apply(effect)
    assert replayed.content() == Disk.of(folder).content(), "the trace leads to what is on the disk"
    return list(crash_states(recorder.before, recorder.trace, seed=1))


def faults(states: list[CrashState], tmp_path: Path) -> set[str]:
    found = set()
    for state in states:
        state.disk.write_to(tmp_path / "crashed")
        path = tmp_path / "crashed" / "state"
        content = path.read_bytes() if path.exists() else b""
        if content not in (OLD, NEW):
            found.add("mixture")
        elif state.acknowledged and content != NEW:
            found.add("acknowledged and lost")
        shutil.rmtree(tmp_path / "crashed")
    return found


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (in_place, {"mixture"}),
        (rename_without_sync, {"mixture", "acknowledged and lost"}),
        (rename_without_folder_sync, {"acknowledged and lost"}),
        (delete_first, {"mixture"}),
        (careful, set()),
    ],
)
def test_each_mistake_is_found_and_only_it(
    tmp_path: Path, operation: Callable[[Path], None], expected: set[str]
) -> None:
    assert faults(states_of(tmp_path, operation), tmp_path) == expected


def test_writing_past_the_shim_is_refused(tmp_path: Path) -> None:
    with Recorder(tmp_path).watching(), pytest.raises(AssertionError, match="past the shim"):
        (tmp_path / "x").write_bytes(b"x")


def test_tears_fall_on_sectors_and_pages(tmp_path: Path) -> None:
    sizes = {
        len(data)
        for state in states_of(tmp_path, careful)
        for name, data in state.disk.content()
        if name.endswith(".partial")
    }
    assert {0, 512, 1024, 4096, len(NEW)} <= sizes
    assert all(size % 512 == 0 or size == len(NEW) for size in sizes)


def test_faults_hit_the_call_they_are_meant_for(tmp_path: Path) -> None:
    for nth, persistent, expected in ((1, False, "xb"), (2, False, "ax"), (1, True, "xx"), (3, False, "ab")):
        seen = ""
        descriptor = os.open(tmp_path / "f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with Fault(WRITES, errno.ENOSPC, nth, persistent).injected():
            for letter in "ab":
                try:
                    os.write(descriptor, letter.encode())
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    seen += "x"
                else:
                    seen += letter
        os.close(descriptor)
        assert seen == expected
    descriptor = os.open(tmp_path / "f", os.O_WRONLY)
    with Fault(WRITES, 0, 1).injected() as short:
        assert os.write(descriptor, b"abcdef") == 2
        assert os.write(descriptor, b"abcdef") == 6
    os.close(descriptor)
    assert (short.count, short.failed) == (2, "write")
