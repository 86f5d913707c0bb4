"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from almanac.cli import failures, reference
from almanac.cli.main import VERBS


def test_the_page_is_current() -> None:
    assert reference.main(["--check"]) == 0, "run python -m almanac.cli.reference"


def test_the_page_holds_every_verb_option_and_exit_code() -> None:
    text = reference.page()
    assert re.findall(r"^## almanac (\S+)$", text, flags=re.MULTILINE) == list(VERBS)
    assert all(text.count(f"`{option}") >= 1 for option in ("--max-tokens", "--quantization", "--fetch", "--profile"))
    assert text.count("* `--json`") == len(VERBS)
    codes = {failures.OTHER, failures.INPUT, failures.INTEGRITY, failures.INTERRUPTED, failures.BROKEN_PIPE, 0}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)} == codes


def test_check_notices_a_stale_page_and_a_run_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "PAGE", tmp_path / "docs" / "cli.md")
    assert reference.main(["--check"]) == 1 and "stale" in capsys.readouterr().out
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
