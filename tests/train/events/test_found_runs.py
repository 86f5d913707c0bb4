"""Runs are found where they lie, told apart by what they do, and nothing hostile leads astray."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from train.small_run import run

from almanac.core.errors import NotFoundError
from almanac.files.store import Lock
from almanac.train.events import found_runs
from almanac.train.events.event import Event, StepDone
from almanac.train.events.found_runs import State, find_runs, is_locked, read_facts, settings_of, summary_of
from almanac.train.events.memory import MemoryLog
from almanac.train.events.standing import Standing


def made(folder: Path, steps: int = 20, **sections: Any) -> Path:
    """A run folder by hand."""
    folder.mkdir(parents=True)
    identity = {"settings": {"kind": "train.settings.TrainSettings", "steps": steps}}
    (folder / "run.json").write_text(json.dumps({"version": 1, "identity": identity, **sections}))
    return folder


def test_a_run_from_its_start_to_its_end(tmp_path: Path) -> None:
    seen = []

    def look(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 7:
            (found,) = find_runs(tmp_path)
            seen.append(summary_of(found))

    stop = threading.Event()

    def halt(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 12:
            stop.set()

    folder = tmp_path / "books" / ".pretrain" / "run"
    run(folder, listeners=[look, halt, Standing()], stop=stop, steps=20)
    (running,) = seen
    assert (running.name, running.title) == ("books/.pretrain/run", "books")
    assert (running.state, running.step, running.steps, running.saved) == (State.RUNNING, 7, 20, 5)
    assert running.seconds_left is not None and running.seconds_left > 0 and running.tokens_per_second
    (found,) = find_runs(tmp_path)
    stopped = summary_of(found)
    assert (stopped.state, stopped.step, stopped.saved, stopped.seconds_left) == (State.STOPPED, 12, 12, None)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert stopped.loss == json.loads(lines[-1])["loss"]
    run(folder, listeners=[Standing()], steps=20)
    assert summary_of(found).state is State.FINISHED
    assert read_facts(folder)["standing"] == {"step": 20, "steps": 20, "finished": True}


def test_a_run_of_epochs_is_finished_when_it_says_so(tmp_path: Path) -> None:
    run(tmp_path, listeners=[Standing()], steps=None, epochs=1)
    (found,) = find_runs(tmp_path)
    summary = summary_of(found)
    assert summary.state is State.FINISHED and summary.steps == summary.step > 0
    assert found.name == tmp_path.name


def test_what_a_process_holds_is_logged_once_per_step(tmp_path: Path) -> None:
    reads = iter(range(1000, 2000))
    path = tmp_path / "memory.jsonl"

    def dies(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, listeners=[MemoryLog(path, lambda: next(reads)), dies], steps=20)
    path.write_bytes(path.read_bytes() + b'{"step": 1')
    run(tmp_path, listeners=[MemoryLog(path, lambda: next(reads))], steps=20)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert lines[9]["bytes"] == 1009 and lines[10]["bytes"] == 1013


def test_runs_are_found_at_any_depth_but_not_through_links(tmp_path: Path) -> None:
    outside = made(tmp_path / "outside" / "secret")
    base = tmp_path / "base"
    made(base / "a" / "b")
    made(base / "c")
    made(base / "c" / "inner")  # the run's own affair
    (base / "linked").symlink_to(outside)
    (base / "fake").mkdir()
    (base / "fake" / "run.json").symlink_to(outside / "run.json")
    made(base / "x\x1b[31m")
    made(base / Path(*"1234567"))
    assert [found.name for found in find_runs(base)] == ["a/b", "c"]
    (tmp_path / "to_base").symlink_to(base)
    assert len(find_runs(tmp_path / "to_base")) == 2  # the user's own link, by name
    with pytest.raises(NotFoundError, match="no folder"):
        find_runs(tmp_path / "none")


def test_looking_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        made(tmp_path / str(number))
    monkeypatch.setattr(found_runs, "MAX_RUNS", 5)
    assert len(find_runs(tmp_path)) == 5
    monkeypatch.setattr(found_runs, "MAX_ENTRIES", 3)
    assert len(find_runs(tmp_path)) <= 3


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"identity": 3, "standing": []}', b'{"identity": {"settings": [1]}}',
        b'{"standing": {"steps": "many", "finished": 1, "step": -4}}', b'{"forecast": {"seconds": "soon"}, "identity": {}}',
    ],
)  # fmt: skip
def test_a_run_json_of_any_content_is_survived(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    (tmp_path / "metrics.jsonl").write_bytes(b"\x00" * 100_000)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest.json").write_text('{"generation": "step-../../x"}')
    (found,) = find_runs(tmp_path)
    summary = summary_of(found)
    assert (summary.state, summary.step, summary.steps, summary.saved) == (State.STOPPED, 0, None, None)
    assert settings_of(read_facts(tmp_path)) == []


def test_files_that_are_links_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"step": 99, "loss": 1, "tokens": 1, "seconds": 1}\n')
    folder = made(tmp_path / "run")
    (folder / "metrics.jsonl").symlink_to(secret)
    (folder / ".lock").symlink_to(secret)
    (found,) = find_runs(tmp_path)
    assert summary_of(found).step == 0 and summary_of(found).loss is None


def test_the_lock_tells_who_writes(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with Lock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with Lock(tmp_path):  # looking has left nothing behind
        assert (tmp_path / ".lock").exists()


def test_settings_are_bounded(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(40):
        deep = {"a": deep}
    settings = {"deep": deep, "long": "x" * 5000, "none": None, **{f"n{i}": i for i in range(500)}}
    told = settings_of({"identity": {"settings": settings}})
    assert len(told) == found_runs.SETTINGS and told[0] == ["deep" + ".a" * 40, "1"]
    assert all(len(text) <= found_runs.SETTING_CHARACTERS for row in told for text in row)
