"""R1 for pre-training: killed at random times, in whatever stage, a run ends with the bytes of one that was never touched."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from almanac.pretrain.run import RUN, WORK
from almanac.train.events.tracker import MEASURED

KILLS = round(20 * float(os.environ.get("ALMANAC_KILLS", "1")))
"""20 on every commit; ALMANAC_KILLS=10 for the nightly 200."""
WORDS = "lamp ship stone river quiet seven under the of blue far old sea over light and a small house by water".split()


class Worker:
    """The forking process of ``kill_worker``."""

    def __init__(self, text: Path) -> None:
        self.text, script = text, Path(__file__).with_name("kill_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, folder: Path, *, delay: float = 0) -> tuple[int, float]:
        """Exit status and wall seconds of one run."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{self.text} {folder} {delay}\n")
        self.process.stdin.flush()
        status, seconds = self.process.stdout.readline().split()
        return int(status), float(seconds)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    dice = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(dice.choice(WORDS) for _ in range(9)) + "." for _ in range(200)))
    worker = Worker(text)
    yield worker
    worker.close()


def fingerprint(folder: Path) -> dict[str, bytes | str]:
    """All that must be equal: the model, its tokenizer, weights with moments and dice, measurements, the log by step."""
    run = folder / WORK / RUN
    last = run / "checkpoints" / json.loads((run / "checkpoints/latest.json").read_text())["generation"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    log = json.dumps([{key: value for key, value in line.items() if key != "seconds"} for line in lines])
    files = {
        name: (folder / name).read_bytes()
        for name in ("model/model.safetensors", "tokenizer/tokenizer.json", f"{WORK}/{MEASURED}")
    }
    tensors = (last / "tensors.safetensors").read_bytes()
    return files | {"tensors": tensors, "facts": (last / "facts.json").read_bytes(), "log": log}


def test_killed_at_random_times(worker: Worker, tmp_path: Path) -> None:
    status, seconds = worker.run(tmp_path / "whole")
    assert status == 0
    expected, dice, kills, runs = fingerprint(tmp_path / "whole"), random.Random(1), 0, 0
    while kills < KILLS:
        folder, alive = tmp_path / f"killed-{runs}", True
        while alive and kills < KILLS:
            alive = worker.run(folder, delay=dice.uniform(0.01, seconds))[0] == -signal.SIGKILL
            kills += alive
        if alive:
            assert worker.run(folder)[0] == 0
        assert fingerprint(folder) == expected
        assert not list(folder.rglob("*.partial")) and not list(folder.rglob("*.staging"))
        runs += 1
