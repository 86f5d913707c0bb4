"""One pre-training run on several processes: the same model as on one, whatever the mesh cuts, and the same again after a
rank was killed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import almanac

STEPS = 8
EVERY = {"data=2": 2, "pipeline=2": 2, "shard=2": 2, "tensor=2": 2, "context=2": 2, "data=2,tensor=2": 4}
MESHES = [*EVERY][: None if os.environ.get("ALMANAC_PARALLEL") == "all" else 1]
OPTIONS = ["--steps", str(STEPS), "--vocab-size", "300", "--time", "32", "--seed", "3", "--held-out", "0.2"]
WAIT_SECONDS = 500


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    dice = random.Random(0)
    words = (
        "lamp ship stone river quiet seven under the of blue far old sea over light and a small house by water".split()
    )
    path.write_text("\n".join(" ".join(dice.choice(words) for _ in range(9)) + "." for _ in range(400)))
    return path


def run(text: Path, out: Path, *, mesh: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m"]
    if mesh is not None:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(EVERY[mesh]), "-m"]
    command += ["almanac", "pretrain", str(text), "--output", str(out), *OPTIONS]
    command += ["--mesh", mesh] if mesh is not None else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)


def measured(out: Path) -> list[dict[str, float]]:
    return json.loads((out / "pretraining.json").read_text())["train"]["measured"]


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "out"
    done = run(text, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("mesh", MESHES)
def test_the_model_is_that_of_one_process(mesh: str, alone: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(text, out, mesh=mesh)
    assert done.returncode == 0, done.stderr
    ours, theirs = measured(out), measured(alone)
    assert [item["step"] for item in ours] == [item["step"] for item in theirs] == [0, STEPS]
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert ours[-1]["loss"] < ours[0]["loss"] - 0.5
    assert done.stdout.count("is ready") == 1  # one process speaks
    one, other = (almanac.load(folder / "model") for folder in (out, alone))
    found = dict(one.network.named_parameters())
    for name, parameter in other.network.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-3)
    again = run(text, out, mesh=mesh)  # finished: nothing is trained twice, nobody waits for ever
    assert again.returncode == 0, again.stderr
    assert measured(out) == ours


def test_what_a_mesh_cannot_do_is_said_before_anything_is_read(text: Path, tmp_path: Path) -> None:
    for option in (["--minutes", "1"], ["--objective", "masked"]):
        command = [sys.executable, "-m", "almanac", "pretrain", str(text), "--output", str(tmp_path / "out")]
        done = subprocess.run(
            [*command, "--mesh", "data=2", *option], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )
        assert done.returncode != 0 and "A mesh does not go with" in done.stderr
    alone = subprocess.run(
        [*command, "--mesh", "data=2"], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert alone.returncode != 0 and "torchrun --nproc-per-node 2" in alone.stderr
    assert not (tmp_path / "out").exists()
