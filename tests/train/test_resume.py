"""Killed anywhere and started again, a run ends with the bytes of one that was never interrupted (R1, R2, R6)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from train import small_run

from almanac.compress.quantize.int8 import Int8
from almanac.core.errors import IntegrityError, LockedError, TrainingError
from almanac.data import collate
from almanac.files.store import Lock
from almanac.train import training
from almanac.train.checkpoint import Checkpoints
from almanac.train.events.event import Event, Listener, StepDone
from almanac.train.run_folder import read_run

FACTOR = int(os.environ.get("ALMANAC_KILLS", "1"))
"""How many times as many kills to try: 1 on every commit (20 random kills), 10 for the nightly figure."""
STEPS, SAVE_EVERY, KILLS = 40, 5, 10  # of each way to save


class Worker:
    """The forking process of ``resume_worker``."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("resume_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, folder: Path, *, saving: str = "", call: int = 0, delay: float = 0, **changes: int) -> int:
        """Exit status of one run; killed before its ``call``-th commit call, or after ``delay`` seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        steps, every = changes.get("steps", STEPS), changes.get("every", SAVE_EVERY)
        self.process.stdin.write(f"{folder} {steps} {every} {saving or 'at_once'} {call} {delay}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def uninterrupted(worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert worker.run(folder) == 0
    return fingerprint(folder)


def fingerprint(folder: Path) -> dict[str, str]:
    """Digests of all that must be equal: weights, moments and random state; counters and place; the log."""
    last = folder / "checkpoints" / json.loads((folder / "checkpoints/latest.json").read_text())["generation"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    log = json.dumps([{key: value for key, value in line.items() if key != "seconds"} for line in lines])
    return {
        "step": str(lines[-1]["step"]),
        "tensors": hashlib.sha256((last / "tensors.safetensors").read_bytes()).hexdigest(),
        "facts": hashlib.sha256((last / "facts.json").read_bytes()).hexdigest(),
        "log": hashlib.sha256(log.encode()).hexdigest(),
    }


@pytest.mark.parametrize("saving", ["at_once", "background"])
@pytest.mark.parametrize("trial", range(KILLS * FACTOR))
def test_killed_at_a_random_time(
    worker: Worker, uninterrupted: dict[str, str], tmp_path: Path, trial: int, saving: str
) -> None:
    """R1. Twice killed, as the resumed run must be resumable too."""
    rng = random.Random(trial)
    for _ in range(2):
        worker.run(tmp_path, saving=saving, delay=rng.uniform(0.02, 0.6))
    assert worker.run(tmp_path, saving=saving) == 0
    assert fingerprint(tmp_path) == uninterrupted


def test_killed_at_every_commit_point(worker: Worker, tmp_path: Path) -> None:
    """Every fsync and rename of a run of three saves in turn: what is on the disk always continues to the same end."""
    assert worker.run(tmp_path / "whole", steps=6, every=2) == 0
    expected, call, killed = fingerprint(tmp_path / "whole"), 0, True
    steps_after_kill = set()
    while killed:
        call += 1
        folder = tmp_path / str(call)
        killed = worker.run(folder, steps=6, every=2, call=call) == -signal.SIGKILL
        found = Checkpoints(folder / "checkpoints").load()
        steps_after_kill.add(found[0].facts["counters"]["step"] if found else 0)
        assert worker.run(folder, steps=6, every=2) == 0
        assert fingerprint(folder) == expected
        assert not list(folder.rglob("*partial*"))
    assert call > 30 and steps_after_kill == {0, 2, 4, 6}


def test_what_is_written_in_the_background_is_the_state_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late the writer comes: the tensors of a generation are those between two steps, not later ones."""
    saved = Checkpoints.save

    def late(self: Checkpoints, snapshot: Any) -> Path:
        time.sleep(0.1)  # some steps
        return saved(self, snapshot)

    generations = []
    for background in (False, True):
        folder = tmp_path / str(background)
        with monkeypatch.context() as patch:
            if background:
                patch.setattr(Checkpoints, "save", late)
            small_run.run(folder, steps=20, save_every=5, background_saves=background)
        found = sorted((folder / "checkpoints").glob("step-*"))
        generations.append({each.name: (each / "tensors.safetensors").read_bytes() for each in found})
    assert generations[0] == generations[1] and generations[0].keys() == {"step-00000015", "step-00000020"}


