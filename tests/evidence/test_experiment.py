"""Experiments over the cores and through kills: the same outcomes, each arm run once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from almanac.core.errors import NotFoundError
from almanac.evidence.experiment import Job, digest_of, experiment, names, observe, run_arm, run_seed
from almanac.evidence.generate.cached_decoding import BLIND, STATE
from almanac.files.store import write_atomic

NAME = "generate.cached_decoding"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "almanac" / "evidence"


def test_seeds_beside_each_other_give_what_they_give_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs: list[Job] = [(NAME, seed, "quick", None, (BLIND,)) for seed in (1, 2)]
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    beside = observe(jobs, parallel=True, tell=lambda *what: told.append(what))
    assert [done for _, done, _ in told] == [1, 2]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert beside == observe(jobs[:1], parallel=False, tell=lambda *what: None) + beside[1:]
    assert beside[0] != beside[1]


def test_an_arm_is_run_once_for_the_same_code(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    module = experiment(NAME)
    calls: list[int] = []
    healthy = module.run

    def counted(arm: str, seed: int, profile: str, mutant: str | None) -> object:
        calls.append(seed)
        return healthy(arm, seed, profile, mutant)

    monkeypatch.setattr(module, "run", counted)
    first = run_arm(NAME, BLIND, 3, "quick", None)
    assert run_arm(NAME, BLIND, 3, "quick", None) == first and calls == [3]
    monkeypatch.setattr("almanac.evidence.experiment.digest_of", lambda name: "f" * 64)
    run_arm(NAME, BLIND, 3, "quick", None)
    assert calls == [3, 3], "other code, other outcome"


def test_what_the_code_refuses_is_told_and_our_own_slips_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    module = experiment(NAME)

    def refusing(*arguments: object) -> None:
        raise NotFoundError("Gone", remedy="None.")

    monkeypatch.setattr(module, "run", refusing)
    assert run_seed((NAME, 0, "quick", None, (STATE,))) == "NotFoundError: Gone. None."
    monkeypatch.setattr(module, "run", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_seed((NAME, 0, "quick", None, (STATE,)))


def test_a_killed_process_loses_at_most_an_arm(cache: Path) -> None:
    command = [sys.executable, "-m", "almanac", "evidence", NAME, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=cache.parents[1]
    )
    deadline = time.monotonic() + 120
    while not list(cache.rglob("quick-*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("quick-*.json")}
    assert kept, "nothing was kept before the kill"
    done = subprocess.run(command, capture_output=True, env=environment, cwd=cache.parents[1], check=True)
    assert json.loads(done.stdout)["verdict"] == "REPRODUCED"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_only_experiments_are_found() -> None:
    assert NAME in names()
    for name in ("runner", "card", "generate", "nothing.at.all", "fixtures.text", ""):
        with pytest.raises(NotFoundError):
            experiment(name)


def test_workers_do_not_take_each_others_unfinished_files(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """An arm that ends while another is being written leaves the other's partial file alone."""
    folder = cache / NAME / digest_of(NAME)[:16]
    folder.mkdir(parents=True)
    run_arm(NAME, BLIND, 5, "quick", None)
    (partial,) = _partial_like(folder)
    run_arm(NAME, BLIND, 6, "quick", None)
    assert partial.is_file()
    observe([(NAME, 5, "quick", None, (BLIND,))], parallel=False, tell=lambda *what: None)
    assert not partial.is_file(), "what a killed run left behind goes when the next begins"


def _partial_like(folder: Path) -> list[Path]:
    """A file as `write_atomic` leaves one behind when it is killed."""
    made: list[Path] = []

    def killed(sink: object) -> None:
        made.extend(path for path in folder.iterdir() if path.suffix != ".json")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(folder / "another.json", killed)
    for path in made:
        path.write_bytes(b"half")
    return made
