"""The evidence seam: an experiment can fail, a changed card invalidates, and pages come from stored results alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from almanac.core.errors import NotFoundError
from almanac.evidence import runner
from almanac.evidence.generate import cached_decoding

ROOT = Path(__file__).parents[2]
NAME = "generate.cached_decoding"


def test_every_experiment_is_found_and_stored_pages_are_current() -> None:
    assert NAME in runner.names()
    folder = ROOT / "docs" / "evidence"
    assert runner.render(check=True, folder=folder), "run `make docs`"
    stored = {path.stem for path in (folder / "results").glob("*.json")}
    assert stored == set(runner.names())


@pytest.mark.parametrize("mutant", cached_decoding.CARD.mutants)
def test_every_mutant_makes_the_experiment_fail(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cached_decoding.TOKENS, "quick", 200)
    assert cached_decoding.measure("quick", 1, None).holds
    assert not cached_decoding.measure("quick", 1, mutant).holds
    assert cached_decoding.measure("quick", 1, None).holds, "the planted bug must be gone again"


def test_a_surviving_mutant_spoils_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = runner.Measurement(0.0, True, {})
    monkeypatch.setattr(cached_decoding, "measure", lambda profile, seed, mutant: harmless)
    assert runner.run(NAME, folder=tmp_path).verdict == runner.NOT_REPRODUCED


def test_a_changed_card_makes_a_stored_result_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = runner.Measurement(0.0, True, {"counted": 1})
    monkeypatch.setattr(cached_decoding, "measure", lambda profile, seed, mutant: found if mutant is None else
                        runner.Measurement(1.0, False, {}))  # fmt: skip
    assert runner.run(NAME, folder=tmp_path).verdict == runner.REPRODUCED
    runner.render(folder=tmp_path)
    assert runner.render(check=True, folder=tmp_path)
    assert "REPRODUCED" in (tmp_path / f"{NAME}.md").read_text()
    monkeypatch.setattr(cached_decoding, "CARD", cached_decoding.CARD.with_(threshold=1.0))
    assert not runner.render(check=True, folder=tmp_path)
    runner.render(folder=tmp_path)
    assert "INVALID" in (tmp_path / "index.md").read_text()


def test_results_name_no_host_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cached_decoding.TOKENS, "quick", 50)
    runner.run(NAME, folder=tmp_path)
    text = (tmp_path / "results" / f"{NAME}.json").read_text()
    import platform

    assert platform.node() not in text or not platform.node()
    assert str(Path.home()) not in text and str(ROOT) not in text
    assert json.loads(text)["card"] == cached_decoding.CARD.digest()


def test_an_unknown_experiment_is_an_error() -> None:
    with pytest.raises(NotFoundError, match=r"no\.such"):
        runner.run("no.such")