def test_a_fault_of_the_background_writer_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told at the next save, with the generation before intact."""
    saved = Checkpoints.save

    def failing(self: Checkpoints, snapshot: Any) -> Path:
        if snapshot.facts["counters"]["step"] == 10:
            raise OSError(28, "No space left on device")
        return saved(self, snapshot)

    monkeypatch.setattr(Checkpoints, "save", failing)
    seen: list[int] = []

    def listener(event: Event) -> None:
        seen.extend([event.step] if isinstance(event, StepDone) else [])

    with pytest.raises(OSError, match="No space left"):
        small_run.run(tmp_path, steps=40, save_every=5, background_saves=True, listeners=(listener,))
    assert seen[-1] == 15
    monkeypatch.undo()
    assert small_run.run(tmp_path, steps=40, save_every=5, background_saves=True).finished
    assert small_run.run(tmp_path / "whole", steps=40, save_every=5).finished
    assert fingerprint(tmp_path) == fingerprint(tmp_path / "whole")


def stopped_at(folder: Path, step: int, *, keepers: tuple[Listener, ...] = (), **changes: Any) -> None:
    """A run that was asked to stop once it had done ``step`` steps."""
    stop = threading.Event()

    def listener(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == step:
            stop.set()

    assert not small_run.run(folder, listeners=(*keepers, listener), stop=stop, **{"steps": STEPS, **changes}).finished


@pytest.mark.parametrize(
    ("place", "name", "broken"),
    [
        (None, "", None),
        (torch, "set_rng_state", lambda state: None),
        (training, "_optimizer_states", lambda tensors, scalars, parameters: {}),
        (collate.StepBatches, "load", lambda batches, state: None),
    ],
    ids=["sound", "dice forgotten", "moments forgotten", "place forgotten"],
)
def test_what_a_resumed_run_needs(
    uninterrupted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, broken: Any
) -> None:
    """The comparison of this file finds each thing that a checkpoint could fail to bring back."""
    stopped_at(tmp_path, 17)
    if place is not None:
        monkeypatch.setattr(place, name, broken)
    small_run.run(tmp_path, steps=STEPS)
    assert (fingerprint(tmp_path) == uninterrupted) == (place is None)


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json", "manifest.json"])
@pytest.mark.parametrize("at", [0.1, 0.6, 0.99])
def test_a_flipped_bit_is_passed_over_and_told(tmp_path: Path, name: str, at: float) -> None:
    small_run.run(tmp_path, steps=10)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    older, newer = checkpoints.generations()
    flip(tmp_path / "checkpoints" / newer / name, at)
    found = checkpoints.load()
    assert found is not None
    snapshot, damaged = found
    assert snapshot.facts["counters"]["step"] == 5 and len(damaged) == 1 and newer in damaged[0]
    flip(tmp_path / "checkpoints" / older / name, at)
    with pytest.raises(IntegrityError, match=older):
        checkpoints.load()


def test_a_damaged_newest_checkpoint_costs_one_interval(tmp_path: Path) -> None:
    small_run.run(tmp_path / "whole", steps=15)
    small_run.run(tmp_path / "hurt", steps=15)
    checkpoints = Checkpoints(tmp_path / "hurt/checkpoints")
    flip(checkpoints.folder / checkpoints.generations()[-1] / "tensors.safetensors", 0.5)
    small_run.run(tmp_path / "hurt", steps=15)
    assert fingerprint(tmp_path / "hurt") == fingerprint(tmp_path / "whole")


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    small_run.run(tmp_path, steps=4)
    for changes, named in (({"learning_rate": 1e-3}, "settings"), ({"seed": 1}, "data, settings")):
        with pytest.raises(TrainingError, match=f"{named} differ"):
            small_run.run(tmp_path, **{"steps": 4, **changes})
    with pytest.raises(TrainingError, match="network differ"):
        small_run.run(tmp_path, steps=4, network=small_run.adapted(Int8(), dropout=0.1))
    assert read_run(tmp_path)["identity"]["settings"]["steps"] == 4
    small_run.run(tmp_path, steps=4)  # and it is still that run


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Lock(tmp_path), pytest.raises(LockedError):
        small_run.run(tmp_path, steps=2)
