"""``almanac run``: the runs below a folder as a table, as JSON, and one of them drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from almanac.cli.runs import HIGH, WIDE, plot
from almanac.files.store import Lock

Almanac = Callable[..., Any]


def run_in(folder: Path, *, done: int = 30, steps: int = 60) -> Path:
    folder.mkdir(parents=True)
    forecast = {"seconds": 60.0, "peak_bytes": 2.5e9, "energy": {"watt_hours": 0.5}}
    facts = {"version": 1, "identity": {"settings": {"steps": steps, "seed": 7}}, "forecast": forecast}
    (folder / "run.json").write_text(json.dumps(facts))
    rows = [{"step": s, "loss": 1 + 3 / s, "tokens": 100, "seconds": 0.5} for s in range(1, done + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "measured.jsonl").write_text(
        '{"step": 20, "loss": 2.0, "bits_per_byte": 1.0, "sample": "Once there\\u001b[2J"}\n'
    )
    return folder


def test_a_list(tmp_path: Path, almanac: Almanac) -> None:
    first, second = run_in(tmp_path / "one", done=60), run_in(tmp_path / "deep" / "two")
    with Lock(second):
        result = almanac("run", "list", tmp_path)
        told = json.loads(almanac("run", "list", tmp_path, "--json").out)["runs"]
    assert result.code == 0
    rows = {line.split()[0]: line for line in result.out.splitlines()}
    assert "running" in rows["deep/two"] and "30 of 60" in rows["deep/two"] and "15.0 s" in rows["deep/two"]
    assert "finished" in rows["one"] and "60 of 60" in rows["one"] and "1.05" in rows["one"] and "200" in rows["one"]
    assert {run["name"]: (run["state"], run["step"]) for run in told} == {
        "one": ("finished", 60),
        "deep/two": ("running", 30),
    }
    assert {run["folder"] for run in told} == {str(first), str(second)}


def test_no_run_and_no_folder(tmp_path: Path, almanac: Almanac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = almanac("run")
    assert result.code == 0 and "no runs" in result.out
    assert json.loads(almanac("run", "list", "--json").out) == {"runs": []}
    assert almanac("run", "show").code != 0 and "no folder" in almanac("run", "list", "none").err


def test_one_is_shown(tmp_path: Path, almanac: Almanac) -> None:
    run_in(tmp_path / "one")
    result = almanac("run", "show", tmp_path)
    assert result.code == 0
    for part in (
        "one: stopped, step 30 of 60",
        "3,000 tokens in 15.0 s",
        "2.5 GB",
        "0.5 Wh",
        "Once there",
        "seed",
        "step 30",
    ):
        assert part in result.out, part
    assert result.out.count("┤") == HIGH  # the held-out loss has one point, which is no curve
    told = json.loads(almanac("run", "show", tmp_path, "--json").out)["runs"][0]
    assert told["curves"]["loss"][0] == [1, 1, 4.0, 4.0, 4.0] and len(told["curves"]["loss"]) == 30
    assert told["curves"]["held_out_loss"] == [[20, 20, 2.0, 2.0, 2.0]] and told["settings"] == {
        "steps": "60",
        "seed": "7",
    }


def test_of_several_one_is_to_be_named(tmp_path: Path, almanac: Almanac) -> None:
    one, two = run_in(tmp_path / "one"), run_in(tmp_path / "two")
    result = almanac("run", "show", tmp_path)
    assert result.code != 0 and str(one) in result.err and str(two) in result.err
    assert "two: stopped" in almanac("run", "show", two).out
    assert len(json.loads(almanac("run", "show", tmp_path, "--json").out)["runs"]) == 2


def test_a_plot_draws_what_it_is_given() -> None:
    """A falling line goes from the top left to the bottom right; a flat one stays in one row."""
    falling = plot([(s, s, 100.0 - s, 0, 0) for s in range(101)])
    assert len(falling) == HIGH + 2 and all(len(row) <= WIDE + 7 for row in falling)
    inked = [[at for at, sign in enumerate(row) if "\u2801" <= sign <= "\u28ff"] for row in falling[:HIGH]]
    assert all(inked) and [cells[0] for cells in inked] == sorted(cells[0] for cells in inked)
    assert falling[0].startswith("100 ┤") and falling[HIGH - 1].lstrip().startswith("0 ┤") and "step 100" in falling[-1]
    flat = plot([(0, 0, 5.0, 5, 5), (9, 9, 5.0, 5, 5)])
    assert sum(any("\u2801" <= sign <= "\u28ff" for sign in row) for row in flat[:HIGH]) == 1
