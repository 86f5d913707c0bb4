"""The checkpoints survive: crashes at any point, any failing call, any flipped bit, two writers (R2, R3, R6, R7).

`ALMANAC_FACTOR=10` gives the nightly numbers: all crash states, faults that persist, and two thousand flipped bits.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from durability.disk import crash_states
from durability.shim import NAMES, OPENS, SYNCS, WRITES, Fault, Recorder
from train import small_run

from almanac.core.errors import AlmanacError, LockedError
from almanac.train.checkpoint import KEPT, Checkpoints
from almanac.train.run_folder import RunFolder
from almanac.train.training import Snapshot

FACTOR = int(os.environ.get("ALMANAC_FACTOR", "1"))
STATES, SUBSETS, FLIPS, RACES = 250 * FACTOR, 40 * FACTOR, 200 * FACTOR, 8 * FACTOR


def snapshot(step: int, *, anchor: bool = True) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    tensors = {f"parameter/{name}": torch.randn(33, 40, generator=generator) for name in "ab"}
    return Snapshot({**tensors, "rng": torch.arange(step)}, {"counters": {"step": step}, "anchor": anchor})


def seen(folder: Path) -> tuple[int, list[str]] | None:
    """(step, damaged) of what would be loaded; fails if its bytes are not those of its step."""
    found = Checkpoints(folder).load()
    if found is None:
        return None
    loaded, damaged = found
    step = loaded.facts["counters"]["step"]
    expected = snapshot(step).tensors
    assert loaded.tensors.keys() == expected.keys()
    assert all(torch.equal(loaded.tensors[name], expected[name]) for name in expected)
    return step, damaged


def base(folder: Path, steps: tuple[int, ...] = (5, 10)) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(snapshot(step))
    return checkpoints


@pytest.mark.parametrize("before", [(), (5,), (5, 10)], ids=str)
def test_every_crash_state_loads_the_old_or_the_new(tmp_path: Path, before: tuple[int, ...]) -> None:
    """R2. With an acknowledged save it is the new one; the next save needs no help and clears up."""
    checkpoints = base(tmp_path / "live", before)
    recorder = Recorder(tmp_path / "live")
    with recorder.watching():
        checkpoints.save(snapshot(15))
    states = list(crash_states(recorder.before, recorder.trace, seed=3, subsets=SUBSETS))
    if len(states) > STATES and FACTOR < 10:
        last = [state for state in states if state.acknowledged]
        states = random.Random(5).sample(states, k=STATES) + last[:10]
    outcomes = {"old": 0, "new": 0}
    for number, state in enumerate(states):
        folder = tmp_path / "crashed"
        state.disk.write_to(folder)
        found = seen(folder)
        step = found[0] if found else 0
        assert step in (15, *before[-1:], *([] if before else [0])), state.story
        assert found is None or found[1] == [], f"{state.story}: a crash is no damage"
        assert step == 15 or not state.acknowledged, state.story
        outcomes["new" if step == 15 else "old"] += 1
        if number % 5 == 0:
            again = Checkpoints(folder)
            again.save(snapshot(15))
            assert seen(folder) == (15, []), state.story
            assert len(again.generations()) <= KEPT and not list(folder.rglob("*partial*")), state.story
        shutil.rmtree(folder)
    assert outcomes["old"] and outcomes["new"] and len(recorder.trace) > 10
    print(f"{before}: {len(recorder.trace)} effects, {len(states)} states, {outcomes}")


FAULTS = {
    "disk full": (errno.ENOSPC, (*WRITES, "mkdir")),
    "write error": (errno.EIO, WRITES),
    "sync error": (errno.EIO, SYNCS),
    "read-only": (errno.EROFS, (*WRITES, *NAMES)),
    "too many files": (errno.EMFILE, OPENS),
    "interrupted": (errno.EINTR, (*WRITES, *SYNCS)),
    "short write": (0, ("write",)),
}


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "persistent"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_call_failing_in_turn_leaves_a_whole_generation(tmp_path: Path, fault: str, persistent: bool) -> None:
    """R3. A save that failed is told, and the same save succeeds when the fault is gone."""
    code, calls = FAULTS[fault]
    base(tmp_path / "base")
    for nth in range(1, 400):
        folder = tmp_path / "live"
        shutil.copytree(tmp_path / "base", folder)
        checkpoints, error = Checkpoints(folder), None
        with Fault(calls, code, nth, persistent).injected() as shim:
            try:
                checkpoints.save(snapshot(15))
            except (OSError, AlmanacError) as failure:
                error = failure
        story = f"call {nth} ({shim.failed}): {error}"
        found = seen(folder)
        assert found is not None and found[0] in ((15,) if error is None else (10, 15)), story
        Checkpoints(folder).save(snapshot(15))
        assert seen(folder) == (15, []), story
        assert not list(folder.rglob("*partial*")), story
        shutil.rmtree(folder)
        if not shim.failed:
            break
    assert shim.failed == "" and nth > 2, "ends with a run that nothing disturbs"


def test_every_flipped_bit_costs_a_generation_and_is_told(tmp_path: Path) -> None:
    """R6. A wrong byte is never loaded."""
    folder = tmp_path / "live"
    base(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rng, outcomes = random.Random(9), {"told": 0, "pointer or older": 0}
    for number in range(FLIPS):
        path = files[number % len(files)]
        before = path.read_bytes()
        data = bytearray(before)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        found = seen(folder)
        assert found is not None
        if path.parent.name == "step-00000010":
            assert found[0] == 5 and "step-00000010" in found[1][0], path
            outcomes["told"] += 1
        else:
            assert found == (10, []) or path.name == "latest.json", path
            outcomes["pointer or older"] += 1
        path.write_bytes(before)
    assert all(outcomes.values()) and seen(folder) == (10, [])


def test_the_one_to_go_back_to_is_kept_and_whole(tmp_path: Path) -> None:
    checkpoints = base(tmp_path)
    for step in (11, 12, 13):
        checkpoints.save(snapshot(step, anchor=False))
    assert checkpoints.generations() == [f"step-{step:08d}" for step in (10, 12, 13)]
    anchor = checkpoints.anchor(13)
    assert anchor is not None and anchor.facts["counters"]["step"] == 10
    assert checkpoints.anchor(9) is None
    checkpoints.save(snapshot(15))
    assert checkpoints.generations() == ["step-00000013", "step-00000015"]
    tensors = tmp_path / "step-00000015" / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    assert checkpoints.anchor(15) is None


_RACER = """
import sys, threading
sys.path[:0] = [sys.argv[2]]
import torch
torch.set_num_threads(1)
from almanac.core.errors import LockedError
from train import small_run
print("ready", flush=True)
for line in sys.stdin:
    try:
        print("won" if small_run.run(sys.argv[1] + line.strip(), steps=4, save_every=2).finished else "stopped", flush=True)
    except LockedError:
        print("locked", flush=True)
