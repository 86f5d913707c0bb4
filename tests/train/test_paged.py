"""Paged states: the same bits, resumed or not, and memory that is not the process's own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from train import small_run
from train.test_optimizers import OPTIMIZERS, stepped
from train.test_resume import STEPS, fingerprint, stopped_at

from almanac.core.errors import TrainingError, UnsupportedError
from almanac.train.optimizers import paged
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.optimizer import Optimizer
from almanac.train.optimizers.paged import Paged

INNER = {"adamw": (AdamW(weight_decay=0.1), 1e-3), **OPTIMIZERS}


def large(seed: int = 0) -> dict[str, nn.Parameter]:
    dice = torch.Generator().manual_seed(seed)
    shapes = {"layers.0.wide": (160, 200), "embed": (300, 128), "layers.0.gain": (7,)}
    return {name: nn.Parameter(torch.randn(shape, generator=dice)) for name, shape in shapes.items()}


@pytest.mark.parametrize(("inner", "rate"), INNER.values(), ids=INNER)
def test_updates_are_the_same_bits(inner: Optimizer, rate: float, tmp_path: Path) -> None:
    plain, moved = large(), large()
    stepped(inner.build(plain), plain, rate=rate)
    optimizer = Paged(inner=inner, folder=str(tmp_path)).build(moved)
    stepped(optimizer, moved, rate=rate)
    assert all(torch.equal(plain[name], moved[name]) for name in plain)
    assert not list(tmp_path.iterdir())
    assert any(parameter.grad is not None for parameter in moved.values())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in moved.values())


def test_a_run_goes_on_as_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "LEAST_BYTES", 256)
    optimizer = Paged(folder=str(tmp_path))
    assert small_run.run(tmp_path / "plain", steps=STEPS).finished
    assert small_run.run(tmp_path / "whole", steps=STEPS, optimizer=optimizer).finished
    stopped_at(tmp_path / "cut", 13, optimizer=optimizer)
    assert small_run.run(tmp_path / "cut", steps=STEPS, optimizer=optimizer).finished
    found = fingerprint(tmp_path / "plain")
    assert fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "cut") == found


_CHILD = """
import sys, torch
from pathlib import Path
from torch import nn
from almanac.train.optimizers.adamw import AdamW
from almanac.train.optimizers.paged import Paged
torch.set_num_threads(1)
parameters = {f"p{n}": nn.Parameter(torch.zeros(1 << 20)) for n in range(16)}  # 64 MiB
for parameter in parameters.values():
    parameter.grad = torch.ones(1 << 20)
optimizer = (Paged(folder=sys.argv[2]) if sys.argv[1] == "paged" else AdamW()).build(parameters)
def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) >> 10
before = own()
optimizer.step()
optimizer.step()
print(own() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds of its own is read from /proc")
def test_states_are_no_memory_of_the_process(tmp_path: Path) -> None:
    """128 MiB of moments are there without, next to nothing with."""
    grown = {}
    for kind in ("plain", "paged"):
        done = subprocess.run([sys.executable, "-c", _CHILD, kind, str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        grown[kind] = int(done.stdout)
    assert grown["plain"] >= 120 and grown["paged"] <= 30, grown


def test_no_room_is_told_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    given = large()
    with pytest.raises(TrainingError, match="No room for"):
        stepped(Paged(folder=str(tmp_path)).build(given), given, rate=1e-3)
    assert not list(tmp_path.iterdir()) and all(parameter.grad is not None for parameter in given.values())


def test_other_memory_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="not in the machine's memory"):
        Paged().build({"w": nn.Parameter(torch.empty(2, 2, device="meta"))})
