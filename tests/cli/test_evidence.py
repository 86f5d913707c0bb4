"""``almanac evidence`` runs one experiment, shows what is stored, and reports a failure as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evidence.pretend import NAME, Pretended, install

from almanac.core.errors import NotFoundError


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    """One experiment whose outcome is known, in a folder that has docs/evidence."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "docs" / "evidence").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = Pretended()
    install(monkeypatch, found)
    return found


def test_the_exit_code_is_the_verdict(almanac: Callable[..., Any], pretended: Pretended) -> None:
    result = almanac("evidence", NAME, "--profile", "full", "--json")
    found = json.loads(result.out)
    assert (result.code, found["verdict"], found["profile"]) == (0, "REPRODUCED", "full")
    assert found["claims"][0]["must_be"] == "at least 0.2" and found["null"] == "NOT REPRODUCED"
    assert Path("docs/evidence/pretended.md").is_file() and Path("docs/evidence/pretended.svg").is_file()
    pretended.gain = 0.0
    result = almanac("evidence", NAME, "--rotation", "1")
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[0] == "pretended: NOT REPRODUCED (quick, 3 seeds)"
    assert "  planted bug sign: noticed by the experiment" in lines
    assert lines[-1] == "  with nothing in it: NOT REPRODUCED"


def test_quick_runs_leave_nothing_behind(almanac: Callable[..., Any], pretended: Pretended) -> None:
    assert almanac("evidence", NAME).code == 0
    assert not list(Path("docs/evidence").iterdir())


def test_the_table_and_the_null_run(almanac: Callable[..., Any], pretended: Pretended) -> None:
    assert "not run" in almanac("evidence").out
    almanac("evidence", NAME, "--profile", "full")
    shown = almanac("evidence").out
    assert "REPRODUCED" in shown and "2 of 2" in shown and "at least 0.2" in shown
    rows = json.loads(almanac("evidence", "--json").out)
    assert rows["experiments"][0]["verdict"] == "REPRODUCED" and rows["code_changed_since"] == []
    result = almanac("evidence", "--null")
    assert result.code == 0 and "0 of 1 passed" in result.out
    assert json.loads(almanac("evidence", "--null", "--json").out)["passed"] == []


def test_a_method_that_is_its_baseline_is_caught_by_the_null_run(
    almanac: Callable[..., Any], pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card whose line lies below zero passes with nothing in it: exactly what the null run is for."""
    from evidence.pretend import CARD

    install(monkeypatch, pretended, CARD.with_(claims=tuple(claim.with_(fail=-0.5) for claim in CARD.claims)))
    almanac("evidence", NAME, "--profile", "full")
    result = almanac("evidence", "--null")
    assert result.code == 1 and "1 of 1 passed" in result.out


def test_names_are_listed_and_a_near_one_is_offered(almanac: Callable[..., Any], pretended: Pretended) -> None:
    assert almanac("evidence", "--list").out == "pretended\n"
    assert json.loads(almanac("evidence", "--list", "--json").out) == {"experiments": ["pretended"]}
    assert "Did you mean cached" not in almanac("evidence", "nothing.like.it").err
    result = almanac("evidence", "pretendet")
    assert result.code == 2 and "No experiment is called 'pretendet'" in result.err


def test_all_are_run_and_what_cannot_be_run_is_said(almanac: Callable[..., Any], pretended: Pretended) -> None:
    assert almanac("evidence", "--all").code == 0

    def before(arm: str, seed: int) -> None:
        raise NotFoundError("The data are missing", remedy="Bring them.")

    pretended.before = before
    result = almanac("evidence", "--all", "--rotation", "2")
    assert result.code == 1 and "could not be run" in result.out and "The data are missing" in result.out


def test_check_tells_whether_the_pages_are_current(almanac: Callable[..., Any], pretended: Pretended) -> None:
    assert almanac("evidence", "--check").code == 1
    almanac("evidence", NAME, "--profile", "full")
    assert json.loads(almanac("evidence", "--check", "--json").out) == {"current": True}
    page = Path("docs/evidence/pretended.md")
    page.write_text(page.read_text().replace("**REPRODUCED**", "**REPRODUCED BEYOND DOUBT**"))
    assert almanac("evidence", "--check").code == 1


@pytest.mark.parametrize("words", [["pretended", "--list"], ["--list", "--check"], ["--null", "pretended"]])
def test_one_thing_at_a_time(words: list[str], almanac: Callable[..., Any], pretended: Pretended) -> None:
    assert almanac("evidence", *words).code == 2
