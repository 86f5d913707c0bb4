"""Checkpoints that move between numbers of processes, and runs that lose one (R10 of the reliability plan)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from train.parallel import cases
from train.parallel.group import TESTS, Group

from almanac.train.checkpoint import Checkpoints

ALL = os.environ.get("ALMANAC_PARALLEL") == "all"
"""All nine ways between 1, 2 and 4 processes, 20 steps on; on each commit the five to and from 2, and 5 steps."""

BEFORE, STEPS = 5, 25 if ALL else 10
MESHES: dict[int, dict[str, Any] | None] = {1: None, 2: {"shard": 2}, 4: {"data": 2, "tensor": 2}}


def run(groups: dict[int, Group], world: int, **given: Any) -> dict[str, Any]:
    """What every process of a run tells."""
    given["batches"] = {"micro_batches": 1}  # FSDP2 takes most of the time, by micro-batch
    if world == 1:
        return cases.trained("llama", **given)
    told = groups[world].run("train.parallel.cases:trained", network="llama", mesh=MESHES[world], **given)
    assert all(rank == told[0] for rank in told)
    return told[0]


def test_a_checkpoint_goes_on_at_any_number_of_processes(two: Group, four: Group, tmp_path: Path) -> None:
    groups = {2: two, 4: four}
    whole = run(groups, 1, steps=STEPS)
    for saved in MESHES:
        folder = tmp_path / f"saved-{saved}"
        before = run(groups, saved, steps=STEPS, stop_after=BEFORE, folder=str(folder))
        assert before["losses"] == pytest.approx(whole["losses"][:BEFORE], rel=1e-6)
        for loaded in [world for world in MESHES if ALL or 2 in (saved, world)]:
            copy = tmp_path / f"{saved}-{loaded}"
            shutil.copytree(folder, copy)
            there = run(groups, loaded, steps=STEPS, stop_after=0, folder=str(copy))
            assert there["digest"] == before["digest"], f"{saved} -> {loaded}: the gathered weights differ in a bit"
            after = run(groups, loaded, steps=STEPS, folder=str(copy))
            assert len(after["losses"]) == STEPS - BEFORE, "a sample was lost or doubled"
            assert after["losses"] == pytest.approx(whole["losses"][BEFORE:], rel=1e-6), f"{saved} -> {loaded}"


def test_moments_come_back_bit_for_bit(two: Group, four: Group, tmp_path: Path) -> None:
    """Saved whole, loaded and saved in parts without a step between, read whole again."""
    cases.trained("llama", steps=STEPS, stop_after=BEFORE, folder=str(tmp_path / "run"))
    first = Checkpoints(tmp_path / "run/checkpoints").load()
    assert first is not None
    for group, mesh in ((two, {"shard": 2}), (four, {"shard": 2, "tensor": 2}), (two, {"pipeline": 2})):
        group.run("train.parallel.cases:saved_again", folder=str(tmp_path / "run"), mesh=mesh)
        again = Checkpoints(tmp_path / "run/again").load()
        assert again is not None
        assert again[0].tensors.keys() == first[0].tensors.keys()
        for name, tensor in first[0].tensors.items():
            assert tensor.equal(again[0].tensors[name]), name
        assert again[0].facts["counters"] == first[0].facts["counters"]
        shutil.rmtree(tmp_path / "run/again")


def test_a_damaged_part_sends_all_ranks_to_the_generation_before(two: Group, tmp_path: Path) -> None:
    given = {"steps": 25, "folder": str(tmp_path), "background_saves": True}
    first = run({2: two}, 2, stop_after=12, **given)
    newest = sorted((tmp_path / "checkpoints").glob("step-*"))[-1]
    part = newest / "tensors-00001-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    second = run({2: two}, 2, **given)
    assert len(second["losses"]) == 15
    assert second["losses"][:2] == pytest.approx(first["losses"][10:12], rel=1e-6)


def test_a_killed_rank_restarts_the_run(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("killed_worker.py")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "--monitor-interval", "0.1", str(worker), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "killed").exists()
    lines = (tmp_path / "losses").read_text().split()
    whole = cases.trained("llama", steps=12)["losses"]
    assert [float(line) for line in lines] == pytest.approx(whole[5:], rel=1e-6), "it goes on from its last checkpoint"
