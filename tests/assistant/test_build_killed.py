"""A build that is killed (SIGKILL) again and again ends where a build in one piece ends (reliability R1, this recipe)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from almanac.assistant.ask import open_assistant

SCRIPT = """
import sys, time
from pathlib import Path
from almanac.assistant.build import build
from almanac.assistant.settings import BuildSettings

docs, out, model = map(Path, sys.argv[1:4])
settings = BuildSettings(
    model=str(model), encoder="", steps=6, step_tokens=512, questions=2, answer_tokens=8, rank=2
)
seen = []

def report(event):
    if (event.stage, event.done) not in seen:
        seen.append((event.stage, event.done))
        print(event.stage, event.done, flush=True)

build(docs, out, settings=settings, report=report)
print("finished", flush=True)
"""
KILLS = (("index", 1), ("before", 0), ("adapt", 2), ("adapt", 5), ("compress", 2), ("after", 0))


def run(docs: Path, out: Path, model: Path, kill_at: tuple[str, int] | None) -> list[str]:
    """Builds in a process of its own, killed at the first report of a stage and count at least so far; what it told."""
    command = [sys.executable, "-c", SCRIPT, str(docs), str(out), str(model)]
    told = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(line.strip())
            stage, _, done = line.strip().partition(" ")
            if kill_at is not None and stage == kill_at[0] and int(done) >= kill_at[1]:
                process.kill()
                break
    return told


def test_killed_at_every_stage_it_ends_as_if_in_one_piece(built: Path, tmp_path: Path) -> None:
    docs, model = built.parent / "docs", built.parent / "toy"
    out, straight = tmp_path / "killed", tmp_path / "straight"
    for kill_at in KILLS:
        assert "finished" not in run(docs, out, model, kill_at)
    assert run(docs, out, model, None)[-1] == "finished"
    assert run(docs, straight, model, None)[-1] == "finished"
    first, second = (json.loads((root / "evaluations.json").read_text()) for root in (out, straight))
    assert first["after"]["answers"] == second["after"]["answers"]
    weights = [(root / "model" / "model.safetensors").read_bytes() for root in (out, straight)]
    assert weights[0] == weights[1]
    assert len(open_assistant(out).index) == len(open_assistant(straight).index)
    assert not list(out.rglob("*.partial"))
    shutil.rmtree(out)