"""


def test_of_two_writers_one_wins_or_finds_it_done(tmp_path: Path) -> None:
    """R7. Both start at once: each either ran the whole run (the second found it finished) or was told of the lock."""
    folder = str(tmp_path / "run")
    command = [sys.executable, "-c", _RACER, folder, str(Path(__file__).parents[1])]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        assert [_line(racer) for racer in racers] == ["ready", "ready"]
        told: list[list[str]] = []
        for race in range(RACES):
            for racer in racers:
                racer.stdin.write(f"{race}\n")  # type: ignore[union-attr]
                racer.stdin.flush()  # type: ignore[union-attr]
            told.append(sorted(_line(racer) for racer in racers))
            assert told[-1] in (["locked", "won"], ["won", "won"]), told[-1]
            found = Checkpoints(Path(f"{folder}{race}") / "checkpoints").load()
            assert found is not None and found[0].facts["counters"]["step"] == 4 and not found[1]
        assert ["locked", "won"] in told
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def _line(process: Any) -> str:
    return process.stdout.readline().strip()


def test_a_lock_whose_holder_was_killed_is_free(tmp_path: Path) -> None:
    holder = (
        "import sys, os, signal\nfrom almanac.train.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1], {}):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", holder, str(tmp_path)]).returncode == -9
    with RunFolder(tmp_path, {}), pytest.raises(LockedError), RunFolder(tmp_path, {}):
        pass
    assert small_run.run(tmp_path / "other", steps=2).finished
