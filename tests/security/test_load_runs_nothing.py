"""R16, R17: ``almanac.load`` on everything planted runs nothing, writes nothing, connects to nothing, and says why.

One child process loads it all under an audit hook; each test here reads one part of its report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from security import planted

LEAST_REFUSED = 300
SECONDS_PER_CASE = 3.0
TYPED = {
    "UnsafeFileError", "FileFormatError", "NotFoundError", "UnsupportedError", "ArchitectureError", "IntegrityError",
    "ShapeError", "SelectionError",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    cases: list[planted.Case]
    results: dict[str, dict[str, Any]]
    events: list[dict[str, str]]
    children: int
    canary: Path
    changed: list[str]

    def of(self, incident: int) -> list[planted.Case]:
        return [case for case in self.cases if incident in case.incidents]


def fingerprint(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every regular file that is there."""
    found = (path.lstat() for path in sorted(root.rglob("*")))
    return {
        str(path): (status.st_size, status.st_mtime_ns)
        for path, status in zip(sorted(root.rglob("*")), found, strict=True)
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("planted")
    planter = planted.Planter(root)
    cases = planter.plant()
    (root / "cases.json").write_text(planted.as_json(cases))
    before = fingerprint(root)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "HOME": str(root)}
    done = subprocess.run(
        [
            sys.executable, str(Path(planted.__file__).with_name("load_worker.py")), str(root / "cases.json"),
            str(root / "report.json"), str(root / "outside"), *planted.sound_first(planter),
        ],
        capture_output=True, text=True, timeout=240, check=False, cwd=root, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((root / "report.json").read_text())
    (root / "report.json").unlink()
    after = fingerprint(root)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    changed = [path for path in changed if path != str(root)]  # the report came and went there
    results = {result["name"]: result for result in told["results"]}
    return Report(cases, results, told["events"], told["children"], planter.canary, changed)


def test_the_collection_is_large_enough(report: Report) -> None:
    assert len({case.name for case in report.cases}) == len(report.cases) == len(report.results)
    assert sum(case.expect == "refused" for case in report.cases) >= LEAST_REFUSED
    assert sum(case.expect == "refused rendering" for case in report.cases) >= 50


def test_nothing_ran_connected_or_was_written(report: Report) -> None:
    assert report.events == []
    assert not report.canary.exists()
    assert report.changed == []


def test_the_only_processes_are_those_that_confine_templates(report: Report) -> None:
    """A template that breached a limit ends its process, and the next rendering starts another."""
    assert report.children <= sum(case.expect == "refused rendering" for case in report.cases)


def test_every_refusal_is_one_typed_error_with_a_remedy(report: Report) -> None:
    for case in report.cases:
        result = report.results[case.name]
        assert "untyped" not in result["outcome"], (case.name, result["outcome"])
        assert result["told"], case.name
        assert result["seconds"] < SECONDS_PER_CASE, (case.name, result["seconds"])


def assert_outcomes(report: Report, cases: list[planted.Case]) -> None:
    assert cases
    for case in cases:
        outcome = report.results[case.name]["outcome"]
        stage, _, kind = outcome.partition(": ")
        if case.expect == "refused":
            assert stage == "load" and kind in TYPED, (case.name, outcome)
        elif case.expect == "refused rendering":
            assert outcome == "render: TemplateError", (case.name, outcome)
        else:
            assert outcome == "loaded", (case.name, outcome)


@pytest.mark.parametrize("incident", [15, 16, 18, 20, 21, 22, 23, 24, 25, 28, 29, 30, 31, 58, 59, 60, 62])
def test_incident(incident: int, report: Report) -> None:
    assert_outcomes(report, report.of(incident))


def test_every_case_belongs_to_an_incident(report: Report) -> None:
    assert all(case.incidents for case in report.cases)
    assert_outcomes(report, report.cases)


def test_formats_that_can_run_code_are_called_unsafe(report: Report) -> None:
    """The reason is told, not only that something was malformed."""
    for name, word in (("pickle 2", "UnsafeFileError"), ("torch zip", "UnsafeFileError"), ("hdf5", "UnsafeFileError")):
        for suffix in ("", ".safetensors", ".json", ".bin", ".pt", ".keras"):
            assert report.results[f"{name} as model{suffix}"]["outcome"] == f"load: {word}"
    assert report.results["only pytorch_model.bin"]["outcome"] == "load: UnsafeFileError"


DEEDS = {
    "exec": "exec('x = 1')",
    "compile": "compile('x = 1', 'model.py', 'exec')",
    "os.system": "os.system('true')",
    "subprocess.Popen": "subprocess.run(['true'])",
    "socket.__new__": "socket.socket().close()",
    "os.mkdir": "os.mkdir('made')",
    "written": "open('made.txt', 'w').close()",
    "written by descriptor": "os.close(os.open('made.bin', os.O_WRONLY | os.O_CREAT))",
    "read elsewhere": "open('/etc/hostname').close()",
    "read by a link": "open('link').close()",
    "pickle.find_class": "importlib.import_module('pickle').loads(b'cbuiltins\\nlen\\n.')",
}


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    """Each deed is done under the same hook; a hook that missed one would make the tests above worthless."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("1")
    (tmp_path / "link").symlink_to("outside/secret")
    lines = [
        "import importlib, os, pickle, socket, subprocess",
        "from pathlib import Path",
        "from load_worker import Watch",
    ]
    lines.append("watch = Watch(Path('outside'), Path('.'))")
    for name, deed in DEEDS.items():
        lines += [f"watch.case = {name!r}", deed, "watch.case = None"]
    lines.append("print(sorted({event['case'] for event in watch.events}))")
    folder = str(Path(planted.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": folder},
    )  # fmt: skip
    assert done.stdout.strip() == str(sorted(DEEDS)), done.stderr
