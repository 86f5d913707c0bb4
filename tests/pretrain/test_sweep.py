"""A tiny sweep in one piece and in pieces: forecast before the largest run, the same numbers after a kill, typed refusals."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from almanac.core.errors import FileFormatError, NotFoundError, PreflightError, RequestError, ShapeError, TrainingError
from almanac.evaluate.scaling import REFIT
from almanac.evaluate.scaling_law import fitted
from almanac.pretrain.sweep import FACTS, FORECAST, RUNS, WORK, read_law, sweep, verdict
from almanac.pretrain.sweep_points import read_runs
from almanac.pretrain.sweep_settings import SweepSettings, jobs

WORDS = "lamp ship stone river quiet seven under the of blue far old sea over light and a small house by water".split()
SCRIPT = """
import json, sys
import almanac.pretrain.sweep_settings as limits
from almanac.pretrain.sweep import sweep
from almanac.pretrain.sweep_settings import SweepSettings

limits.LEAST_STEPS = 5

def report(event):
    print(event.stage, event.done, flush=True)

sweep([sys.argv[1]], sys.argv[2], settings=SweepSettings.from_dict(json.loads(sys.argv[3])), report=report)
print("finished", flush=True)
"""


def settings(**changes: Any) -> SweepSettings:
    usual = SweepSettings(
        widths=(16, 32, 48), tokens=(5000, 7500, 10_000), vocab_size=280, time=16, held_out=0.2, windows=32
    )
    train = usual.train.with_(step_tokens=8 * 16, micro_tokens=8 * 16, save_every=9)
    return usual.with_(train=train, **changes)


@pytest.fixture(scope="module", autouse=True)
def short_runs() -> Iterator[None]:
    with patch("almanac.pretrain.sweep_settings.LEAST_STEPS", 5):
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    dice = random.Random(0)
    path.write_text("\n".join(" ".join(dice.choice(WORDS) for _ in range(9)) + "." for _ in range(600)))
    return path


@pytest.fixture(scope="module")
def done(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sweep") / "out"
    seen: list[str] = []

    def report(event: Any) -> None:
        if event.done == event.total:
            seen.append(event.stage)
        if event.stage == seen[-1] == "forecast":
            assert len(list((output / RUNS).iterdir())) == 8  # the ninth has not begun
            (output / "kept.json").write_bytes((output / FORECAST).read_bytes())

    sweep([text], output, settings=settings(), report=report)
    return output


def test_the_largest_run_is_forecast_before_it_is_run(done: Path) -> None:
    assert (done / "kept.json").read_bytes() == (done / FORECAST).read_bytes()
    facts = json.loads((done / FACTS).read_text())
    assert len(facts["runs"]) == 9 and facts["runs"][-1]["name"] == facts["forecast"]["run"]
    assert facts["runs"][-1]["hidden"] == 48 and facts["runs"][-1]["tokens"] == max(r["tokens"] for r in facts["runs"])
    assert facts["verdict"] == verdict(facts["forecast"], facts["runs"][-1]["loss"])
    others = read_runs([done / RUNS]).points()
    kept = [i for i, loss in enumerate(others.losses) if loss != facts["runs"][-1]["loss"]]
    expected = fitted(REFIT, others.pick(kept))
    form = facts["forecast"]["forms"]["chinchilla"]
    assert form["loss"] == pytest.approx(
        expected.law.loss(facts["forecast"]["parameters"], facts["forecast"]["tokens"]), rel=1e-3
    )
    page = (done / "report.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http-equiv", "") and page.count("<circle") == 9


def test_losses_fall_with_size_and_with_data(done: Path) -> None:
    runs = {(run["hidden"], run["tokens"]): run["loss"] for run in json.loads((done / FACTS).read_text())["runs"]}
    amounts = sorted({tokens for _, tokens in runs})
    assert runs[48, amounts[-1]] < runs[16, amounts[0]] - 0.2
    assert all(runs[width, amounts[-1]] < runs[width, amounts[0]] for width in (16, 32, 48))


def test_killed_again_and_again_it_ends_as_in_one_piece(done: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, str(text), str(out), json.dumps(settings().to_dict())]
    for kill_at in (("width-0016-steps-000083", 20), ("width-0048-steps-000083", 40), None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                stage, _, number = line.strip().partition(" ")
                if kill_at is not None and stage == kill_at[0] and int(number) >= kill_at[1]:
                    process.kill()
                    break
    told, again = (json.loads((folder / FACTS).read_text()) for folder in (done, out))
    assert [run["loss"] for run in again["runs"]] == [run["loss"] for run in told["runs"]]
    assert again["forecast"] == told["forecast"] and again["law"] == told["law"]
    assert not list(out.rglob("*.partial")) and not list(out.rglob("checkpoints"))


def test_started_again_it_does_nothing_twice_and_takes_no_other_sweep(done: Path, text: Path) -> None:
    notes: list[str] = []
    law = sweep([text], done, settings=settings(), report=lambda event: notes.append(event.note))
    assert set(notes) == {"done before"}
    assert law.law == read_law(done).law
    with pytest.raises(TrainingError, match="another sweep"):
        sweep([text], done, settings=settings(held_out=0.1))


def test_a_budget_spans_a_grid_that_costs_it() -> None:
    found = jobs(SweepSettings(flops=1e13), vocab_size=512, unique=10**7)
    assert len(found) == 16 and found == sorted(found, key=lambda job: job.flops)
    assert sum(job.flops for job in found) == pytest.approx(1e13, rel=0.35)  # shapes come in steps
    largest = found[-1]
    assert largest.tokens == max(job.tokens for job in found) and largest.shape == max(
        (job.shape for job in found), key=lambda shape: shape.parameters
    )
    assert largest.tokens / largest.shape.parameters == pytest.approx(20, rel=0.3)


def test_grids_that_decide_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="neither a grid nor a budget"):
        jobs(SweepSettings(), vocab_size=300, unique=10**6)
    with pytest.raises(RequestError, match="cannot tell a law"):
        jobs(SweepSettings(widths=(32,), tokens=(10**5, 2 * 10**5, 4 * 10**5)), vocab_size=300, unique=10**6)
    with pytest.raises(PreflightError, match="repeated text"):
        jobs(SweepSettings(flops=1e14), vocab_size=300, unique=10**6)
    with patch("almanac.pretrain.sweep_settings.LEAST_STEPS", 200), pytest.raises(PreflightError, match="20 steps"):
        jobs(SweepSettings(widths=(16, 32, 48), tokens=(10**4, 10**5, 10**6)), vocab_size=300, unique=10**6)
    with pytest.raises(RequestError, match="larger budget"):
        jobs(SweepSettings(flops=1e9), vocab_size=300, unique=10**6)
    with pytest.raises(RequestError, match="multiple of 16"):
        jobs(SweepSettings(widths=(16, 20, 32), tokens=(10**5, 2 * 10**5, 4 * 10**5)), vocab_size=300, unique=10**6)


def test_runs_are_read_from_tables_lines_and_folders(done: Path, tmp_path: Path) -> None:
    runs = read_runs([done])
    assert len(runs.rows) == 9 and runs.points(size="non_embedding").parameters.max() < runs.points().parameters.max()
    table = tmp_path / "runs.csv"
    table.write_text("N,D,Loss,U\n" + "".join(f"{r['parameters']},{r['tokens']},{r['loss']},1e3\n" for r in runs.rows))
    lines = tmp_path / "runs.jsonl"
    lines.write_text("".join(json.dumps(dict(r)) + "\n" for r in runs.rows))
    read = read_runs([table, lines])
    assert read.points().losses.tolist() == [*runs.points().losses] * 2
    assert read_runs([table]).points().unique is not None
    with pytest.raises(FileFormatError, match="non_embedding"):
        read_runs([table]).points(size="non_embedding")


def test_runs_that_are_none_are_refused(done: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.csv"):
        read_runs([tmp_path / "none.csv"])
    with pytest.raises(PreflightError, match="no run"):
        read_runs([tmp_path])
    for content, error, told in (
        ("N,D\n1,2\n", FileFormatError, "no loss"),
        ("N,D,loss\n1e6,1e8,three\n", FileFormatError, "loss is 'three'"),
        ("N,D,loss\n1e6,1e8,-3\n", ShapeError, "Run 1 has loss -3"),
    ):
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(error, match=told):
            read_runs([tmp_path / "bad.csv"]).points()
    half = tmp_path / "half" / "run"
    half.mkdir(parents=True)
    (half / "run.json").write_text("{}")
    with pytest.raises(PreflightError, match="not finished"):
        read_runs([tmp_path / "half", done])
    with pytest.raises(FileFormatError, match="no fitted law"):
        read_law(done / WORK / "settings.json")
