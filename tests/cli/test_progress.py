"""A build's progress: a line per stage, or bars, or JSON lines; the same events in all three."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass

import pytest

from almanac.cli.progress import Lines, pace, reporting


@dataclass(frozen=True)
class Event:
    """As ``files.stages.StageEvent``."""

    stage: str
    done: int
    total: int
    note: str
    seconds: float


EVENTS = [
    Event("read", 1, 1, "done", 0.4),
    Event("index", 1, 3, "a.md", 0.5),
    Event("index", 2, 3, "c.md", 1.5),
    Event("index", 1, 1, "done", 1.6),
    Event("adapt", 2, 60, "step 2/60 [bold]", 10.0),
]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_one_line_per_stage_the_last_even_if_it_was_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), reporting(in_json=False) as report:
        for event in EVENTS:
            report(event)
        raise KeyboardInterrupt
    assert capsys.readouterr().err.splitlines() == [
        "read: done (0.4 s)",
        "index: 3/3 done (1.6 s)",
        "adapt: 2/60 step 2/60 [bold] (10.0 s)",
    ]


def test_a_stage_line_comes_when_the_next_begins(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines(EVENTS[0])
    assert capsys.readouterr().err == ""
    lines(EVENTS[1])
    assert capsys.readouterr().err == "read: done (0.4 s)\n"


def test_json_lines_are_the_events(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(in_json=True) as report:
        for event in EVENTS:
            report(event)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [{"event": "stage", **vars(event)} for event in EVENTS]


def test_bars_show_units_rate_time_left_and_notes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with reporting(in_json=False) as report:
        for event in EVENTS:
            report(event)
    shown = stderr.getvalue()
    assert "index" in shown and "3/3" in shown
    assert "2/60" in shown and "0.2/s, 4:50 left" in shown and "step 2/60 [bold]" in shown


def test_the_time_left_assumes_the_rate_so_far() -> None:
    assert pace(Event("x", 0, 10, "", 5.0)) == ""
    assert pace(Event("x", 5, 20, "", 2.5)) == "2.0/s, 7.5 s left"
    assert pace(Event("x", 1, 3, "", 50.0)) == "50 s each, 1:40 left"
