"""Folders that change as one step, and what is left of writers who were killed (reliability R1)."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from almanac.files import staging as staging_file
from almanac.files.staging import move_into_place, staging

WRITER = """
import sys
from pathlib import Path
from almanac.files.staging import move_into_place, staging

path = Path(sys.argv[1])
print("begun", flush=True)
for version in range(10**6):
    with staging(path) as folder:
        for part in range(5):
            (folder / str(part)).write_text(str(version))
        move_into_place(folder, path)
"""


def put(path: Path, text: str) -> None:
    with staging(path) as folder:
        (folder / "a").write_text(text)
        move_into_place(folder, path)


@pytest.fixture(params=["exchanged", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two renames":
        monkeypatch.setattr(staging_file, "_exchanged", lambda one, other: False)
    return str(request.param)


def test_a_folder_is_replaced_and_nothing_stays_beside_it(tmp_path: Path, way: str) -> None:
    path = tmp_path / "deep" / "model"
    for text in ("first", "second"):
        put(path, text)
        assert (path / "a").read_text() == text
        assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_fails_leaves_what_stood_there(tmp_path: Path, way: str) -> None:
    path = tmp_path / "model"
    put(path, "first")

    def fail() -> None:
        with staging(path) as folder:
            (folder / "a").write_text("second")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert (path / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fails", [1, 2])
def test_a_rename_that_fails_leaves_what_stood_there(
    fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    put(path, "first")
    monkeypatch.setattr(staging_file, "_exchanged", lambda one, other: False)
    original, calls = Path.rename, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == fails:
            raise OSError(28, "no space left on device")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"):
        put(path, "second")
    assert (path / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_of_a_living_writer_is_left_alone_and_that_of_a_dead_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "m[o]del*"
    stranger = tmp_path / ".other.0123.staging"
    dead = tmp_path / f".{path.name}.0123.staging"
    for folder in (stranger, dead):
        (folder / "sub").mkdir(parents=True)
    with staging(path) as living:
        (living / "a").write_text("whole")
        put(path, "second")
        assert (living / "a").read_text() == "whole"
        assert stranger.is_dir()
        assert not dead.exists()
        move_into_place(living, path)
    assert (path / "a").read_text() == "whole"


def test_what_was_set_aside_comes_back_where_its_place_is_empty(tmp_path: Path) -> None:
    """Killed between the two renames, where the system has no exchange."""
    path, aside = tmp_path / "model", tmp_path / ".model.0123.old.staging"
    put(path, "first")
    path.rename(aside)
    with staging(path):
        assert (path / "a").read_text() == "first"
        assert not aside.exists()


def test_killed_at_any_moment_the_place_holds_one_whole_version(tmp_path: Path) -> None:
    path = tmp_path / "model"
    put(path, "before")
    for part in range(5):
        (path / str(part)).write_text("before")
    seen = set()
    for kill in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(0.02 + 0.013 * kill)
            process.kill()
        versions = {(path / str(part)).read_text() for part in range(5)}
        assert len(versions) == 1
        seen |= versions
    put(path, "after")
    assert list(tmp_path.iterdir()) == [path]
    assert seen - {"before"}, "no writer got anywhere: the test shows nothing"
