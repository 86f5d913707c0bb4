"""The same corpus on Daft, with two workers, as in one process; without it, one line says what is missing."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from almanac.core.errors import MissingExtraError, RequestError
from almanac.curate.on_daft import require_engine
from almanac.curate.run import curate

WORDS = (
    "the lamp ship stone river quiet seven under of blue far old sea light and a small house by water that have".split()
)
CHILD = """
import json, sys
import almanac.curate.units as units
from almanac.curate.run import curate

units.UNIT_FILES = 3
if __name__ == "__main__":
    told = []
    curate([sys.argv[1]], sys.argv[2], workers=2, engine="daft", report=lambda event: told.append(event.note))
    print(json.dumps({"daft": "daft" in sys.modules, "told": told}))
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, dice = tmp_path_factory.mktemp("raw"), random.Random(0)
    for number in range(14):
        lines = [" ".join(dice.choice(WORDS) for _ in range(12)) + "." for _ in range(20)]
        (folder / f"{number:02}.txt").write_text("\n".join(lines))
    (folder / "again.txt").write_text((folder / "03.txt").read_text())
    (folder / "short.txt").write_text("too short")
    return folder


def test_two_workers_of_daft_make_the_corpus_of_one_process(raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("daft", reason="the extra `cluster` is not installed")
    alone = curate([raw], tmp_path / "alone")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(raw), str(tmp_path / "daft")],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["daft"]
    for file in sorted(alone.text.iterdir()):
        assert (tmp_path / "daft" / "text" / file.name).read_bytes() == file.read_bytes()
    report = json.loads((tmp_path / "daft" / "report.json").read_text())
    assert report["kept"] == alone.report["kept"] and report["steps"] == alone.report["steps"]
    assert sum(kept["documents"] for kept in report["kept"].values()) == 14  # neither the copy nor the short one


def test_engines_that_are_not_there_are_told_before_anything_is_read(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("spark", "ray:host", "daft "):
        with pytest.raises(RequestError, match="No engine is called"):
            require_engine(wrong)
    monkeypatch.setitem(sys.modules, "daft", None)  # as where it is not installed
    with pytest.raises(MissingExtraError, match="almanac-lm\\[cluster\\]"):
        curate([raw], tmp_path / "out", engine="daft")
    assert not (tmp_path / "out").exists()
